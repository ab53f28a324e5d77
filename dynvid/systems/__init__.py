"""Whole systems from the papers, each a `VideoFunction`."""

from dynvid.systems.dyncnn import dyncnn, dyncnn_groups
from dynvid.systems.ifmdc import ifmdc, ifmdc_network

__all__ = ["dyncnn", "dyncnn_groups", "ifmdc", "ifmdc_network"]
