"""Beyond the paper: the edge's front is incremental, and the codec takes its change mask."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import track

import dynvid
from dynvid.coding.container import LabelCoder
from dynvid.systems.ifmdc import Settings, header_of, ifmdc
from experiments.bench import console
from experiments.ifmdc.rate_accuracy.curves import BLOCKS, PAPER, clip_of, row_of, short
from experiments.ifmdc.rate_accuracy.methods import GOP, code_ifmdc
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import Subject

FRONTS = {"theta 15, tau 0.5": (15, 0.5), "theta 10, tau 0.2": (10, 0.2)}
"""Thresholds, of 255, and truncations, relative to a layer's root mean square."""

CASES = {
    "IFMDC": {k: PAPER[k] for k in ("k=5", "k=9", "k=17")},
    "IFMDC + DCT": {k: BLOCKS[k] for k in ("k=17", "k=21", "k=25", "k=29", "k=37")},
}
TIMED = (("IFMDC", "k=9"), ("IFMDC + DCT", "k=29"))


def measure(subject: Subject, results: Results) -> None:
    """AP against rate with incremental fronts, whose masks the codec takes; `curves` has dense."""
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    clip = clip_of(subject, entry)
    for front, (theta, truncation) in FRONTS.items():
        found = entry.setdefault("incremental", {}).setdefault(front, {"methods": {}})
        if all(
            name in found["methods"].get(method, {}) for method in CASES for name in CASES[method]
        ):
            continue
        features, changes, fraction = _incremental(subject, theta, truncation)
        found |= {
            "mac_fraction": fraction,
            "changed": float(changes[1:].mean()),
            "uncoded": subject.average_precision(features, f"{front}, uncoded"),
        }
        for method, cases in CASES.items():
            rows = found["methods"].setdefault(method, {})
            for name, options in cases.items():
                if name in rows:
                    continue
                settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
                coded = code_ifmdc(
                    subject, settings, stages=("R2", "R3"), changes=changes, features=features
                )
                rows[name] = row_of(subject, coded, f"{front}, {method}, {name}")
                console.print(f"{subject.name}: {front}: {method}, {name}: {short(rows[name])}")
                results.save(subject.name, entry)
        results.save(subject.name, entry)


def measure_times(subject: Subject, results: Results) -> None:
    """The edge's work on a P frame, part by part. Run it alone on the machine."""
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    clip = clip_of(subject, entry)
    found = {}
    for method, name in TIMED:
        options = CASES[method][name]
        settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
        found[f"{method}, {name}"] = _times(subject, settings)
    entry["milliseconds"] = found
    console.print_json(data=found)
    results.save(subject.name, entry)


def _video(subject: Subject, theta: float, truncation: float) -> tuple[Any, Any]:
    video = dynvid.incremental(subject.model.front, threshold=theta, truncation=truncation)
    return jax.jit(video.init), jax.jit(video.step, donate_argnums=1)


def _incremental(
    subject: Subject, theta: float, truncation: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Features of the incremental front, its masks of where they changed, and its work."""
    params = subject.model.params
    init, step = _video(subject, theta, truncation)
    state, output = init(params, subject.clip.frames[0])
    features, masks, work = [np.asarray(output)], [np.asarray(state.changes[0])], []
    shown = track(subject.clip.frames[1:], "incremental front", console=console, transient=True)
    for frame in shown:
        state, output = step(params, state, frame)
        features.append(np.asarray(output))
        masks.append(np.asarray(state.changes[0]))
        work.append(float(state.work.mac_fraction))
    return np.concatenate(features), np.concatenate(masks), float(np.mean(work))


def _times(subject: Subject, settings: Settings) -> dict[str, dict[str, float]]:
    """Medians of the front, the quantiser and R3, with the dense front and the incremental."""
    params = subject.model.params
    front, codec = jax.jit(subject.model.front), ifmdc(settings)
    init, step = _video(subject, *FRONTS["theta 10, tau 0.2"])
    frames = subject.clip.frames[: 4 * GOP]
    parts: dict[str, dict[str, list[float]]] = {
        way: {"front": [], "quantise": [], "R3": []} for way in ("dense", "incremental")
    }
    start, _ = init(params, frames[0])
    header = header_of(settings, shape=(1, *subject.features.shape[1:]))
    ends = {way: codec.blank(header.shape) for way in parts}
    coders = {way: LabelCoder(header) for way in parts}
    state = start
    for i, frame in enumerate(frames):
        for way, times in parts.items():
            if way == "dense":
                feature = _timed(times["front"], front, params, frame)
                given = (feature,)
            else:
                if i:
                    state, feature = _timed(times["front"], step, params, state, frame)
                else:
                    feature = front(params, frame)
                given = (feature, state.changes[0])
            ends[way], symbols = _timed(
                times["quantise"], codec.encoder.step, (), ends[way], *given
            )
            labels, is_key = np.asarray(symbols.labels), bool(symbols.is_key)
            begin = time.perf_counter()
            coders[way].encode(labels, is_key=is_key)
            times["R3"].append(1e3 * (time.perf_counter() - begin))
            if is_key:  # of P frames only
                for found in times.values():
                    del found[-1:]
    # The first GOP warms up.
    return {
        way: {name: float(np.median(found[GOP:])) for name, found in times.items()}
        for way, times in parts.items()
    }


def _timed(times: list[float], call: Callable[..., Any], *arguments: Any) -> Any:
    begin = time.perf_counter()
    found = jax.block_until_ready(call(*arguments))
    times.append(1e3 * (time.perf_counter() - begin))
    return found
