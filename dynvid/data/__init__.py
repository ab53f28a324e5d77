"""Formats of datasets, and synthetic scenes with exact ground truth."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
