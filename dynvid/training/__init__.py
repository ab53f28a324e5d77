"""Training: a loop that can be killed and goes on as if it had not been (extra `train`)."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
