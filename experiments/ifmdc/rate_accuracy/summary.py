"""What the curves say: BD-rates, rates at a loss of 2%, and the pictures."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from dynvid.metrics.rate import bjontegaard_delta_rate, rate_at_loss, upper_envelope
from experiments.bench import console
from experiments.bench.figures import save_figure
from experiments.ifmdc.rate_accuracy.results import Results

LOSS = 0.02
KINDS = {"predicted": "P frames", "all_frames": "all frames"}
STYLES = {
    "IFMDC + DCT R3": "C0-", "IFMDC + DCT R2": "C0--", "IFMDC + dead zone R3": "C1-",
    "IFMDC R3": "C4-", "IFMDC R2": "C4--", "IFMDC R1": "C4:",
    "HEVC tiling": "C2-", "HEVC quilting": "C3-", "HEVC video": "k-", "lightweight": "C5-",
}  # fmt: skip
"""How each curve is drawn; R0, a bound, is none."""

BEST = "IFMDC + DCT R3"
SENSITIVE = "QP 45"


def curves_of(entry: dict[str, Any], kind: str) -> dict[str, tuple[list[float], list[float]]]:
    """Rates and APs of each method and stage, by rising rate."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for method, rows in entry["methods"].items():
        stages = next(iter(rows.values()))["bpp"]
        for stage in stages:
            points = sorted((row["bpp"][stage][kind], row["ap50"]) for row in rows.values())
            rates, levels = zip(*points, strict=True)
            found[f"{method} {stage}".strip()] = list(rates), list(levels)
    return found


def summarise(results: Results, folder: pathlib.Path) -> None:
    """Computes the tables from the curves, prints them and draws the figures."""
    data = results.read()
    subjects = {name: e for name, e in data["subjects"].items() if e.get("methods")}
    for name, entry in subjects.items():
        entry["summary"] = {kind: _summary(entry, kind) for kind in KINDS}
        _show(name, entry)
        results.save(name, entry)
    _show_sensitivity(subjects)
    _show_incremental(subjects)
    _draw_curves(subjects, folder / "curves.png")
    _draw_sensitivity(subjects, folder / "sensitivity.png")
    _draw_wins(subjects, folder / "wins.png")
    _draw_histogram(subjects, folder / "histogram.png")


