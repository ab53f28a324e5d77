"""Readers of published weights; the only place besides `video` and the CLI that opens files."""

from dynvid._lazy import submodules

__getattr__, __dir__ = submodules(__name__)
