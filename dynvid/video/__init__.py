"""Videos in and out: reading, writing, drawing and reports."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
