"""IFMDC: inter-feature-map differential coding (GCCE 2022, arXiv 2411.00984)."""

from dynvid.systems.ifmdc.codec import (
    CodecState,
    FeatureCodec,
    Settings,
    Symbols,
    clip_range,
    ifmdc,
)

__all__ = ["CodecState", "FeatureCodec", "Settings", "Symbols", "clip_range", "ifmdc"]
