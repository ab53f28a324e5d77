"""IFMDC: inter-feature-map differential coding (GCCE 2022, arXiv 2411.00984)."""

from dynvid.systems.ifmdc.codec import CodecState, FeatureCodec, Symbols, ifmdc
from dynvid.systems.ifmdc.network import NetworkState, calibrated_settings, ifmdc_network
from dynvid.systems.ifmdc.rate import count_bits
from dynvid.systems.ifmdc.settings import Settings, clip_range, settings_for
from dynvid.systems.ifmdc.stream import (
    FeatureReader,
    Features,
    FeatureWriter,
    header_of,
    settings_of,
)

__all__ = [
    "CodecState",
    "FeatureCodec",
    "FeatureReader",
    "FeatureWriter",
    "Features",
    "NetworkState",
    "Settings",
    "Symbols",
    "calibrated_settings",
    "clip_range",
    "count_bits",
    "header_of",
    "ifmdc",
    "ifmdc_network",
    "settings_for",
    "settings_of",
]
