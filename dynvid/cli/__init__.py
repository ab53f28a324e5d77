"""The command line: `dynvid run`, `tune`, `explain`, `encode`, `decode` and `bitstream`."""

from dynvid.cli.main import main

__all__ = ["main"]
