"""Dynamic Inference (arXiv 2002.03342, CVPR Workshops 2020): stop when sure, over depth and input.

`dynamic_inference` decides whole clips, by a route over frame groups and stages of a network;
`dynamic_inference_stream` is the same for frames that arrive one by one, `recurrent_inference` for
recurrent networks; `thresholds` chooses what confidence is enough.
"""

from dynvid.systems.dynamic_inference.clips import dynamic_inference, route_macs
from dynvid.systems.dynamic_inference.recurrent import RecurrentState, recurrent_inference
from dynvid.systems.dynamic_inference.stream import (
    StreamState,
    dynamic_inference_stream,
)
from dynvid.systems.dynamic_inference.thresholds import (
    Schedule,
    budgeted_thresholds,
    exit_shares,
    expected,
    for_accuracy,
    for_budget,
    shared_thresholds,
)

__all__ = [
    "RecurrentState",
    "Schedule",
    "StreamState",
    "budgeted_thresholds",
    "dynamic_inference",
    "dynamic_inference_stream",
    "exit_shares",
    "expected",
    "for_accuracy",
    "for_budget",
    "recurrent_inference",
    "route_macs",
    "shared_thresholds",
]
