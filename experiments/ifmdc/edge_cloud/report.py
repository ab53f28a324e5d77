"""The figures of one run of the edge: a table to read, and JSON."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from experiments.bench.results import machine, write_json
from experiments.ifmdc.edge_cloud.edge import Counts, Result
from experiments.ifmdc.edge_cloud.network import SplitNetwork

SHOWN = 0.3
"""From which score on a detection is counted: the cloud answers with doubtful ones too."""

_PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


def summarize(network: SplitNetwork, counts: Counts, results: Sequence[Result]) -> dict[str, Any]:
    """The figures of a run; None where there is nothing to measure.

    Rates are over the time from the first frame's choice to the last answer. Latencies are by the
    edge's monotonic clock, from capture to the detections' arrival.
    """
    height, width = network.size
    seconds = results[-1].arrived - counts.started if results and counts.started else None

    def mean_of(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    def milliseconds(values: list[float]) -> float | None:
        return 1e3 * float(np.median(values)) if values else None

    bits = [r.bits for r in results]
    latencies = [1e3 * r.latency for r in results]
    return {
        "network": network.identity["network"],
        "frame_size": [height, width],
        "feature_shape": list(network.feature.shape[1:]),
        "frames_captured": counts.captured,
        "frames_dropped_before_encoding": counts.dropped,
        "frames_sent": counts.sent,
        "frames_answered": counts.answered,
        "connections": counts.connections,
        "most_frames_waiting": counts.most_waiting,
        "most_packets_unanswered": counts.most_in_flight,
        "seconds": seconds,
        "frames_per_second": len(results) / seconds if seconds else None,
        "bits_per_second": sum(bits) / seconds if seconds else None,
        "bytes_sent": counts.bytes_sent,
        "bits_per_pixel": mean_of([b / (height * width) for b in bits]),
        "bits_per_key_frame": mean_of([r.bits for r in results if r.is_key]),
        "bits_per_residual_frame": mean_of([r.bits for r in results if not r.is_key]),
        "latency_ms": {
            name: float(np.percentile(latencies, percent)) if latencies else None
            for name, percent in _PERCENTILES.items()
        },
        "median_edge_ms": milliseconds([sum(r.edge) for r in results]),
        "median_edge_front_ms": milliseconds([r.edge.front for r in results]),
        "median_edge_coding_ms": milliseconds([r.edge.coding for r in results]),
        "median_edge_sending_ms": milliseconds([r.edge.sending for r in results]),
        "median_cloud_decode_ms": milliseconds([r.answer.decode_seconds for r in results]),
        "median_cloud_back_ms": milliseconds([r.answer.back_seconds for r in results]),
        "detections_per_frame": mean_of([float(np.sum(r.answer.scores >= SHOWN)) for r in results]),
        "machine": {"device": jax.devices()[0].device_kind} | machine(),
    }


def table(figures: dict[str, Any]) -> Table:
    """The figures to read."""

    def show(key: str, digits: int = 1, scale: float = 1.0) -> str:
        value = figures[key]
        return "-" if value is None else f"{value * scale:,.{digits}f}"

    h, w, c = figures["feature_shape"]
    latency = figures["latency_ms"]
    shown = [f"{latency[p]:.0f}" if latency[p] is not None else "-" for p in latency]
    result = Table(title=f"{figures['network']}: {h}x{w}x{c}", show_header=False)
    for name, text in (
        ("frames captured", show("frames_captured", 0)),
        ("dropped before encoding", show("frames_dropped_before_encoding", 0)),
        ("sent", show("frames_sent", 0)),
        ("answered", show("frames_answered", 0)),
        ("connections", show("connections", 0)),
        ("frames per second", show("frames_per_second", 2)),
        ("kilobits per second", show("bits_per_second", 0, 1e-3)),
        ("bits per pixel of the input", show("bits_per_pixel", 3)),
        ("kilobits a key frame", show("bits_per_key_frame", 1, 1e-3)),
        ("kilobits a residual frame", show("bits_per_residual_frame", 1, 1e-3)),
        (f"latency, {' / '.join(latency)}, ms", " / ".join(shown)),
        ("edge: all, ms", show("median_edge_ms")),
        ("edge: front, ms", show("median_edge_front_ms")),
        ("edge: quantising and entropy coding, ms", show("median_edge_coding_ms", 2)),
        ("edge: sending, ms", show("median_edge_sending_ms", 2)),
        ("cloud: decoding, ms", show("median_cloud_decode_ms")),
        ("cloud: back, ms", show("median_cloud_back_ms")),
        (f"detections a frame, from score {SHOWN:g} on", show("detections_per_frame", 2)),
    ):
        result.add_row(name, text)
    if figures.get("ap50_of"):
        result.add_row("AP50, %", show("ap50"))
        result.add_row("AP50 of the detector in one piece, %", show("ap50_uncut"))
        result.add_row("AP50 is of", figures["ap50_of"])
    return result


def write(path: pathlib.Path, figures: dict[str, Any], results: Sequence[Result]) -> None:
    """Writes the figures and every frame's results, whole or not at all."""
    frames = [
        {
            "frame": r.frame,
            "connection": r.connection,
            "number": r.number,
            "key": r.is_key,
            "bits": r.bits,
            "latency_ms": 1e3 * r.latency,
            "front_ms": 1e3 * r.edge.front,
            "coding_ms": 1e3 * r.edge.coding,
            "sending_ms": 1e3 * r.edge.sending,
            "boxes": np.round(r.answer.boxes.astype(float), 2).tolist(),
            "scores": np.round(r.answer.scores.astype(float), 4).tolist(),
            "classes": r.answer.classes.tolist(),
        }
        for r in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures | {"per_frame": frames})
