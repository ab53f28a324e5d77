"""Running the suite: dense once and for all, the system for every setting."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import Progress

import dynvid
from dynvid.cli.tune import FRAMES as TUNED_FRAMES
from dynvid.cli.tune import chosen_settings, promise, tune_model
from dynvid.files import part_file
from dynvid.models.zoo import Model, load_model
from dynvid.ops.boxes import Detections
from dynvid.runner import run_video
from dynvid.systems.registry import SYSTEMS
from dynvid.types import VideoFunction
from experiments.bench import DATA
from experiments.bench.results import read_json, write_json
from experiments.cameras.clips import CAMERAS, disturbed, one_level
from experiments.cameras.judge import LEAST, agree, as_figures, join, person_ap50

MODELS = {
    "yolov5n": "yolov5n/yolov5n.pt",
    "yolox_nano": "yolox_nano/yolox_nano.onnx",
    "yolo_fastest": "yolo_fastest/yolo-fastest-1.1.cfg",
}
"""The detectors by name, and where they lie under DYNVID_DATA/weights."""

_MOVES = ("threshold", "truncation")  # settings that change without compiling anything again


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
      model: One of `MODELS`.
      camera: One of `CAMERAS`.
      disturbance: One of `DISTURBANCES`.
      frames: How many at most; None for the whole clip.
    """

    model: str
    camera: str
    disturbance: str
    frames: int | None

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.model}-{self.camera}-{self.disturbance}-{self.frames or 'all'}"


class Recording(NamedTuple):
    """What a run gave.

    Attributes:
      detections: Of every frame, `(frames, K, ...)`.
      macs: Multiply-accumulates of each frame after the first, as a share of dense.
      changed: The share of pixels that changed, likewise.
      seconds: The time of each step, likewise.
      dense_seconds: Of the dense network in between, on some of the frames.
    """

    detections: Detections
    macs: np.ndarray
    changed: np.ndarray
    seconds: np.ndarray
    dense_seconds: np.ndarray


