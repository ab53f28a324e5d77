"""Videos in and out: reading, writing, drawing, reports and synthetic scenes."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
