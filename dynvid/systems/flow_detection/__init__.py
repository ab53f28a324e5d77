"""Flow-guided video object detection: Zhu et al., CVPR 2018, with DFF and FGFA (2017)."""

from dynvid.systems.flow_detection.network import SplitDetector, split_detector
from dynvid.systems.flow_detection.state import FlowDetectionParams, FlowDetectionState
from dynvid.systems.flow_detection.system import (
    CONSISTENCY_THRESHOLDS,
    TABLE_1,
    THRESHOLDS,
    flow_detection,
)

__all__ = [
    "CONSISTENCY_THRESHOLDS",
    "TABLE_1",
    "THRESHOLDS",
    "FlowDetectionParams",
    "FlowDetectionState",
    "SplitDetector",
    "flow_detection",
    "split_detector",
]
