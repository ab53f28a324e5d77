"""A picture of a run: work, time and similarity of every frame."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynvid.files import part_file

_INCREMENTAL, _DENSE, _SCENE, _TARGET = "#0072b2", "#999999", "#009e73", "#d55e00"


def plot_report(
    path: str | pathlib.Path,
    *,
    mac_fraction: Sequence[float],
    seconds: Sequence[float],
    similarity: Sequence[float],
    dense_seconds: Sequence[float] | None = None,
    agreement: Sequence[float] | None = None,
    factor: Sequence[float] | None = None,
    target: float | None = None,
    frames_per_point: int = 1,
    title: str = "",
    name: str = "incremental",
    kept: str = "pixels unchanged",
) -> None:
    """Plots work, time and scene similarity over the frames of a run, into a PNG file.

    All series start with the first frame, which is computed densely; a value that does not exist
    (the first frame's similarity, a frame that was not timed) is given as NaN. The file gets its
    name when it is complete.

    Args:
      path: The file to write.
      mac_fraction: Multiply-accumulates executed, as a fraction of the dense network's.
      seconds: Time of each frame, seconds.
      similarity: Share of each frame's pixels that did not change, or of what else was kept, in
        [0, 1].
      dense_seconds: Time of the dense network on the same frames, where it was measured.
      agreement: How far results agree with dense ones, where that was measured: NaN elsewhere.
      factor: What the settings are multiplied by, where audits move them.
      target: The agreement that was promised.
      frames_per_point: How many frames each entry after the first is the mean of.
      title: A heading.
      name: Of what was run.
      kept: What `similarity` is the share of.

    Raises:
      ValueError: The series differ in length, or are empty.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_report(
    ...         f"{folder}/report.png",
    ...         mac_fraction=[1.0, 0.2],
    ...         seconds=[0.05, 0.01],
    ...         similarity=[float("nan"), 0.99],
    ...     )
    ...     [p.name for p in pathlib.Path(folder).iterdir()]
    ['report.png']
    """
    count = len(mac_fraction)
    named = {"seconds": seconds, "similarity": similarity}
    if dense_seconds is not None:
        named["dense_seconds"] = dense_seconds
    if agreement is not None:
        named["agreement"] = agreement
    if factor is not None:
        named["factor"] = factor
    for series, values in named.items():
        if len(values) != count:
            raise ValueError(
                f"{series} must have {count} entries as mac_fraction; got {len(values)}"
            )
    if count == 0:
        raise ValueError("mac_fraction must have at least one entry; got none")

    panels = 3 if agreement is None else 4
    figure = Figure(figsize=(9, 2.5 * panels), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    work_axes, time_axes, *middle, scene_axes = figure.subplots(panels, 1, sharex=True)
    # The first frame is 0; the middle of the n frames from 1 on is (n + 1) / 2, and so on.
    frames = np.maximum(0, frames_per_point * (np.arange(count) - 0.5) + 0.5)
    marker = "." if count < 30 else ""  # a lone point draws no line
    if title:
        figure.suptitle(title, fontsize=13)

    work = np.asarray(mac_fraction, float)
    work_axes.fill_between(frames, work, step="mid", color=_INCREMENTAL, alpha=0.25, linewidth=0)
    work_axes.step(frames, work, where="mid", color=_INCREMENTAL, linewidth=1.3, marker=marker)
    mean = np.nanmean(work)
    work_axes.axhline(
        mean, color=_INCREMENTAL, linestyle="--", linewidth=1, label=f"mean {mean:.1%}"
    )
    work_axes.set(
        title="Work", ylabel="MACs, % of dense", ylim=(0, max(1.0, np.nanmax(work)) * 1.05)
    )
    work_axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))

    series = [(name, seconds, _INCREMENTAL)]
    if dense_seconds is not None:
        series.insert(0, ("dense", dense_seconds, _DENSE))
    highest = 0.0
    for label, values, color in series:
        milliseconds = 1e3 * np.asarray(values, float)
        median = np.nanmedian(milliseconds)
        # A few frames that the machine slept through must not flatten all the others.
        highest = max(highest, 1.1 * np.nanpercentile(milliseconds, 98), 1.5 * median)
        time_axes.plot(
            frames,
            milliseconds,
            color=color,
            linewidth=1.3,
            label=f"{label}, median {median:.3g} ms",
        )
    time_axes.set(title="Time", ylabel="ms per frame", ylim=(0, highest or 1))

    if agreement is not None:
        _plot_agreement(middle[0], frames, agreement, factor, target)

    unchanged = np.asarray(similarity, float)
    mean = np.nanmean(unchanged) if np.isfinite(unchanged).any() else np.nan
    scene_axes.plot(
        frames,
        unchanged,
        color=_SCENE,
        linewidth=1.3,
        marker=marker,
        label=f"mean {mean:.2%}",
        clip_on=False,
    )
    scene_axes.set(title=f"{kept[0].upper()}{kept[1:]}", ylabel=f"{kept}, %", xlabel="frame")
    lowest = np.nanmin(unchanged) if np.isfinite(unchanged).any() else 0.0
    scene_axes.set_ylim(max(0.0, 1.0 - 1.25 * max(1.0 - lowest, 0.004)), 1.0)
    scene_axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))

    for axes in (work_axes, time_axes, *middle, scene_axes):
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(axes.get_title(), loc="left", fontsize=11, fontweight="bold")
        axes.set_title("", loc="center")
        # On the title's line, where it hides no part of a curve.
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderpad=0)
    scene_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scene_axes.set_xlim(-0.5, max(frames_per_point * (count - 1) + 0.5, 0.5))

    with part_file(path) as part:
        figure.savefig(part, format="png")


def _plot_agreement(
    axes: Axes,
    frames: np.ndarray,
    agreement: Sequence[float],
    factor: Sequence[float] | None,
    target: float | None,
) -> None:
    """What was promised, what was kept, and how the settings followed."""
    values = np.asarray(agreement, float)
    known = np.isfinite(values)
    mean = f", mean {values[known].mean():.3f}" if known.any() else ""
    axes.plot(
        frames[known],
        values[known],
        color=_INCREMENTAL,
        linewidth=1.3,
        marker="o" if known.sum() < 100 else "",
        markersize=3.5,
        label=f"measured{mean}",
        clip_on=False,
    )
    lowest = [0.9, *values[known]]
    if target is not None:
        axes.axhline(
            target, color=_TARGET, linestyle="--", linewidth=1.6, label=f"target {target:g}"
        )
        lowest.append(target)
    axes.set(title="Agreement", ylabel="with dense", ylim=(max(0.0, min(lowest) - 0.05), 1.0))
    if factor is not None and np.isfinite(np.asarray(factor, float)).any():
        other = axes.twinx()
        other.step(frames, np.asarray(factor, float), where="post", color=_DENSE, linewidth=1)
        other.set_ylabel("factor of the settings", color=_DENSE)
        other.set_ylim(0, None)
        other.spines["top"].set_visible(False)
