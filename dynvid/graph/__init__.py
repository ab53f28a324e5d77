"""From a function to a flat graph and back: trace, evaluate, split, estimate."""

from dynvid.graph.estimate import Estimate, estimate
from dynvid.graph.macs import count_macs, node_macs
from dynvid.graph.split import Features, Split, split
from dynvid.graph.trace import Graph, Node, Value, trace

__all__ = [
    "Estimate",
    "Features",
    "Graph",
    "Node",
    "Split",
    "Value",
    "count_macs",
    "estimate",
    "node_macs",
    "split",
    "trace",
]
