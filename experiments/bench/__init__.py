"""What experiments share: sequences, networks, baselines, judging, running and keeping."""

import os
import pathlib

from rich.console import Console

DATA = pathlib.Path(
    os.environ.get("DYNVID_DATA", pathlib.Path(__file__).parents[2] / ".." / "shared" / "data")
)
"""Where the videos, their ground truth and the weights lie."""

console = Console()
"""Where progress and tables go."""
