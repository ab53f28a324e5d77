"""`incremental(fn)`: any frame function, run incrementally on a video."""

from dynvid.incremental.execute import State
from dynvid.incremental.explain import Explanation, explain
from dynvid.incremental.transform import incremental, map_caches

__all__ = ["Explanation", "State", "explain", "incremental", "map_caches"]
