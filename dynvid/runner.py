"""Running a task on a video, frame by frame, and measuring what is saved; touches no files."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.measures import Measures
from dynvid.ops.difference import changed_pixels
from dynvid.tasks.task import Result, Task
from dynvid.types import Frames, Output, Params, VideoFunction

SCENE_CHANGE = 0.5
"""The share of pixels from which on a frame counts as another scene: a cut, or a light."""


class Propagation(NamedTuple):
    """What a frame was made of where features are carried from a key frame.

    Attributes:
      key: Whether it is a key frame itself.
      update_mask: `(h, w)` bool, which positions were computed anew.
      motion: `(h, w, 2)`, (dx, dy) in pixels of that grid, from this frame to the key frame.
    """

    key: bool
    update_mask: np.ndarray
    motion: np.ndarray


class FrameResult(NamedTuple):
    """One frame and all that is known of it.

    Attributes:
      frame: `(H, W, 3)` uint8, RGB.
      changed: `(H, W)` bool, the pixels of the reference that the step replaced by others; all in
        the first frame. None where the system's state has no reference frame.
      result: What the task made of the outputs, NumPy arrays without their stream axis.
      measures: The numbers.
      propagation: What was carried and what computed; None where a system has no key frames.
    """

    frame: np.ndarray
    changed: np.ndarray | None
    result: Result
    measures: Measures
    propagation: Propagation | None = None


def run_video(
    task: Task,
    video_function: VideoFunction,
    frames: Iterable[np.ndarray],
    *,
    params: Params,
    dense: Callable[[Params, Frames], Output] | None = None,
) -> Iterator[FrameResult]:
    """Runs any system for any task on every frame of one camera.

    The first frame goes through `init`. A step on that same frame, whose outcome is thrown away,
    then compiles `step`, so that no compilation is in any time. Times cover the network alone, from
    frames on the device to outputs that are ready; not reading, decoding of results or drawing. The
    dense network takes its turn on the same frame, before and after the step alternately.

    Where at least half of the pixels change at once, what tolerances are relative to is measured
    anew, on that frame (`VideoFunction.recalibrate`); it is part of that frame's time and work. A
    camera that goes on moving is measured once. A black first frame cost YOLOv5n 14% (a street) to
    25% (a highway) more arithmetic for as long as its scales were kept. A system that passed such a
    frame to the network itself (`work.details["whole"]`) starts anew by itself.

    Args:
      task: What results are made of outputs.
      video_function: The system, of frames `(1, H, W, 3)` uint8: of `task.preprocess(network)`.
      frames: `(H, W, 3)` uint8 each, all of one size.
      params: The network's weights.
      dense: `dense(params, frames) -> outputs`, the network to compare with on the same frames, and
        on `state.reference` where the state has one.

    Yields:
      One result a frame, up to the one after which the system is finished
      (`work.details["finished"]`) or there are no more.

    Raises:
      ValueError: The network cannot run on frames of this size.

    >>> import dynvid
    >>> from dynvid.models.zoo import load_model
    >>> model = load_model(None, frame_size=(32, 32))
    >>> video = dynvid.incremental(model.on_frames, threshold=15, truncation=0.5)
    >>> still = [np.zeros((32, 32, 3), np.uint8)] * 2
    >>> for found in run_video(model.task, video, still, params=model.params):
    ...     print(found.measures.mac_fraction, int(found.result.valid.sum()))
    1.0 0
    0.0 0
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    size = (first.shape[0], first.shape[1])
    x = jnp.asarray(first)[None]
    step = jax.jit(video_function.step, donate_argnums=1)
    decode = jax.jit(lambda params, outputs: task.decode(params, outputs, frame_size=size))
    compare = jax.jit(task.compare)
    dense = None if dense is None else jax.jit(dense)

    state, outputs = video_function.init(params, x)
    jax.block_until_ready(step(params, jax.tree.map(jnp.copy, state), x))
    if dense is not None:
        jax.block_until_ready(dense(params, x))
    settled = True
    everything = None if _reference(state, x) is None else np.ones(size, bool)
    unknown = float("nan")
    measures = Measures(1.0, *[unknown] * 6)._replace(**_of_system(state))
    yield FrameResult(
        first, everything, _of_one(decode(params, outputs)), measures, _propagation(state)
    )

    if _finished(state):
        return
    for index, frame in enumerate(frames):
        x = jax.block_until_ready(jnp.asarray(frame)[None])
        reference = _reference(state, x)
        before = None if reference is None else jax.block_until_ready(jnp.copy(reference))
        dense_seconds = difference = magnitude = agreement = unknown
        dense_outputs = None
        if dense is not None and index % 2 == 0:
            dense_outputs, dense_seconds = _timed(dense, params, x)
        (state, outputs), seconds = _timed(step, params, state, x)
        if dense is not None and index % 2 == 1:
            dense_outputs, dense_seconds = _timed(dense, params, x)
        share, work = float(state.work.changed[0]), float(state.work.mac_fraction)
        reference = _reference(state, x)
        results = decode(params, outputs)
        if dense is not None:
            agreement = float(compare(decode(params, dense_outputs), results).score[0])
            if reference is not None:
                expected = dense(params, reference)
                difference, magnitude = map(float, _largest_difference(outputs, expected))
        changed = None
        if before is not None and reference is not None:
            # What a system that compares with the previous frame lets pass replaces its reference
            # too, by less than the threshold.
            threshold = getattr(state, "threshold", 0)
            changed = np.asarray(_replaced(reference, before, threshold))
        whole = bool(state.work.details.get("whole", False))  # it starts anew by itself
        if settled and share >= SCENE_CHANGE and not whole:
            old = state
            state, more = _timed(video_function.recalibrate, params, state, x)
            if state is not old:
                seconds, work = seconds + more, work + 1.0
        # Ready for the next change of scene only once this one is over.
        settled = share < SCENE_CHANGE / 2 or (settled and share < SCENE_CHANGE)
        measures = Measures(
            work,
            1.0 - share,
            seconds,
            dense_seconds,
            difference,
            magnitude,
            agreement,
            **_of_system(state),
        )
        yield FrameResult(frame, changed, _of_one(results), measures, _propagation(state))
        if _finished(state):
            return


