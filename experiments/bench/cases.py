"""Named cases that are timed, and the figures that they leave in a JSON file."""

import argparse
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import onnxruntime

from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json


def clock(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, its result waited for, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def main(names: Sequence[str], cases: dict[str, Callable[[], Any]], path: pathlib.Path) -> None:
    """Runs cases by name, all where none is named, and keeps their figures in a JSON file.

    Args:
      names: The command line: names of cases.
      cases: What there is; the docstring of each says what it times.
      path: Where the figures go, after every case; those of other cases stay.
    """
    listed = "\n".join(f"  {name}: {run.__doc__}" for name, run in cases.items())
    parser = argparse.ArgumentParser(
        description=f"Times dynvid against dense networks. Run it alone.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help="what to time; all where none is named")
    chosen = parser.parse_args(names).case
    if unknown := [name for name in chosen if name not in cases]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    results = read_json(path)
    results["machine"] = machine() | {"onnxruntime": onnxruntime.__version__}
    for name in chosen or cases:
        console.print(f"[bold]{cases[name].__doc__}")
        results[name] = cases[name]()
        console.print_json(data=results[name])
        write_json(path, results)
