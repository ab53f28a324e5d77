"""How good, and how much alike, two runs are."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
