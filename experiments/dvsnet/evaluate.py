"""Running DVSNet over a subject's clips: what it keeps, what it costs, how long it takes."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from dynvid.metrics.segmentation import confusion_matrix, mean_intersection_over_union
from dynvid.ops.labels import best_classes, label_agreement
from dynvid.systems.dvsnet import DVSNetParams, dvsnet
from dynvid.types import VideoFunction
from experiments.bench import console
from experiments.bench.cases import clock
from experiments.dvsnet.subjects import Subject


def video_of(
    subject: Subject, *, policy: str = "decision_network", **options: Any
) -> VideoFunction:
    """DVSNet of a subject's networks."""
    options = {"grid": subject.grid, "overlap": subject.overlap, "multiple": 8} | options
    return dvsnet(subject.segment, subject.flow, decide=subject.decide, policy=policy, **options)  # type: ignore[arg-type]


class Judge:
    """What a subject's clips are judged against: the truth, and segmentation frame by frame."""

    def __init__(self, subject: Subject):
        self.subject = subject
        height, width = subject.clips[0].frames.shape[2:4]
        self.dense = jax.jit(lambda p, x: best_classes(subject.segment(p, x), (height, width))[0])
        self._count = jax.jit(functools.partial(confusion_matrix, classes=subject.classes))
        frames = [frame for clip in subject.clips for frame in clip.frames]
        shown = track(frames, "segmenting every frame", console=console, transient=True)
        self.segmented = [self.dense(subject.params.segmentation, frame) for frame in shown]
        later = self._later()
        self.miou = self._miou((labels, self.segmented[i]) for i, labels in later)
        last = [(i, labels) for i, labels in later if i in self._last()]
        self.last_miou = self._miou((labels, self.segmented[i]) for i, labels in last)

    def __call__(self, found: Sequence[jax.Array]) -> dict[str, float]:
        """Judges labels of every frame of every clip; the first of each clip does not count."""
        later, last = self._later(), self._last()
        same = [label_agreement(self.segmented[i], found[i]) for i, _ in later]
        return {
            "miou": self._miou((labels, found[i]) for i, labels in later),
            "miou_lost": self.miou - self._miou((labels, found[i]) for i, labels in later),
            "last_miou": self._miou((labels, found[i]) for i, labels in later if i in last),
            "agreement_percent": float(np.mean(same)),
        }

    def _later(self) -> list[tuple[int, jax.Array]]:
        """The place and the truth of all frames but the first of each clip."""
        clips = [[(t, x) for t, x in enumerate(clip.labels)] for clip in self.subject.clips]
        starts = np.cumsum([0, *(len(clip) for clip in clips)])
        return [
            (int(start) + t, labels)
            for start, clip in zip(starts[:-1], clips, strict=True)
            for t, labels in clip
            if t
        ]

    def _last(self) -> set[int]:
        """The place of the last frame of each clip: the paper judges the 20th of 20."""
        lengths = [len(clip.labels) for clip in self.subject.clips]
        return {int(end) - 1 for end in np.cumsum(lengths)}

    def _miou(self, pairs: Any) -> float:
        table = sum(np.asarray(self._count(truth, found)) for truth, found in pairs)
        return 100 * float(mean_intersection_over_union(jnp.asarray(table)))


def run(
    subject: Subject, judge: Judge, video: VideoFunction, *, threshold: float | None = None
) -> dict[str, Any]:
    """All clips through DVSNet: accuracy, shares and arithmetic; nothing is timed."""
    step = jax.jit(video.step, donate_argnums=1)
    found, sent, macs = [], [], []
    for clip in subject.clips:
        state, labels = video.init(subject.params, clip.frames[0])
        if threshold is not None:
            state = state.with_settings(threshold=threshold)
        found.append(labels.labels)
        for frame in clip.frames[1:]:
            state, labels = step(subject.params, state, frame)
            found.append(labels.labels)
            sent.append(np.asarray(state.work.details["segmented"]))
            macs.append(float(state.work.mac_fraction))
    share = float(np.mean(sent))
    return {
        "threshold": threshold,
        "segmented_share": share,
        "mac_fraction": float(np.mean(macs)),
        **judge(found),
    }


def time_against(
    subject: Subject,
    judge: Judge,
    videos: dict[str, tuple[VideoFunction, float]],
    *,
    frames: int = 60,
) -> dict[str, Any]:
    """Milliseconds a frame of each DVSNet and of per-frame segmentation, in turns.

    All see the same frames of the same clips one after the other in one process. Times are from the
    frame to its label map; that of a run is the mean over its frames, since a step that segments
    and one that does not differ by much, with the quartiles of the single steps beside it.
    """
    clips = list(subject.clips)
    steps = {name: jax.jit(video.step, donate_argnums=1) for name, (video, _) in videos.items()}
    times: dict[str, list[float]] = {"per frame": []} | {name: [] for name in videos}
    left = frames
    for warm, clip in itertools.chain([(True, clips[0])], ((False, c) for c in clips)):
        if left <= 0:
            break
        states = {}
        for name, (video, threshold) in videos.items():
            state, _ = video.init(subject.params, clip.frames[0])
            states[name] = state.with_settings(threshold=threshold)
        for frame in jax.block_until_ready(list(clip.frames[1 : 4 if warm else 1 + left])):
            for name, step in steps.items():
                call = functools.partial(step, subject.params, states[name], frame)
                seconds, (states[name], _) = clock(call)
                times[name].append(seconds)
            call = functools.partial(judge.dense, subject.params.segmentation, frame)
            times["per frame"].append(clock(call)[0])
        if warm:
            times = {name: [] for name in times}
        else:
            left -= len(clip.frames) - 1
    # A mean: a step that segments and one that does not take different times.
    base = float(np.mean(times["per frame"]))
    return {
        name: {
            "milliseconds": 1e3 * float(np.mean(some)),
            "quartiles": [1e3 * float(q) for q in np.percentile(some, [25, 50, 75])],
            "speedup": base / float(np.mean(some)),
        }
        for name, some in times.items()
    }


def parts_times(subject: Subject, video: VideoFunction) -> dict[str, float]:
    """Milliseconds of each network by itself on one frame, median of 15, in turns."""
    params = DVSNetParams(*subject.params)
    state, _ = video.init(params, subject.clips[0].frames[0])
    keys = state.key_images[0]
    motion = jax.jit(subject.flow)(params.flow, keys, keys)
    runs = {
        "segmentation, frame": (subject.segment, params.segmentation, subject.clips[0].frames[0]),
        "segmentation, a region": (subject.segment, params.segmentation, keys[:1]),
        "flow, all regions": (subject.flow, params.flow, keys, keys),
        "decision, all regions": (subject.decide, params.decision, motion.features),
    }
    jitted = {name: jax.jit(fn) for name, (fn, *_) in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(18):
        for name, (_, *arguments) in runs.items():
            seconds, _ = clock(functools.partial(jitted[name], *arguments))
            if turn >= 3:
                times[name].append(seconds)
    return {name: 1e3 * float(np.median(some)) for name, some in times.items()}
