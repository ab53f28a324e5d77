"""What bounds warping: the truth about motion in place of a network's, gap by gap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from dynvid.data.driving import driving_scene, render_drive
from dynvid.metrics.segmentation import confusion_matrix, mean_intersection_over_union
from dynvid.ops.labels import best_classes
from dynvid.ops.warp import resize_flow, warp, warp_by
from experiments.bench import console
from experiments.dvsnet.subjects import Subject

GAPS = (1, 2, 4, 8)
FAR = 100.0  # pixels; where a motion leads that comes from behind the camera


def _points_lost(tables: dict[str, np.ndarray]) -> dict[str, float]:
    """mIoU of what is segmented, and what each other way loses against it, points."""
    miou = {name: 100 * float(mean_intersection_over_union(jnp.asarray(t))) for name, t in
            tables.items()}  # fmt: skip
    segmented = miou.pop("segmented")
    return {"segmented": segmented} | {name: segmented - found for name, found in miou.items()}


def _summed(parts: Any) -> dict[str, float]:
    """The figures of confusion matrices that are drawn one after the other."""
    total: Any = None
    for part in parts:
        part = jax.tree.map(np.asarray, part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return _points_lost(total)


def on_drives(subject: Subject, *, speed: float, pairs: int = 40) -> dict[int, dict[str, float]]:
    """Whole frames, `GAPS` apart, warped by the exact motion and by that of the flow network."""
    size = (subject.clips[0].frames.shape[2], subject.clips[0].frames.shape[3])
    params = subject.params

    @jax.jit
    def one(key: jax.Array, gap: jax.Array) -> dict[str, jax.Array]:
        scene_key, time_key = jax.random.split(key)
        drive = driving_scene(scene_key, size=size, noise=3.0, speed=speed)
        t = jax.random.randint(time_key, (), 0, 1 << 20)
        before, now = render_drive(drive, t), render_drive(drive, t + gap, key_t=t)
        current, kept = (subject.segment(params.segmentation, x.frame[None]) for x in (now, before))
        exact = jnp.clip(now.motion[None], -FAR, FAR)
        motion = subject.flow(params.flow, now.frame[None], before.frame[None])
        moved = {
            "segmented": current,
            "exact motion": warp(kept, resize_flow(exact, kept.shape[1:3]), border="edge"),
            "flow network": warp_by(kept, motion, border="edge"),
            "copied": kept,
        }
        labels = {name: best_classes(logits, size)[0] for name, logits in moved.items()}
        # The very pixels, with no grid between: what only occlusion costs.
        fine = jax.image.resize(kept, (1, *size, kept.shape[3]), "bilinear")
        labels["exact motion of every pixel"] = jnp.argmax(warp(fine, exact, border="edge"), -1)
        return {
            name: confusion_matrix(now.labels[None], found, classes=subject.classes)
            for name, found in labels.items()
        }

    root = jax.random.key(20261122)
    keys = [jax.random.fold_in(root, i) for i in range(pairs)]
    return {
        gap: _summed(
            one(key, gap)
            for key in track(keys, f"{speed} m, gap {gap}", console=console, transient=True)
        )
        for gap in GAPS
    }


def on_clips(subject: Subject) -> dict[int, dict[str, float]]:
    """Whole frames of a subject's clips, `GAPS` apart, warped by its flow network."""
    size = (subject.clips[0].frames.shape[2], subject.clips[0].frames.shape[3])
    params = subject.params

    @jax.jit
    def one(current: jax.Array, key: jax.Array, truth: jax.Array) -> dict[str, jax.Array]:
        now, kept = (subject.segment(params.segmentation, x) for x in (current, key))
        moved = {
            "segmented": now,
            "flow network": warp_by(kept, subject.flow(params.flow, current, key), border="edge"),
            "copied": kept,
        }
        return {
            name: confusion_matrix(truth, best_classes(x, size)[0], classes=subject.classes)
            for name, x in moved.items()
        }

    def pairs(gap: int) -> Any:
        for clip in subject.clips:
            for t in range(gap, len(clip.frames)):
                yield one(clip.frames[t], clip.frames[t - gap], clip.labels[t])

    return {gap: _summed(pairs(gap)) for gap in GAPS}


def unexplained(
    subject: Subject, *, thresholds: tuple[float, ...] = (10.0, 20.0, 40.0)
) -> dict[int, dict[str, Any]]:
    """Warping, if what the motion does not explain could be segmented anew and nothing else.

    A position of the motion's grid is unexplained where the current image and the warped key image
    differ by more than so many grey levels there or in the 24 around it. What is segmented anew is
    taken from the segmentation of the whole frame: no network that runs on those pixels alone can
    be better, or cost less than their share.
    """
    size = (subject.clips[0].frames.shape[2], subject.clips[0].frames.shape[3])
    params = subject.params

    @jax.jit
    def one(current: jax.Array, key: jax.Array, truth: jax.Array) -> Any:
        now, kept = (subject.segment(params.segmentation, x) for x in (current, key))
        motion = subject.flow(params.flow, current, key)
        segmented, moved = (
            best_classes(x, size)[0] for x in (now, warp_by(kept, motion, border="edge"))
        )
        grid = motion.flow.shape[1:3]
        images = (
            jax.image.resize(x.astype(jnp.float32), (1, *grid, 3), "linear", antialias=True)
            for x in (current, key)
        )
        image, before = images
        off = jnp.mean(jnp.abs(image - warp(before, motion.flow, border="edge")), -1, keepdims=True)
        off = jax.lax.reduce_window(off, -jnp.inf, jax.lax.max, (1, 5, 5, 1), (1, 1, 1, 1), "SAME")
        labels, shares = {"segmented": segmented, "warped": moved}, {}
        for threshold in thresholds:
            anew = jax.image.resize(off > threshold, (1, *size, 1), "nearest")[..., 0]
            name = f"above {threshold:g} anew"
            labels[name], shares[name] = jnp.where(anew, segmented, moved), jnp.mean(anew)
        tables = {
            name: confusion_matrix(truth, found, classes=subject.classes)
            for name, found in labels.items()
        }
        return tables, shares

    results = {}
    for gap in GAPS:
        found = [
            jax.device_get(one(clip.frames[t], clip.frames[t - gap], clip.labels[t]))
            for clip in subject.clips
            for t in range(gap, len(clip.frames))
        ]
        tables, shares = zip(*found, strict=True)
        mean = jax.tree.map(lambda *x: float(np.mean(x)), *shares)
        results[gap] = {"points lost": _summed(tables), "share anew": mean}
    return results
