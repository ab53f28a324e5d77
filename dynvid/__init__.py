"""Dynamic video inference in JAX: any vision function, run incrementally on a video."""

from dynvid.incremental import Tuning, explain, incremental, map_caches, split, tune
from dynvid.models.modules import from_nnx
from dynvid.types import VideoFunction, Work, replace_streams

__all__ = [
    "Tuning",
    "VideoFunction",
    "Work",
    "explain",
    "from_nnx",
    "incremental",
    "map_caches",
    "replace_streams",
    "split",
    "tune",
]
__version__ = "0.1.0"
