"""Networks and what belongs to them: detection heads, their decoding, non-maximum suppression."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
