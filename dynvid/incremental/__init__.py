"""`incremental(fn)`: any frame function, run incrementally on a video."""

from dynvid.incremental.execute import State
from dynvid.incremental.explain import Explanation, explain
from dynvid.incremental.split import Features, Split, split
from dynvid.incremental.transform import incremental, map_caches
from dynvid.incremental.tune import Trial, Tuning, relative_agreement, tune

__all__ = [
    "Explanation",
    "Features",
    "Split",
    "State",
    "Trial",
    "Tuning",
    "explain",
    "incremental",
    "map_caches",
    "relative_agreement",
    "split",
    "tune",
]
