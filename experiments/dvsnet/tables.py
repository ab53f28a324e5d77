"""The tables of README.md, from results.json.

python -m experiments.dvsnet.tables
"""

import pathlib
from typing import Any

from experiments.bench.results import read_json
from experiments.bench.tables import table


def _quality(row: dict[str, Any]) -> list[str]:
    return [
        f"{100 * row['segmented_share']:.1f}",
        f"{row['mac_fraction']:.3f}",
        f"{row['miou']:.1f}",
        f"{row['miou_lost']:.1f}",
        f"{row['agreement_percent']:.1f}",
        *([f"{row['milliseconds']:.1f}", f"{row['speedup']:.2f}"] if "speedup" in row else []),
    ]


_QUALITY = (
    *("regions segmented, %", "MACs", "mIoU", "points lost", "agreement, %"),
    *("ms a frame", "speed-up"),
)


def main(results: dict[str, Any]) -> str:
    """All tables, one below the other."""
    parts = []
    if "times" in results:
        names = list(next(iter(results["times"].values()))["milliseconds"])
        rows = [
            [
                subject,
                *(f"{found['milliseconds'][n]:.1f}" for n in names),
                f"{found['miou_per_frame']:.1f}",
            ]
            for subject, found in results["times"].items()
        ]
        parts += ["times", table(["ms", *names, "mIoU frame by frame"], rows)]
    for subject, found in results.get("figure8", {}).items():
        rows = [[f"{row['threshold']:g}", *_quality(row)] for row in found["rows"]]
        parts += [f"figure 8, {subject}", table(["t", *_QUALITY], rows)]
    for subject, found in results.get("figure9", {}).items():
        rows = [
            [policy.replace("_", " "), f"{row['threshold']:g}", *_quality(row)]
            for policy, some in found.items()
            for row in some
        ]
        parts += [f"figure 9, {subject}", table(["policy", "threshold", *_QUALITY[:5]], rows)]
    if "table2" in results:
        rows = [[name, f"{error:.2f}"] for name, error in results["table2"].items()]
        parts += ["table 2", table(["input", "mean absolute error, %"], rows)]
    for subject, found in results.get("decision_error", {}).items():
        rows = [[gap, f"{error:.2f}"] for gap, error in found["by_gap"].items()]
        parts += [
            f"decision error, {subject}: {found['mean_absolute_error_percent']:.2f}% on "
            f"{found['pairs']} regions; always the mean: {found['error_of_the_mean_percent']:.2f}%",
            table(["frames apart", "mean absolute error, %"], rows),
        ]
    for subject, found in results.get("two_numbers", {}).items():
        parts_judged = list(next(iter(found.values())))
        rows = [
            [name, *(f"{row[part]:.2f}" for part in parts_judged)] for name, row in found.items()
        ]
        parts += [f"two numbers, {subject}", table(["error, %", *parts_judged], rows)]
    for subject, found in results.get("bounds", {}).items():
        ways = [name for name in next(iter(found.values())) if name != "segmented"]
        rows = [
            [gap, f"{row['segmented']:.1f}", *(f"{row[way]:.1f}" for way in ways)]
            for gap, row in found.items()
        ]
        head = ["frames apart", "mIoU segmented", *(f"lost, {way}" for way in ways)]
        parts += [f"bounds, {subject}", table(head, rows)]
    for subject, found in results.get("unexplained", {}).items():
        ways = [way for way in next(iter(found.values()))["points lost"] if way != "segmented"]
        rows = [
            [gap]
            + [
                f"{row['points lost'][way]:.1f}"
                + (f" ({100 * row['share anew'][way]:.0f}%)" if way in row["share anew"] else "")
                for way in ways
            ]
            for gap, row in found.items()
        ]
        head = ["frames apart", *(f"lost, {way}" for way in ways)]
        parts += [f"unexplained, {subject}", table(head, rows)]
    for subject, found in results.get("table3", {}).items():
        rows = [
            [
                grid,
                row["regions"],
                row["warped"],
                row["segmented"],
                f"{row['warped_to_segmented']:.2f}",
                *_quality(row),
            ]
            for grid, row in found.items()
        ]
        head = ["division", "regions", "warped", "segmented", "warped : segmented", *_QUALITY]
        parts += [f"table 3, {subject}", table(head, rows)]
    for subject, found in results.get("figure10", {}).items():
        rows = [
            [overlap, f"{row['miou_all_segmented']:.1f}", *_quality(row)]
            for overlap, row in found.items()
        ]
        head = ["overlap", "mIoU, all segmented", *_QUALITY]
        parts += [f"figure 10, {subject}", table(head, rows)]
    for subject, found in results.get("incremental", {}).items():
        rows = [[name, *_quality(row)] for name, row in found.items()]
        parts += [f"incremental, {subject}", table(["", *_QUALITY], rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(main(read_json(pathlib.Path(__file__).parent / "results.json")))
