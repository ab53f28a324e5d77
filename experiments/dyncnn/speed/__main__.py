"""DynCNN's schemes and the transformation against dense inference, in one process, interleaved.

    uv run --extra test python -m experiments.dyncnn.speed [CASE ...]

All contestants take turns on every frame after a warm-up, with `block_until_ready`; figures are
medians over frames. Baselines: XLA dense (the same function, jitted) and onnxruntime dense (the
same weights). Needs the data described in README.md under DYNVID_DATA; writes results.json beside
this file. About ten minutes on two cores.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

import dynvid
from dynvid.data.synthetic import render, synthetic_scene
from dynvid.models.ssd import SSD512, ssd_preprocess
from dynvid.models.vgg import VGG16
from dynvid.ops.difference import changed_pixels
from dynvid.ops.masks import stencil
from dynvid.systems.dyncnn import dyncnn
from experiments.bench import console
from experiments.bench.baselines import Onnx
from experiments.bench.cases import clock, main
from experiments.bench.networks import load_yolov5n
from experiments.bench.results import read_json
from experiments.bench.to_onnx import export
from experiments.bench.videos import pets, unit

HERE = pathlib.Path(__file__).parent
THETA = 20.0
PAPER = {
    "pixel": {"partition": "pixel"},
    "cell": {"continuous": False},
    "continuous": {"continuous": True},
}


def race(fn, params, frames, videos, *, warm=4, onnx=True, masks=None):
    """Times dense inference and every `VideoFunction` of `videos` on the same frames, in turns."""
    dense = jax.jit(fn)
    session = None
    if onnx:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/network.onnx"
            export(fn, params, jnp.asarray(frames[0]), path)
            session = Onnx(path)
    states, steps = {}, {}
    mask = () if masks is None else (masks[0],)
    for name, video in videos.items():
        states[name], _ = jax.block_until_ready(video.init(params, frames[0]))
        step = jax.jit(video.step, donate_argnums=1)
        steps[name] = step.lower(params, states[name], frames[0], *mask).compile()
    times = {name: [] for name in ("xla_dense", *(["onnxruntime_dense"] if onnx else []), *videos)}
    fractions = {name: [] for name in videos}
    similarity = []
    for i, frame in enumerate(track(frames[1:], "frames", console=console, transient=True), 1):
        x = jnp.asarray(frame)
        times["xla_dense"].append(clock(lambda: dense(params, x))[0])  # noqa: B023
        if session is not None:
            planes = np.ascontiguousarray(frame.transpose(0, 3, 1, 2))
            times["onnxruntime_dense"].append(clock(lambda: session(planes))[0])  # noqa: B023
        mask = () if masks is None else (masks[i],)
        for name, step in steps.items():
            run = functools.partial(step, params, states[name], x, *mask)
            seconds, (states[name], _) = clock(run)
            times[name].append(seconds)
            fractions[name].append(float(states[name].work.mac_fraction))
        similarity.append(1 - float(np.mean(states[next(iter(videos))].work.changed)))
    times = {name: np.array(t[warm:]) for name, t in times.items()}
    found = {"frames": len(frames) - 1 - warm, "similarity": float(np.mean(similarity[warm:]))}
    for name, t in times.items():
        found[name] = {"ms": 1e3 * float(np.median(t))}
        if name in videos:
            ratios = times["xla_dense"] / t
            fraction = float(np.mean(fractions[name][warm:]))
            found[name] |= {
                "over_xla": float(np.median(ratios)),
                "over_xla_in_all": float(np.sum(times["xla_dense"]) / np.sum(t)),
                "over_xla_quartiles": np.percentile(ratios, [25, 75]).tolist(),
                "mac_fraction": fraction,
                "fraction_of_ideal": float(np.median(ratios)) * fraction,
            }
            if session is not None:
                ratio = np.median(times["onnxruntime_dense"] / t)
                found[name]["over_onnxruntime"] = float(ratio)
    return found


class SSD512Maps(SSD512):
    """SSD512 up to the seven pairs of maps that its boxes are read from."""

    def __call__(self, x):
        *_, conv4_3, conv5_3 = self.vgg.stages(x)
        maps = self.sources(conv4_3, conv5_3)
        return [(self.locations[name](x), self.confidences[name](x)) for name, x in maps.items()]


def ssd512_maps():
    """The network with random weights."""
    return dynvid.from_nnx(nnx.jit(lambda: SSD512Maps(rngs=nnx.Rngs(0)))())


def prepared(frames):
    """Frames `(1, 512, 512, 3)` in 0..255 as SSD512 takes them: BGR less its mean."""
    return [np.asarray(ssd_preprocess(jnp.asarray(frame / 255))) for frame in frames]


def ssd512():
    """SSD512 (random weights), PETS, theta 20, exact: the paper's schemes and ours."""
    fn, params = ssd512_maps()
    videos = {
        name: dyncnn(fn, threshold=THETA, groups=range(5), **options)
        for name, options in PAPER.items()
    }
    videos["incremental"] = dynvid.incremental(fn, threshold=THETA)
    return race(fn, params, prepared(pets((512, 512), most=24).frames), videos)


