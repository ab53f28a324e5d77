"""Whole systems from the papers, each a `VideoFunction`."""

from dynvid.systems.dvsnet import DVSNetParams, dvsnet
from dynvid.systems.dyncnn import dyncnn, dyncnn_groups
from dynvid.systems.ifmdc import ifmdc, ifmdc_network

__all__ = ["DVSNetParams", "dvsnet", "dyncnn", "dyncnn_groups", "ifmdc", "ifmdc_network"]
