"""Where the real videos, ground truth and weights are, for the tests that need them."""

import os
import pathlib

import pytest

DATA = pathlib.Path(
    os.environ.get("DYNVID_DATA", pathlib.Path(__file__).parents[2] / ".." / "shared" / "data")
).resolve()


def data_path(relative: str) -> pathlib.Path:
    """The path of a data file or folder; skips the calling test where it is missing."""
    path = DATA / relative
    if not path.exists():
        pytest.skip(f"needs {relative} under DYNVID_DATA (looked in {DATA})")
    return path
