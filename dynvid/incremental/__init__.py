"""`incremental(fn)`: any frame function, run incrementally on a video."""

from dynvid.incremental.audit import AuditedState, audited
from dynvid.incremental.explain import Explanation, explain
from dynvid.incremental.propagate import AlongMotion, along_motion
from dynvid.incremental.state import State
from dynvid.incremental.transform import incremental, map_caches
from dynvid.incremental.tune import Trial, Tuning, TuningWarning, relative_agreement, tune

__all__ = [
    "AlongMotion",
    "AuditedState",
    "Explanation",
    "State",
    "Trial",
    "Tuning",
    "TuningWarning",
    "along_motion",
    "audited",
    "explain",
    "incremental",
    "map_caches",
    "relative_agreement",
    "tune",
]
