"""Real frames, and nothing trained: YOLOv5n cut in two, SPyNet's motion between."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.data.camvid import CamVid
from dynvid.metrics.average_precision import detection_agreement
from dynvid.models.driving import load_driving_networks
from dynvid.models.spynet import spynet_motion
from dynvid.models.zoo import Model, load_model
from dynvid.ops.difference import trusted_flow, unexplained_difference
from dynvid.ops.warp import Motion, resize_flow
from dynvid.systems.flow_detection import (
    FlowDetectionParams,
    SplitDetector,
    flow_detection,
    split_detector,
)
from dynvid.types import Params, VideoFunction
from dynvid.video.reader import VideoSource, resize_frame
from dynvid.weights.spynet import load_spynet
from experiments.bench import DATA
from experiments.flow_detection.evaluate import Contestant, Figures, compete, speeds

SIZE = (480, 640)
FRAMES = 31
LEVELS = 2
"""Of SPyNet, from the coarsest: a motion for every 16 pixels."""

BLOCK = 4
MARGIN = 3.0
"""Grey levels by which a motion must explain a place better than none does."""

VIDEOS = {
    "PETS": "pets09_s2l1/img1",
    "TUD-Stadtmitte": "tud_stadtmitte/img1",
    "CamVid": "camvid",
}


@functools.cache
def clip(name: str) -> np.ndarray:
    """The first frames of a video, `(T, 1, *SIZE, 3)` uint8."""
    if name == "CamVid":
        frames = (found.frame for found in CamVid(DATA / VIDEOS[name]))
    else:
        frames = iter(VideoSource(DATA / VIDEOS[name]))
    some = itertools.islice(frames, FRAMES)
    return np.stack([resize_frame(frame, SIZE) for frame in some])[:, None]


@functools.cache
def detector() -> Model:
    """YOLOv5n on frames of `SIZE`."""
    return load_model(DATA / "weights" / "yolov5n" / "yolov5n.pt", frame_size=SIZE)


@functools.cache
def parts() -> SplitDetector:
    """Its features at strides 8, 16 and 32, and its head."""
    model = detector()
    image = jax.eval_shape(model.resize, jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8))
    return split_detector(model.on_images, model.params, image)


@functools.cache
def flows() -> dict[str, tuple[Callable[..., jax.Array], Params]]:
    """Motions by name: functions of parameters and frames of 0..255, and the parameters."""
    driving = load_driving_networks()
    _, levels = load_spynet(DATA / "weights" / "spynet")

    def spynet(params: Params, current: jax.Array, key: jax.Array) -> jax.Array:
        return spynet_motion(params, current / 255, key / 255, levels=LEVELS).flow

    return {
        "none": (lambda params, current, key: jnp.zeros((len(current), 1, 1, 2)), ()),
        "shipped driving network": (
            lambda params, current, key: driving.flow(params, current / 255, key / 255).flow,
            driving.params[1],
        ),
        "SPyNet": (spynet, levels[:LEVELS]),
    }


def trusted(flow: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A motion only where it explains more than none does."""

    def chosen(params: Params, current: jax.Array, key: jax.Array) -> jax.Array:
        found = flow(params, current, key)
        return trusted_flow(current, key, found, margin=MARGIN, block=BLOCK)

    return chosen