def _reference(state: Any, frames: Frames) -> jax.Array | None:
    """The frames that a state compares with, where it has any: a codec's are feature maps."""
    reference: Any = getattr(state, "reference", None)
    alike = getattr(reference, "shape", None) == frames.shape and reference.dtype == frames.dtype
    return reference if alike else None


def _of_system(state: Any) -> dict[str, float]:
    """What a system says of a frame itself, of its regions or its audit, mean of all of them."""
    details = state.work.details
    named = (
        ("segmented", "segmented"),
        ("score", "scores"),
        ("score", "score"),
        *((name, name) for name in ("audit", "audit_weight", "factor")),
    )
    return {name: float(jnp.mean(details[key])) for name, key in named if key in details}


def _propagation(state: Any) -> Propagation | None:
    details = state.work.details
    if not {"key", "update_mask", "motion"} <= details.keys():
        return None
    update_mask, motion = (np.asarray(details[name][0]) for name in ("update_mask", "motion"))
    return Propagation(bool(details["key"][0]), update_mask, motion)


def _finished(state: Any) -> bool:
    """Whether a system says that no later frame changes its answer."""
    return bool(jnp.all(state.work.details.get("finished", False)))


def _timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    outputs = jax.block_until_ready(function(*arguments))
    return outputs, time.perf_counter() - start


@jax.jit
def _replaced(reference: Frames, before: Frames, threshold: jax.Array) -> jax.Array:
    return changed_pixels(reference, before, threshold=threshold)[0]


@jax.jit
def _largest_difference(outputs: Output, expected: Output) -> tuple[jax.Array, jax.Array]:
    """The largest absolute difference of two pytrees, and the largest value of the second."""
    pairs = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(expected), strict=True))
    pairs = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]
    difference = jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in pairs]))
    return difference, jnp.max(jnp.stack([jnp.max(jnp.abs(b)) for _, b in pairs]))


def _of_one(results: Result) -> Result:
    """The results of the only stream, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x)[0], results)
