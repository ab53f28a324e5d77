"""What a codec does outside `jit`: packing bits, entropy coding and the container, on the host."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
