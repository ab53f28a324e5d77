"""How fast `dynvid.incremental` is against dense inference, in one process, interleaved.

    uv run --extra test python -m experiments.incremental_speed.run [CASE ...]

Every figure is a median over frames after a warm-up, dense and incremental alternating frame by
frame, `block_until_ready`. Baselines: XLA dense (the same function, jitted) and onnxruntime dense
(the same weights). Needs the data described in README.md under DYNVID_DATA; writes results.json
beside this file. About six minutes on two cores.
"""

import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

import dynvid
from dynvid.models.resnet import ResNet50
from dynvid.models.vgg import VGG16
from dynvid.models.zoo import HEADS
from experiments.bench import console
from experiments.bench.accuracy import Accuracy
from experiments.bench.baselines import Onnx
from experiments.bench.cases import clock, main
from experiments.bench.networks import YOLOX_NANO, load_yolov5n, load_yolox_nano, network
from experiments.bench.to_onnx import export
from experiments.bench.videos import pets, unit

HERE = pathlib.Path(__file__).parent


def compare(fn, params, frames, *, threshold, truncation=0.0, onnx_path=None, warm=5, keep=None):
    """Times dense, onnxruntime and incremental inference frame by frame.

    `keep`, if given, is called with (frame number, dense outputs, incremental outputs).
    """
    video = dynvid.incremental(fn, threshold=threshold, truncation=truncation)
    dense = jax.jit(fn)
    with tempfile.TemporaryDirectory() as folder:
        if onnx_path is None:
            onnx_path = f"{folder}/network.onnx"
            export(fn, params, jnp.asarray(frames[0]), onnx_path)
        session = Onnx(onnx_path)
    state, out = jax.block_until_ready(video.init(params, frames[0]))
    start = time.perf_counter()
    step = jax.jit(video.step, donate_argnums=1).lower(params, state, frames[0]).compile()
    compiled = time.perf_counter() - start
    if keep:
        keep(0, dense(params, frames[0]), out)
    times, fractions, similarity = [], [], []
    for i, frame in enumerate(track(frames[1:], "frames", console=console, transient=True), 1):
        x = jnp.asarray(frame)
        a, expected = clock(lambda: dense(params, x))  # noqa: B023
        channels_first = np.ascontiguousarray(frame.transpose(0, 3, 1, 2))
        b, _ = clock(lambda: session(channels_first))  # noqa: B023
        c, (state, out) = clock(lambda: step(params, state, x))  # noqa: B023
        times.append((a, b, c))
        fractions.append(float(state.work.mac_fraction))
        similarity.append(1 - float(jnp.mean(state.work.changed)))
        if keep:
            keep(i, expected, out)
    xla, runtime, ours = np.median(times[warm:], axis=0)
    ratios = np.array([a / c for a, _, c in times[warm:]])
    fraction = float(np.mean(fractions[warm:]))
    exact = dense(params, state.reference)
    errors = [
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a)))
        for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(out), strict=True)
    ]
    return {
        "xla_dense_ms": 1e3 * xla,
        "onnxruntime_dense_ms": 1e3 * runtime,
        "incremental_ms": 1e3 * ours,
        "speedup_over_xla": xla / ours,
        "speedup_quartiles": np.percentile(ratios, [25, 75]).tolist(),
        "speedup_over_onnxruntime": runtime / ours,
        "mac_fraction": fraction,
        "fraction_of_ideal": xla / ours * fraction,
        "similarity": float(np.mean(similarity[warm:])),
        "max_relative_error_at_reference": max(errors),
        "step_compile_s": compiled,
    }


def vgg_pets():
    """VGG16's 13 convolutions, 512x512, PETS, theta 20, tau 0."""
    fn, params = network(VGG16)
    return compare(fn, params, unit(pets((512, 512), most=40).frames), threshold=20 / 255)


def vgg_still():
    """The same, the same frame again and again."""
    fn, params = network(VGG16)
    return compare(fn, params, unit(pets((512, 512), most=1).frames) * 20, threshold=20 / 255)


def vgg_all_new():
    """The same, every pixel new in every frame."""
    fn, params = network(VGG16)
    first, second = unit(pets((512, 512), most=2).frames)
    return compare(fn, params, [first, 1 - second] * 10, threshold=20 / 255)


def resnet_pets():
    """ResNet-50 (random weights), 512x512, PETS, theta 20, tau 0."""
    fn, params = network(ResNet50)
    return compare(fn, params, unit(pets((512, 512), most=40).frames), threshold=20 / 255)


def yolov5n_pets():
    """YOLOv5n (COCO), 640x480, PETS (250 frames), theta 15, tau 0.5."""
    fn, params = load_yolov5n()
    clip = pets((480, 640))
    accuracy = Accuracy(HEADS["yolov5"], params, (480, 640), clip)
    found = compare(
        fn, params, unit(clip.frames), threshold=15 / 255, truncation=0.5, keep=accuracy
    )
    return found | accuracy.result()


def yolox_pets():
    """YOLOX-nano (COCO), 416x416 letterboxed, PETS (250 frames), theta 15, tau 0.5."""
    fn, params = load_yolox_nano()
    clip, frames = pets((312, 416)), []
    for frame in clip.frames:
        square = np.full((1, 416, 416, 3), 114, np.float32)
        square[:, :312] = frame[..., ::-1]
        frames.append(square)
    accuracy = Accuracy(HEADS["yolox"], params, (416, 416), clip)
    found = compare(
        fn, params, frames, threshold=15.0, truncation=0.5, onnx_path=YOLOX_NANO, keep=accuracy
    )
    return found | accuracy.result()


def streams():
    """YOLOv5n, 640x480, theta 15, tau 0.5: one stream against eight on one step, by stream."""
    fn, params = load_yolov5n()
    frames = unit(pets((480, 640), most=100).frames)
    results = {}
    for count in (1, 8):
        clip = [np.concatenate([frames[10 * s + t] for s in range(count)]) for t in range(25)]
        found = compare(fn, params, clip, threshold=15 / 255, truncation=0.5)
        for key in ("xla_dense_ms", "onnxruntime_dense_ms", "incremental_ms"):
            results[f"{key}_by_stream_of_{count}"] = found[key] / count
        for key in ("speedup_over_xla", "speedup_over_onnxruntime", "mac_fraction"):
            results[f"{key}_of_{count}"] = found[key]
    return results


CASES = {
    f.__name__: f
    for f in (vgg_pets, vgg_still, vgg_all_new, resnet_pets, yolov5n_pets, yolox_pets, streams)
}


if __name__ == "__main__":
    main(sys.argv[1:], CASES, HERE / "results.json")
