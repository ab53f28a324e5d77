"""Running systems over clips: what they find, what they compute, how long they take."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from dynvid.metrics.imagenet_vid import MOTION_RANGES, vid_average_precision
from dynvid.models.flow_detection import CLASS_NAMES
from dynvid.ops.boxes import Detections
from dynvid.types import Output, Params, VideoFunction
from experiments.bench import console
from experiments.bench.cases import clock
from experiments.flow_detection.subjects import Clips

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Contestant:
    """A system with its settings.

    Attributes:
      video: The system.
      params: Its parameters.
      settings: Of its state, from the second frame on.
      late: How many frames after its own the detections of a frame come out.
      period: L, of a system with a key rule by consistency that is to have its key frames at fixed
        distances instead: all rows of Table 1 with recursive aggregation are one executable.
      recursive: Whether key frames hand on what they have aggregated, and not only their own.
    """

    video: VideoFunction
    params: Params
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    late: int = 0
    period: int | None = None
    recursive: bool = True

    def start(self, frame: jax.Array) -> tuple[Any, Output]:
        """The state after the first frame, and what was found in it."""
        state, found = self.video.init(self.params, frame)
        return (state.with_settings(**self.settings) if self.settings else state), found

    def before(self, state: Any, frame: int) -> Any:
        """The state that frame number `frame` is to meet."""
        if self.period is not None:
            state = state.with_settings(threshold=1.0 if frame % self.period else -1.0)
        if not self.recursive:
            state = dataclasses.replace(state, memory=jnp.copy(state.features))
        return state


@functools.lru_cache(maxsize=64)
def stepper(video: VideoFunction) -> Callable[..., tuple[Any, Output]]:
    """`video.step` compiled once, whatever the settings; the old state is given away."""
    return jax.jit(video.step, donate_argnums=1)


@dataclasses.dataclass
class Record:
    """What one contestant did: of every clip the outputs and figures of all frames but the first.

    Attributes:
      found: A list for every clip.
      work: Likewise, of figures by name.
      milliseconds: Likewise, of every frame.
    """

    found: list[list[Any]] = dataclasses.field(default_factory=list)
    work: list[list[dict[str, float]]] = dataclasses.field(default_factory=list)
    milliseconds: list[list[float]] = dataclasses.field(default_factory=list)

    def mean(self, name: str) -> float:
        """A figure of the work, over all frames."""
        return statistics.fmean(step[name] for clip in self.work for step in clip)


def compete(
    contestants: Mapping[str, Contestant],
    clips: np.ndarray,
    *,
    decode: Callable[[Output], Any] = lambda found: found,
) -> dict[str, Record]:
    """All contestants over all clips, in one process, frame by frame in turns.

    Every one of them sees a frame before any sees the next, and another begins each time. The first
    three frames of the first clip are run before anything counts, so that nothing is compiled
    within a time.

    Args:
      contestants: By name.
      clips: `(T, N, H, W, 3)` uint8.
      decode: What is kept of their outputs; not in the times.
    """
    records = {name: Record() for name in contestants}
    _over_one(contestants, clips[:3, 0], decode)
    shown = track(range(clips.shape[1]), "running", console=console, transient=True)
    for i in shown:
        for name, (found, work, spent) in _over_one(contestants, clips[:, i], decode).items():
            records[name].found.append(found)
            records[name].work.append(work)
            records[name].milliseconds.append(spent)
    return records


def _over_one(
    contestants: Mapping[str, Contestant], clip: np.ndarray, decode: Callable[[Output], Any]
) -> dict[str, tuple[list[Any], list[dict[str, float]], list[float]]]:
    names = list(contestants)
    first = jnp.asarray(clip[:1])
    states = {name: c.start(first)[0] for name, c in contestants.items()}
    found: dict[str, list[Any]] = {name: [] for name in names}
    work: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    latest = max(c.late for c in contestants.values())
    for turn in range(len(clip) - 1 + latest):
        frame = jax.block_until_ready(jnp.asarray(clip[min(turn + 1, len(clip) - 1)][None]))
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            one = contestants[name]
            if turn >= len(clip) - 1 + one.late:
                continue
            state = jax.block_until_ready(one.before(states[name], turn + 1))
            call = functools.partial(stepper(one.video), one.params, state, frame)
            spent, (states[name], output) = clock(call)
            if turn < len(clip) - 1:
                seconds[name].append(spent)
                work[name].append(figures(states[name]))
            if turn >= one.late:
                found[name].append(jax.tree.map(np.asarray, decode(output)))
    return {
        name: (found[name], work[name], [1e3 * spent for spent in seconds[name]]) for name in names
    }


def figures(state: Any) -> dict[str, float]:
    """What a step of one stream did."""
    work = state.work
    details = {
        name: float(value[0])
        for name in ("key", "feature_macs", "flow_macs", "aggregation_macs")
        if (value := work.details.get(name)) is not None
    }
    return {"macs": float(work.mac_fraction), "changed": float(work.changed[0])} | details


def speeds(
    records: Mapping[str, Record], base: str, *, span: int | None = None
) -> dict[str, Figures]:
    """Milliseconds a frame, and how many times as fast as `base`: medians and quartiles.

    Of clips, or of every `span` frames of them: within each the mean, since a key frame and another
    differ too much for a median over frames to say anything.
    """

    def means(record: Record) -> np.ndarray:
        parts = [
            clip[i : i + (span or len(clip))]
            for clip in record.milliseconds
            for i in range(0, len(clip), span or len(clip))
        ]
        return np.array([statistics.fmean(part) for part in parts])

    reference = means(records[base])
    result = {}
    for name, record in records.items():
        spent = means(record)
        ratio = reference / spent
        result[name] = {
            "milliseconds": round(float(np.median(spent)), 3),
            "speedup": round(float(np.median(ratio)), 3),
            "speedup_quartiles": [round(float(q), 3) for q in np.percentile(ratio, [25, 75])],
        }
    return result


def judged(records: Mapping[str, Record], clips: Clips, *, base: str) -> dict[str, Figures]:
    """Accuracy, work and speed of every contestant over clips of known objects."""
    times = speeds(records, base)
    shown = track(records.items(), "judging", console=console, transient=True)
    return {
        name: mean_average_precision(joined(record.found), clips)
        | {
            "macs": round(record.mean("macs"), 4),
            "updated": round(record.mean("changed"), 4),
            **({"keys": round(record.mean("key"), 4)} if "key" in record.work[0][0] else {}),
        }
        | times[name]
        for name, record in shown
    }


def joined(found: list[list[Detections]]) -> Detections:
    """Detections of clips of equal length, `(T - 1, N, K)`."""
    return jax.tree.map(
        lambda *x: np.concatenate(x, 1),
        *[jax.tree.map(lambda *x: np.stack(x), *clip) for clip in found],
    )


def mean_average_precision(found: Detections, clips: Clips) -> dict[str, float]:
    """ImageNet VID's mAP in percent, of all objects and by how they move; frame 0 is left out."""

    def flat(x: np.ndarray) -> jax.Array:
        return jnp.asarray(x.reshape(-1, *x.shape[2:]))

    detections = jax.tree.map(flat, found)
    boxes, classes, present, motion = (
        flat(x[1:]) for x in (clips.boxes, clips.classes, clips.present, clips.motion)
    )
    values = {}
    for name, ends in MOTION_RANGES.items():
        value = vid_average_precision(
            detections, boxes, classes, present, class_count=len(CLASS_NAMES), motion=motion,
            motion_range=ends,
        )  # fmt: skip
        values["map" if name == "all" else name] = round(100 * float(jnp.nanmean(value)), 2)
    return values


@jax.jit
def frame_precision(
    found: Detections, boxes: jax.Array, classes: jax.Array, present: jax.Array
) -> jax.Array:
    """The mAP of a frame by itself, in [0, 1]: what the oracle compares. 0 without objects.

    Args:
      found: `(1, K)`.
      boxes: `(1, M, 4)`.
      classes: `(1, M)`.
      present: `(1, M)`.
    """
    value = vid_average_precision(found, boxes, classes, present, class_count=len(CLASS_NAMES))
    return jnp.nan_to_num(jnp.nanmean(value))
