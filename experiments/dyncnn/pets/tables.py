"""The results as tables, for the terminal."""

from typing import Any

from rich.table import Table

from experiments.bench import console


def show(part: str, result: dict[str, Any]) -> None:
    """Prints the figures of a part."""
    for table in _TABLES[part](result):
        console.print(table)


def _theta(result: dict[str, Any]) -> list[Table]:
    names = list(dict.fromkeys(row["scheme"] for row in result["rows"]))
    tables = []
    for key, title in (
        ("macs", "multiply-accumulates, % of dense"),
        ("ap50", "person AP50, all points"),
        ("ap50_11_points", "person AP50, 11 points"),
    ):
        dense = f"; dense {result['dense'][key]:.2f}" if key in result["dense"] else ""
        table = Table("theta", *names, title=f"{result['detector']}, PETS, {title}{dense}")
        for theta in dict.fromkeys(row["theta"] for row in result["rows"]):
            row = {r["scheme"]: r[key] for r in result["rows"] if r["theta"] == theta}
            scale = 100 if key == "macs" else 1
            table.add_row(f"{theta}", *(f"{scale * row[name]:.2f}" for name in names))
        tables.append(table)
    return tables


def _videos(result: dict[str, Any]) -> list[Table]:
    names = [name for name in result["videos"][0]["schemes"] if name != "dense"]
    work = Table("video", "frames", "similarity, %", *names, title="MACs, % of dense")
    same = Table("video", *names, title="score agreement with dense, %")
    rows = Table(
        "video", "class", "scheme", "AP50", "11 points", "TP", "FP", "TotalPred", "truths",
        title="detections",
    )  # fmt: skip
    for video in result["videos"]:
        schemes = video["schemes"]
        found = [f"{100 * schemes[name]['macs']:.1f}" for name in names]
        work.add_row(
            video["name"], str(video["frames"]), f"{100 * video['similarity']:.2f}", *found
        )
        same.add_row(video["name"], *(f"{schemes[name]['score_agreement']:.1f}" for name in names))
        for label in ("person", "car"):
            for name, entry in schemes.items():
                if label in entry:
                    row = entry[label]
                    whole = ("true_positives", "false_positives", "predictions", "truths")
                    rows.add_row(
                        f"{video['name']} ({video['truth']})", label, name, f"{row['ap50']:.2f}",
                        f"{row['ap50_11_points']:.2f}", *(str(row[key]) for key in whole),
                    )  # fmt: skip
    return [work, same, rows]


def _tuned(result: dict[str, Any]) -> list[Table]:
    keys = ("macs", "macs_held_out", "ap50", "ap50_held_out", "score_agreement")
    table = Table("video", "setting", *keys, title="all frames, and those not tuned on")
    for row in result["rows"]:
        scales = [100 if key.startswith("macs") else 1 for key in keys]
        found = [
            f"{scale * row[key]:.2f}" if key in row else "-"
            for key, scale in zip(keys, scales, strict=True)
        ]
        table.add_row(row["video"], row["name"], *found)
    return [table]


def _pictures(result: dict[str, Any]) -> list[Table]:
    table = Table("frame", "level", "geometry only, %", "with refresh, %", title="recomputed")
    for row in result["masks"]:
        cells = (f"{row['frame']}", row["level"], f"{100 * row['geometry']:.1f}")
        table.add_row(*cells, f"{100 * row['refresh']:.1f}")
    return [table]


_TABLES = {"theta": _theta, "videos": _videos, "tuned": _tuned, "pictures": _pictures}
