"""Dynamic video inference in JAX: any vision function, run incrementally on a video."""

from dynvid._lazy import submodules
from dynvid.graph import Split, split
from dynvid.incremental import State, Tuning, audited, explain, incremental, map_caches, tune
from dynvid.models.modules import from_nnx
from dynvid.results import Result, detect
from dynvid.types import VideoFunction, Work, replace_streams

__all__ = [
    "Result",
    "Split",
    "State",
    "Tuning",
    "VideoFunction",
    "Work",
    "audited",
    "detect",
    "explain",
    "from_nnx",
    "incremental",
    "map_caches",
    "replace_streams",
    "split",
    "tune",
]
__version__ = "0.1.0"

# Every sub-package is reachable; what needs matplotlib or PyAV is loaded when it is first used.
__getattr__, __dir__ = submodules(__name__)
