"""Beyond the paper: the edge's front is incremental, and the codec takes its change mask."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dynvid
from dynvid.systems.ifmdc import Settings, ifmdc
from experiments.ifmdc.rate_accuracy.curves import row_of
from experiments.ifmdc.rate_accuracy.methods import GOP, Range, code_ifmdc
from experiments.ifmdc.rate_accuracy.results import Results
from experiments.ifmdc.rate_accuracy.subjects import Subject
from experiments.incremental_speed.run import console

THETA, TRUNCATION = 15, 0.5
"""Of the incremental front: of 255, and relative to a layer's root mean square."""

SETTINGS = {
    f"k={k}, dead zone {zone:g}": {"levels": k, "dead_zone": zone}
    for k in (9, 17)
    for zone in (0.5, 1.5)
}


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
    for name, options in SETTINGS.items():
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
    found["encoder"] = _times(features, changes, Settings(low=clip.low, high=clip.high, levels=17))
    console.print_json(data={key: value for key, value in found.items() if key != "rows"})
    results.save(subject.name, entry)


def _incremental(subject: Subject) -> tuple[np.ndarray, np.ndarray, float]:
    """Features of the incremental front, where they changed, and the work of a step."""
    params = subject.model.params
    video = dynvid.incremental(subject.model.front, threshold=THETA, truncation=TRUNCATION)
    state, output = jax.jit(video.init)(params, subject.clip.frames[0])
    step = jax.jit(video.step, donate_argnums=1)
    features, work = [np.asarray(output)], []
    shown = track(subject.clip.frames[1:], "incremental front", console=console, transient=True)
    for frame in shown:
        state, output = step(params, state, frame)
        features.append(np.asarray(output))
        work.append(float(state.work.mac_fraction))
    joined = np.concatenate(features)
    # What was not refreshed is the same to the bit.
    changes = np.any(joined[1:] != joined[:-1], axis=-1)
    first = np.ones((1, *changes.shape[1:]), bool)
    return joined, np.concatenate([first, changes]), float(np.mean(work))


def _times(features: np.ndarray, changes: np.ndarray, settings: Settings) -> dict[str, float]:
    """Milliseconds of the jitted quantiser by P frame, with the mask and without, in turns."""
    codec = ifmdc(dataclasses.replace(settings, group_of_pictures=len(features)))
    encode = jax.jit(codec.encode)
    states = [codec.init((1, *features.shape[1:]))] * 2
    times: list[list[float]] = [[], []]
    for feature, change in zip(features, changes, strict=True):
        x, mask = jnp.asarray(feature[None]), jnp.asarray(change[None])
        for i, arguments in enumerate(((x,), (x, mask))):
            start = time.perf_counter()
            states[i], _ = jax.block_until_ready(encode(states[i], *arguments))
            times[i].append(1e3 * (time.perf_counter() - start))
    without, given = (float(np.median(found[5:])) for found in times)
    return {"without_mask_ms": without, "with_mask_ms": given}