def groups():
    """Each group of VGG16 alone, from its input map and its change mask (the paper's Table 8)."""
    network = VGG16(rngs=nnx.Rngs(0))
    found = {}
    maps = prepared(pets((512, 512), most=14).frames)
    masks = [
        changed_pixels(jnp.asarray(b), jnp.asarray(a), threshold=THETA)
        for a, b in itertools.pairwise(maps)
    ]
    masks = [masks[0], *masks]
    for i, group in enumerate(network.groups):
        layers = [layer for convolution in group for layer in (convolution, nnx.relu)]
        fn, params = dynvid.from_nnx(nnx.Sequential(*layers))
        options = {"threshold": THETA, "reference": "previous"}
        videos = {name: dyncnn(fn, **options, **paper) for name, paper in PAPER.items()}
        videos["incremental"] = dynvid.incremental(fn, **options)
        found[f"gp{i + 1}"] = race(fn, params, maps, videos, onnx=False, masks=masks)
        # What the next group sees: the maps after this group and a pooling, and the masks through
        # both.
        run = jax.jit(lambda p, x, fn=fn: nnx.max_pool(fn(p, x), (2, 2), strides=(2, 2)))
        maps = [np.asarray(run(params, x)) for x in maps]
        reach = len(group)
        side = 2 * reach + 1
        masks = [
            stencil(
                stencil(mask, window=(side, side), padding=((reach, reach),) * 2),
                window=(2, 2),
                strides=(2, 2),
            )
            for mask in masks
        ]
    return found


def scene(visible):
    """512x512 frames with camera noise and one object, there where `visible(t)` says so."""
    drawn = synthetic_scene(
        jax.random.key(0), size=(512, 512), objects=1, noise=2.0, object_size=(64.0, 64.0)
    )
    empty = dataclasses.replace(drawn, radius=jnp.zeros_like(drawn.radius))
    return prepared(
        np.asarray(render(drawn if visible(t) else empty, t).frame, np.float32)[None]
        for t in range(28)
    )


def still():
    """SSD512, theta 20, on a synthetic scene with camera noise where one object always moves."""
    fn, params = ssd512_maps()
    videos = {"continuous": dyncnn(fn, threshold=THETA, groups=range(5))}
    for tau in (0.0, 0.1, 0.3):
        video = dynvid.incremental(fn, threshold=THETA, truncation=tau)
        videos[f"incremental, truncation {tau}"] = video
    return race(fn, params, scene(lambda t: True), videos)


def visits():
    """The same where the object is there in one frame of four, as in front of a quiet door."""
    fn, params = ssd512_maps()
    videos = {
        "continuous": dyncnn(fn, threshold=THETA, groups=range(5)),
        "incremental": dynvid.incremental(fn, threshold=THETA),
    }
    return race(fn, params, scene(lambda t: t % 12 in (4, 5, 6)), videos)


def yolov5n():
    """YOLOv5n (COCO), 640x480, PETS, with the settings tuned by experiments.dyncnn.pets."""
    fn, params = load_yolov5n()
    settings = read_json(HERE.parent / "pets" / "settings.json")
    options = {"threshold": settings["threshold"] / 255, "truncation": settings["truncation"]}
    videos = {"incremental": dynvid.incremental(fn, **options)}
    return race(fn, params, unit(pets((480, 640)).frames), videos)


CASES = {f.__name__: f for f in (ssd512, groups, still, visits, yolov5n)}


if __name__ == "__main__":
    main(sys.argv[1:], CASES, HERE / "results.json")
