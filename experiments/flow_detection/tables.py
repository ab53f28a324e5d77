"""The tables of README.md, from results.json.

python -m experiments.flow_detection.tables
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.bench.results import read_json
from experiments.bench.tables import table
from experiments.flow_detection.pictures import averaged

Row = Mapping[str, Any]


def _accuracy(row: Row, base: Row) -> list[str]:
    gained = np.array(row["map_seeds"]) - np.array(base["map_seeds"])
    return [
        f"{row['map']:.1f}",
        ", ".join(f"{x:+.1f}" for x in gained),
        *(f"{row[kind]:.1f}" for kind in ("slow", "medium", "fast")),
    ]


def _work(row: Row) -> list[str]:
    return [
        f"{100 * row['keys']:.1f}" if "keys" in row else "",
        f"{100 * row['updated']:.1f}" if "updated" in row else "",
        f"{row['macs']:.3f}",
    ]


def _speed(row: Row) -> list[str]:
    if "speedup" not in row:
        return ["", ""]
    low, high = row["speedup_quartiles"]
    return [f"{row['milliseconds']:.1f}", f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})"]


_ACCURACY = ("mAP", "against per-frame, seed by seed", "slow", "medium", "fast")
_WORK = ("key frames, %", "updated, %", "MACs")
_SPEED = ("ms a frame", "speed-up (quartiles)")


def trained(seeds: Mapping[str, Any]) -> str:
    """The table of a case with a row for each method."""
    found = averaged(seeds)
    base = found["per-frame"]
    rows = [[name, *_accuracy(row, base), *_work(row), *_speed(row)] for name, row in found.items()]
    return table(["", *_ACCURACY, *_WORK, *_SPEED], rows)


def agreement(seeds: Mapping[str, Any]) -> str:
    """F1, work and speed on real frames."""
    rows = [
        [video if i == 0 else "", name, f"{row['f1']:.3f}", *_work(row), *_speed(row)]
        for video, found in seeds["0"].items()
        for i, (name, row) in enumerate(found.items())
    ]
    return table(["video", "", "F1", *_WORK, *_SPEED], rows)


def motion(seeds: Mapping[str, Any]) -> str:
    """What motions leave unexplained."""
    names = list(next(iter(seeds["0"].values())))
    rows = [
        [
            place,
            *(
                f"{row['unexplained']:.1f}, {100 * row['share']:.1f}%, {row['motion_pixels']:.1f}"
                for row in found.values()
            ),
        ]
        for place, found in seeds["0"].items()
    ]
    return table(["video, apart", *names], rows)


CASES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    **dict.fromkeys(("methods", "share", "oracle", "adaptive", "pan", "ambiguity"), trained),
    "motion": motion,
    "agreement": agreement,
}


def main(results: Mapping[str, Any]) -> str:
    """All tables, one below the other."""
    return "\n\n".join(
        f"{name}\n\n{make(results[name]['seeds'])}"
        for name, make in CASES.items()
        if name in results
    )


if __name__ == "__main__":
    print(main(read_json(pathlib.Path(__file__).parent / "results.json")))
