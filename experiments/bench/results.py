"""Figures on disk, with the machine that they were measured on."""

import json
import os
import pathlib
import platform
from typing import Any

import jax

from dynvid.files import output_file


def machine() -> dict[str, Any]:
    """The processor, its cores and jax's version."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a file of figures holds; nothing where there is none yet."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: pathlib.Path, figures: dict[str, Any]) -> None:
    """Writes figures, the whole file or nothing of it."""
    with output_file(path) as file:
        file.write((json.dumps(figures, indent=1) + "\n").encode())
