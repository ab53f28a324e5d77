"""Whole systems from the papers, each a `VideoFunction`."""

from dynvid.systems.dvsnet import DVSNetParams, dvsnet
from dynvid.systems.dyncnn import dyncnn, dyncnn_groups
from dynvid.systems.flow_detection import FlowDetectionParams, flow_detection
from dynvid.systems.ifmdc import ifmdc, ifmdc_network

__all__ = [
    "DVSNetParams",
    "FlowDetectionParams",
    "dvsnet",
    "dyncnn",
    "dyncnn_groups",
    "flow_detection",
    "ifmdc",
    "ifmdc_network",
]
