"""Pure, jittable array functions, one idea a file, each naming its paper, section and equation."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
