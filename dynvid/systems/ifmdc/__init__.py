"""IFMDC: inter-feature-map differential coding (GCCE 2022, arXiv 2411.00984)."""

from dynvid.systems.ifmdc.codec import (
    CodecState,
    FeatureCodec,
    Symbols,
    ifmdc,
)
from dynvid.systems.ifmdc.settings import Settings, clip_range
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
    "Settings",
    "Symbols",
    "clip_range",
    "header_of",
    "ifmdc",
    "settings_of",
]