def _summary(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    curves = curves_of(entry, kind)
    found: dict[str, Any] = {
        "rate_at_2_percent": {},
        "bd_rate_of_best": {},
        "bd_rate_of_paper": {},
    }
    for name, (rate, level) in curves.items():
        wanted = rate_at_loss(rate, level, reference=entry["dense"], loss=LOSS)
        found["rate_at_2_percent"][name] = _number(wanted)
        for key, ours in (("bd_rate_of_best", BEST), ("bd_rate_of_paper", "IFMDC R3")):
            if ours in curves and name != ours and min(len(rate), len(curves[ours][0])) >= 4:
                found[key][name] = _number(bjontegaard_delta_rate(rate, level, *curves[ours]))
    return found


def _show_sensitivity(subjects: dict[str, Any]) -> None:
    """Whether IFMDC gains where HEVC on the video loses: the paper's Figures 7 and 9."""
    table = Table(
        "sequence, model", f"AP lost by HEVC video at {SENSITIVE}, %", "HEVC / IFMDC, bits"
    )
    for name, entry in subjects.items():
        row = entry["methods"].get("HEVC video", {}).get(SENSITIVE)
        rates = entry["summary"]["predicted"]["rate_at_2_percent"]
        video, best = rates.get("HEVC video"), rates.get(BEST)
        table.add_row(
            name,
            "-" if row is None else f"{100 * (1 - row['ap50'] / entry['dense']):.1f}",
            "-" if not (video and best) else f"{video / best:.2f}",
        )
    console.print(table)


def _show_incremental(subjects: dict[str, Any]) -> None:
    """The rate at equal AP where the front is incremental."""
    table = Table("sequence, model", "front", "work, %", "AP not coded", "bpp of P / all frames")
    for name, entry in subjects.items():
        fronts = {"dense": {"methods": entry["methods"], "uncoded": entry["dense"]}}
        for front, found in (fronts | entry.get("incremental", {})).items():
            rates = []
            for kind in KINDS:
                curve = curves_of(found, kind).get(BEST)
                wanted = np.nan
                if curve is not None:
                    wanted = rate_at_loss(*curve, reference=entry["dense"], loss=LOSS)
                rates.append("not reached" if np.isnan(wanted) else f"{wanted:.4f}")
            work = f"{100 * found.get('mac_fraction', 1):.1f}"
            table.add_row(name, front, work, f"{found['uncoded']:.2f}", " / ".join(rates))
    console.print(table)


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if np.isnan(value) else value


def _show(name: str, entry: dict[str, Any]) -> None:
    columns = ("bpp at AP loss 2%", f"BD-rate of {BEST}, %", "BD-rate of IFMDC R3, %")
    for kind, title in KINDS.items():
        summary = entry["summary"][kind]
        table = Table("method", *columns, title=f"{name}, {title}; dense {entry['dense']:.2f}")
        for method, rate in summary["rate_at_2_percent"].items():
            deltas = [summary[key].get(method) for key in ("bd_rate_of_best", "bd_rate_of_paper")]
            table.add_row(
                method, "-" if rate is None else f"{rate:.4f}",
                *("-" if delta is None else f"{delta:+.1f}" for delta in deltas),
            )  # fmt: skip
        console.print(table)


def _draw_curves(subjects: dict[str, Any], path: pathlib.Path) -> None:
    figure = Figure(figsize=(11, 3.6 * len(subjects)), layout="constrained")
    grid = figure.subplots(len(subjects), 2, squeeze=False)
    for line, (name, entry) in zip(grid, subjects.items(), strict=True):
        for axes, (kind, title) in zip(line, KINDS.items(), strict=True):
            for method, (rate, level) in curves_of(entry, kind).items():
                if method in STYLES:
                    color = STYLES[method].rstrip("-:")
                    axes.plot(rate, level, ".", color=color, markersize=3, alpha=0.6)
                    best = upper_envelope(np.array(rate), np.array(level))
                    axes.plot(*best, STYLES[method], label=method, linewidth=1.2)
            axes.axhline(entry["dense"], color="grey", linewidth=1, label="not coded")
            axes.axhline((1 - LOSS) * entry["dense"], color="grey", linestyle=":", linewidth=1)
            axes.set(xscale="log", xlabel="bits per input pixel", ylabel="person AP50, %")
            axes.set_ylim(entry["dense"] - 25, entry["dense"] + 5)
            axes.set_title(f"{name}, {title}", fontsize=10)
            axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=7)
    save_figure(figure, path)


def _draw_sensitivity(subjects: dict[str, Any], path: pathlib.Path) -> None:
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, entry in subjects.items():
        rows = entry["methods"].get("HEVC video", {})
        points = sorted((int(key.removeprefix("QP ")), row["ap50"]) for key, row in rows.items())
        if points:
            qps, levels = zip(*points, strict=True)
            axes.plot(qps, np.array(levels) / entry["dense"], "o-", label=name, markersize=4)
    axes.set(xlabel="QP of HEVC video", ylabel="person AP50, of not coded")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _draw_wins(subjects: dict[str, Any], path: pathlib.Path) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2), KINDS.items(), strict=True):
        methods = [name for name in STYLES if not name.endswith(("R1", "R2"))]
        for number, method in enumerate(methods):
            rates = [e["summary"][kind]["rate_at_2_percent"].get(method) for e in subjects.values()]
            places = np.arange(len(rates)) + (number - len(methods) / 2) / (len(methods) + 1)
            heights = [rate or 0 for rate in rates]
            color = STYLES[method].rstrip("-:")
            axes.bar(places, heights, width=1 / (len(methods) + 1), label=method, color=color)
        names = [name.replace(", ", "\n") for name in subjects]
        axes.set_xticks(np.arange(len(subjects)) - 0.5 / (len(methods) + 1), names, fontsize=8)
        axes.set(yscale="log", ylabel="bits per input pixel", title=f"AP loss 2%, {title}")
        axes.grid(alpha=0.3, axis="y")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    save_figure(figure, path)


def _draw_histogram(subjects: dict[str, Any], path: pathlib.Path) -> None:
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, entry in subjects.items():
        row = entry["methods"].get("IFMDC", {}).get("k=17")
        if row:
            counts = np.array(row["histogram"], np.float64)
            axes.plot(range(len(counts)), counts / counts.sum(), "o-", label=name, markersize=3)
    axes.set(yscale="log", xlabel="label of a residual, k = 17", ylabel="share")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