class Suite:
    """The models, what dense says of every clip, and the system with any settings.

    Args:
      cache: The folder for what can be made again: dense detections, H.264 copies.
      time_every: The dense network is timed on every so many frames, in turns with the system; 0
        never.
    """

    def __init__(self, cache: pathlib.Path, *, time_every: int):
        self.cache, self.time_every = cache, time_every
        cache.mkdir(parents=True, exist_ok=True)

    @functools.cache  # noqa: B019
    def model(self, name: str, frame_size: tuple[int, int]) -> Model:
        """A detector for frames of a size, that keeps faint detections too."""
        model = load_model(DATA / "weights" / MODELS[name], frame_size=frame_size)
        task = dataclasses.replace(model.task, score_threshold=LEAST)  # type: ignore[type-var]
        return dataclasses.replace(model, task=task)

    @functools.cache  # noqa: B019
    def network(self, name: str, frame_size: tuple[int, int]) -> Any:
        """The dense network, compiled."""
        return jax.jit(self.model(name, frame_size).on_frames)

    @functools.cache  # noqa: B019
    def _decode(self, name: str, frame_size: tuple[int, int]) -> Any:
        model = self.model(name, frame_size)
        return jax.jit(
            lambda outputs: model.task.decode(model.params, outputs, frame_size=frame_size)
        )

    @functools.cache  # noqa: B019
    def _system(self, name: str, frame_size: tuple[int, int], static: tuple) -> VideoFunction:
        model = self.model(name, frame_size)
        blank = jnp.zeros((1, *frame_size, 3), jnp.uint8)
        return SYSTEMS["incremental"].build(model, [blank], **dict(static))

    def system(
        self, name: str, frame_size: tuple[int, int], options: Mapping[str, Any]
    ) -> VideoFunction:
        """The system as `dynvid run` builds it; one executable for all of its settings."""
        moves = {key: options[key] for key in _MOVES}
        fixed = {**options, "threshold": 1.0, "truncation": float(bool(options["truncation"]))}
        video = self._system(name, frame_size, tuple(fixed.items()))

        def init(params: Any, frames: Any) -> tuple[Any, Any]:
            state, outputs = video.init(params, frames)
            return state.with_settings(**moves), outputs

        return video._replace(init=init)

    def frames(self, case: Case) -> Iterator[np.ndarray]:
        """The frames of a case."""
        count = self._count(case.camera, case.frames)
        camera = CAMERAS[case.camera]
        return disturbed(camera, case.disturbance, case.frames, count, self.cache)

    @functools.cache  # noqa: B019
    def _count(self, camera: str, most: int | None) -> int:
        return sum(1 for _ in CAMERAS[camera].frames(most))

    def dense(self, case: Case, progress: Progress, *, noisy: bool) -> Detections:
        """What the dense network says, `(frames, K, ...)`; read from the cache where it is there.

        Args:
          case: The frames.
          progress: Where the progress is shown.
          noisy: Whether noise of one level is added.
        """
        path = self.cache / f"{case.key}-{'noisy' if noisy else 'dense'}.npz"
        if path.exists():
            with np.load(path) as file:
                return Detections(**file)
        frames = self.frames(case)
        if noisy:
            frames = one_level(frames, 0)
        parts = []
        what = f"{case.key}, dense{' on noise' if noisy else ''}"
        task = progress.add_task(what, total=self._count(case.camera, case.frames))
        for frame in frames:
            size = frame.shape[:2]
            model = self.model(case.model, size)
            outputs = self.network(case.model, size)(model.params, jnp.asarray(frame)[None])
            found = self._decode(case.model, size)(outputs)
            parts.append(Detections(*(np.asarray(x)[0] for x in found)))
            progress.advance(task)
        progress.remove_task(task)
        found = join(parts)
        with part_file(path) as part, open(part, "wb") as file:
            np.savez_compressed(file, **found._asdict())  # type: ignore[arg-type]
        return found

    def run(self, case: Case, options: Mapping[str, Any], progress: Progress) -> Recording:
        """One case with some settings; read from the cache where the same code ran it before."""
        made = json.dumps([dict(options), self.time_every, source_digest()], sort_keys=True)
        digest = hashlib.sha256(made.encode()).hexdigest()[:16]
        path = self.cache / f"{case.key}-{digest}.npz"
        if path.exists():
            with np.load(path) as file:
                series = [file[name] for name in Recording._fields[1:]]
                return Recording(Detections(*(file[n] for n in Detections._fields)), *series)
        frames = self.frames(case)
        first = next(frames)
        model = self.model(case.model, first.shape[:2])
        network = self.network(case.model, first.shape[:2])
        video = self.system(case.model, first.shape[:2], options)
        parts, rows, dense_seconds = [], [], []
        task = progress.add_task(case.key, total=self._count(case.camera, case.frames))
        frames = itertools.chain([first], frames)
        for index, found in enumerate(run_video(model.task, video, frames, params=model.params)):
            parts.append(found.result)
            progress.advance(task)
            if not index:
                jax.block_until_ready(network(model.params, jnp.asarray(first)[None]))
                continue
            measures = found.measures
            rows.append((measures.mac_fraction, 1 - measures.similarity, measures.seconds))
            if self.time_every and index % self.time_every == 0:
                x = jax.block_until_ready(jnp.asarray(found.frame)[None])
                start = time.perf_counter()
                jax.block_until_ready(network(model.params, x))
                dense_seconds.append(time.perf_counter() - start)
        progress.remove_task(task)
        series = (*np.array(rows).T, np.array(dense_seconds))
        recording = Recording(join(parts), *series)
        with part_file(path) as part, open(part, "wb") as file:
            named = zip(Recording._fields[1:], series, strict=True)
            np.savez_compressed(file, **recording.detections._asdict(), **dict(named))
        return recording

    def tuned(self, case: Case, options: Mapping[str, Any], target: float) -> dict[str, Any]:
        """Settings that `dynvid tune` finds on the first frames of a case; kept in the cache."""
        made = json.dumps([dict(options), target, source_digest(tuning=True)], sort_keys=True)
        digest = hashlib.sha256(made.encode()).hexdigest()[:16]
        path = self.cache / f"{case.key}-{digest}.json"
        if not path.exists():
            clip = list(itertools.islice(self.frames(case), TUNED_FRAMES))
            size = (clip[0].shape[0], clip[0].shape[1])
            model = load_model(DATA / "weights" / MODELS[case.model], frame_size=size)
            start = time.perf_counter()
            tuning = tune_model(model, clip, target=target, options=options)
            found = promise(tuning, target=target, frames=len(clip)) | {
                "seconds": round(time.perf_counter() - start, 1),
                "options": {**options, **chosen_settings(tuning)},
            }
            write_json(path, found)
        return read_json(path)

    def figures(
        self, case: Case, options: Mapping[str, Any], progress: Progress, *, start: int = 1
    ) -> dict[str, Any]:
        """What is said of one case with some settings, from a frame on."""
        run = self.run(case, options, progress)
        dense = self.dense(case, progress, noisy=False)
        ceiling = self.dense(case, progress, noisy=True)
        figures: dict[str, Any] = dataclasses.asdict(case) | {"frames": len(dense.scores)}
        figures |= as_figures(agree(dense, run.detections, start=start))
        figures["ceiling"] = as_figures(agree(dense, ceiling, start=start))
        if (truth := CAMERAS[case.camera].boxes(case.frames)) is not None:
            names = load_model(DATA / "weights" / MODELS[case.model], frame_size=(480, 640)).task
            person = names.class_names.index("person")  # type: ignore[attr-defined]
            for name, side in (("ap50", run.detections), ("ap50_dense", dense)):
                figures[name] = round(person_ap50(side, truth, person), 2)
        figures["mac_fraction"] = round(float(np.mean(run.macs[start - 1 :])), 4)
        figures["changed"] = round(float(np.mean(run.changed[start - 1 :])), 4)
        costliest = int(np.argmax(run.macs))
        figures["costliest"] = {
            "frame": costliest + 1, "mac_fraction": round(float(run.macs[costliest]), 4),
        }  # fmt: skip
        if len(run.dense_seconds):
            usual = float(np.median(run.dense_seconds))
            figures["dense_ms"] = round(1e3 * usual, 2)
            figures["time_ratio"] = round(float(np.median(run.seconds)) / usual, 4)
            figures["costliest"]["time_ratio"] = round(float(run.seconds[costliest]) / usual, 3)
        return figures


@functools.cache
def source_digest(*, tuning: bool = False) -> str:
    """Of the code that says what is computed, or tuned: what another made is made again."""
    digest = hashlib.sha256()
    root = pathlib.Path(dynvid.__file__).parent
    files = [root / "runner.py"]
    for part in ("graph", "incremental", "kernels", "ops"):
        files += sorted((root / part).rglob("*.py"))
    for file in files:
        if file.name not in ("explain.py", "audit.py") and (tuning or file.name != "tune.py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