def motions(gaps: Sequence[int] = (1, 5, 15), *, pairs: int = 8) -> dict[str, Figures]:
    """What each motion leaves unexplained, so many frames apart."""
    grid = (SIZE[0] // 8, SIZE[1] // 8)
    ways: dict[str, Callable[..., jax.Array]] = {}
    for name, (flow, params) in flows().items():
        ways[name] = functools.partial(flow, params)
        if name != "none":
            ways[f"{name}, where trusted"] = functools.partial(trusted(flow), params)

    def measured(way: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        @jax.jit
        def one(current: jax.Array, key: jax.Array) -> jax.Array:
            current, key = (x.astype(jnp.float32) for x in (current, key))
            flow = way(current, key)
            left = unexplained_difference(current, key, flow, grid, block=BLOCK)
            moved = resize_flow(flow, SIZE)
            return jnp.stack(
                [
                    jnp.mean(left),
                    jnp.mean(left >= 15),
                    jnp.mean(jnp.hypot(*jnp.moveaxis(moved, -1, 0))),
                ]
            )

        return one

    measures = {name: measured(way) for name, way in ways.items()}
    results: dict[str, Figures] = {}
    for video in VIDEOS:
        frames = clip(video)
        starts = np.linspace(0, len(frames) - 1 - max(gaps), pairs).astype(int)
        for gap in gaps:
            rows = {
                name: np.mean([one(frames[i + gap], frames[i]) for i in starts], 0)
                for name, one in measures.items()
            }
            results[f"{video}, {gap} frames"] = {
                name: {
                    "unexplained": round(float(row[0]), 2),
                    "share": round(float(row[1]), 4),
                    "motion_pixels": round(float(row[2]), 2),
                }
                for name, row in rows.items()
            }
    return results


def _video(motion: str, *, trust: bool = True, **options: Any) -> tuple[VideoFunction, Any]:
    model, cut = detector(), parts()
    flow, params = flows()[motion]
    flow = trusted(flow) if trust and motion != "none" else flow
    video = flow_detection(
        cut.features, cut.detect, flow=lambda p, a, b: Motion(flow(p, a, b)), **options
    )

    def step(params: Any, state: Any, frames: jax.Array) -> Any:
        return video.step(params, state, model.resize(frames))

    return (
        VideoFunction(lambda params, frames: video.init(params, model.resize(frames)), step),
        FlowDetectionParams(model.params, model.params, params),
    )


def contestants() -> dict[str, Contestant]:
    """Per-frame detection, DFF, adaptive keys and partial updates."""
    residual: dict[str, Any] = {"consistency": "residual", "consistency_block": BLOCK}
    partial = residual | {
        "key": "feature_consistency", "spatial": True, "reach": "cover", "margin": 1,
    }  # fmt: skip
    settings = [{"threshold": g, "consistency_threshold": t} for g, t in ((0.2, 8.0), (0.2, 15.0))]
    kinds: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {
        "per-frame": ({"motion": "none", "key": "all"}, [{}]),
        "DFF, SPyNet": (
            {"motion": "SPyNet", "trust": False, "key": "every"},
            [{"threshold": 3.0}, {"threshold": 10.0}],
        ),
        "adaptive keys, SPyNet": (
            {"motion": "SPyNet", "key": "feature_consistency", **residual},
            [{"threshold": 0.02}, {"threshold": 0.1}],
        ),
        "partial update, SPyNet": (
            {"motion": "SPyNet", **partial},
            settings,
        ),
        # As `dynvid run --system flow-detection` has it for any detector.
        "partial update, shipped driving network": (
            {"motion": "shipped driving network", **partial},
            settings[:1],
        ),
    }
    found = {}
    for name, (options, several) in kinds.items():
        video, params = _video(**options)
        for given in several:
            words = ", ".join(f"{value:g}" for value in given.values())
            found[f"{name} {words}".strip()] = Contestant(video, params, given)
    return found


def agreement() -> dict[str, Figures]:
    """F1 against per-frame detection, work and speed, video by video."""
    model = detector()
    decode = jax.jit(lambda outputs: model.task.decode(model.params, outputs, frame_size=SIZE))
    results: dict[str, Figures] = {}
    everyone = contestants()
    for video in VIDEOS:
        records = compete(everyone, clip(video), decode=decode)
        times = speeds(records, "per-frame", span=10)
        expected = records["per-frame"].found[0]
        results[video] = {
            name: {
                "f1": round(
                    float(
                        np.mean(
                            [
                                detection_agreement(a, b)[0]
                                for a, b in zip(expected, record.found[0], strict=True)
                            ]
                        )
                    ),
                    4,
                ),
                "macs": round(record.mean("macs"), 4),
                "updated": round(record.mean("changed"), 4),
                "keys": round(record.mean("key"), 4),
            }
            | times[name]
            for name, record in records.items()
        }
    return results
