"""Beyond the paper: the edge's front is incremental, and the codec takes its change mask."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.progress import track

import dynvid
from dynvid.coding.context import ContextCoder
from dynvid.systems.ifmdc import Settings, ifmdc
from experiments.ifmdc.rate_accuracy.curves import BLOCKS, PAPER, row_of
from experiments.ifmdc.rate_accuracy.methods import GOP, Range, code_ifmdc
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import Subject
from experiments.incremental_speed.run import console

THETA, TRUNCATION = 15, 0.5
"""Of the incremental front: of 255, and relative to a layer's root mean square."""

CASES = {f"IFMDC, {k}": PAPER[k] for k in ("k=5", "k=9", "k=17")} | {
    f"IFMDC + DCT, {k}": BLOCKS[k] for k in ("k=17", "k=21", "k=25", "k=29", "k=37")
}
TIMED = ("IFMDC, k=9", "IFMDC + DCT, k=29")


def measure(subject: Subject, results: Results) -> None:
    """The rate at equal AP with the dense front and with the incremental one, and the times."""
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    clip = Range(*entry["clip"])
    found = entry.setdefault("incremental", {"theta": THETA, "truncation": TRUNCATION})
    features, changes, fraction = _incremental(subject)
    found |= {
        "mac_fraction": fraction,
        "changed": float(changes[1:].mean()),
        "dense": subject.dense,
        "uncoded": subject.average_precision(features, "incremental, uncoded"),
    }
    rows = found.setdefault("rows", {})
    for name, options in CASES.items():
        settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
        for front in ("dense", "incremental"):
            if name in rows.setdefault(front, {}):
                continue
            given: dict[str, Any] = {"stages": ("R2", "R3")}
            if front == "incremental":
                given |= {"changes": changes, "features": features}
            coded = code_ifmdc(subject, settings, **given)
            rows[front][name] = row_of(subject, coded, f"{front} front, {name}")
            results.save(subject.name, entry)
    console.print_json(data={key: value for key, value in found.items() if key != "rows"})
    results.save(subject.name, entry)


def measure_times(subject: Subject, results: Results) -> None:
    """The edge's work on a P frame, part by part. Run it alone on the machine."""
    entry = results.subject(subject.name, frames=len(subject.clip.frames))
    clip = Range(*entry["clip"])
    found = {}
    for name in TIMED:
        options = CASES[name]
        settings = Settings(low=clip.low, high=clip.high, group_of_pictures=GOP, **options)
        found[name] = _times(subject, settings)
    entry.setdefault("incremental", {})["milliseconds"] = found
    console.print_json(data=found)
    results.save(subject.name, entry)


def _video(subject: Subject) -> tuple[Any, Any]:
    video = dynvid.incremental(subject.model.front, threshold=THETA, truncation=TRUNCATION)
    return jax.jit(video.init), jax.jit(video.step, donate_argnums=1)


def _incremental(subject: Subject) -> tuple[np.ndarray, np.ndarray, float]:
    """Features of the incremental front, its masks of where they changed, and its work."""
    params = subject.model.params
    init, step = _video(subject)
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
    encode = jax.jit(codec.encode)
    init, step = _video(subject)
    frames = subject.clip.frames[: 4 * GOP]
    parts: dict[str, dict[str, list[float]]] = {
        way: {"front": [], "quantise": [], "R3": []} for way in ("dense", "incremental")
    }
    start, _ = init(params, frames[0])
    ends = {way: codec.init((1, *subject.features.shape[1:])) for way in parts}
    coders = {
        way: ContextCoder(
            end.level.shape, levels=settings.levels, key_levels=settings.labels_of_key,
            block=settings.block,
        )
        for way, end in ends.items()
    }  # fmt: skip
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
            ends[way], symbols = _timed(times["quantise"], encode, ends[way], *given)
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
