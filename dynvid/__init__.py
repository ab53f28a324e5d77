"""Dynamic video inference in JAX: any vision function, run incrementally on a video."""

from dynvid.incremental import explain, incremental, map_caches
from dynvid.types import VideoFunction, Work

__all__ = ["VideoFunction", "Work", "explain", "incremental", "map_caches"]
__version__ = "0.1.0"
