"""From a function to a flat graph and back: trace, evaluate, split."""

from dynvid.graph.macs import count_macs, node_macs
from dynvid.graph.split import Features, Split, split
from dynvid.graph.trace import Graph, Node, Value, trace

__all__ = [
    "Features",
    "Graph",
    "Node",
    "Split",
    "Value",
    "count_macs",
    "node_macs",
    "split",
    "trace",
]
