"""Named cases that are timed, and the figures that they leave in a JSON file."""

import argparse
import time

import jax
import onnxruntime

from experiments.bench import console
from experiments.bench.results import machine, read_json, write_json


def clock(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def main(names, cases, path):
    """Runs cases by name, all where none is named, and keeps their figures in a JSON file."""
    listed = "\n".join(f"  {name}: {run.__doc__}" for name, run in cases.items())
    parser = argparse.ArgumentParser(
        description=f"Times dynvid against dense networks. Run it alone.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help="what to time; all where none is named")
    names = parser.parse_args(names).case
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    results = read_json(path)
    results["machine"] = machine() | {"onnxruntime": onnxruntime.__version__}
    for name in names or cases:
        console.print(f"[bold]{cases[name].__doc__}")
        results[name] = cases[name]()
        console.print_json(data=results[name])
        write_json(path, results)
