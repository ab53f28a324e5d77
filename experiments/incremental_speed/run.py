"""How fast `dynvid.incremental` is against dense inference, in one process, interleaved.

    uv run --extra test python -m experiments.incremental_speed.run [CASE ...]

Every figure is a median over frames after a warm-up, dense and incremental alternating frame by
frame, `block_until_ready`. Baselines: XLA dense (the same function, jitted) and onnxruntime dense
(the same weights). Needs the data described in README.md under DYNVID_DATA; writes results.json
beside this file. About six minutes on two cores.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

import imageio.v3 as iio
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from flax import nnx
from rich.console import Console
from rich.progress import track

import dynvid
from dynvid.data.mot import parse_mot
from dynvid.metrics.average_precision import average_precision, of_class, pad_boxes
from dynvid.models.detection import HEADS, Detections
from dynvid.models.resnet import ResNet50
from dynvid.models.vgg import VGG16
from dynvid.video.reader import resize_frame
from dynvid.weights.onnx import load_onnx
from dynvid.weights.yolov5 import load_yolov5
from experiments.incremental_speed.to_onnx import export

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get("DYNVID_DATA", HERE.parents[1] / ".." / "shared" / "data"))
console = Console()


def pets(count, size, *, letterbox=False):
    """The first PETS frames, RGB in 0..255, `(1, H, W, 3)` each."""
    paths = sorted((DATA / "pets09_s2l1" / "img1").glob("*.jpg"))[:count]
    return [
        resize_frame(iio.imread(path), size, letterbox=letterbox)[None]
        for path in track(paths, "reading PETS", console=console, transient=True)
    ]


def clock(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


class Onnx:
    """A dense baseline: the same weights in onnxruntime."""

    def __init__(self, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = os.cpu_count()
        # Its idle threads would spin on the cores that the other contestants need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, frames):
        return self.session.run(None, {self.name: frames})


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


def network(kind):
    return dynvid.from_nnx(kind(rngs=nnx.Rngs(0)))


def unit(frames):
    return [frame.astype(np.float32) / 255 for frame in frames]


def vgg_pets():
    """VGG16's 13 convolutions, 512x512, PETS, theta 20, tau 0."""
    fn, params = network(VGG16)
    return compare(fn, params, unit(pets(40, (512, 512))), threshold=20 / 255)


def vgg_still():
    """The same, the same frame again and again."""
    fn, params = network(VGG16)
    return compare(fn, params, unit(pets(1, (512, 512))) * 20, threshold=20 / 255)


def vgg_all_new():
    """The same, every pixel new in every frame."""
    fn, params = network(VGG16)
    first, second = unit(pets(2, (512, 512)))
    return compare(fn, params, [first, 1 - second] * 10, threshold=20 / 255)


def resnet_pets():
    """ResNet-50 (random weights), 512x512, PETS, theta 20, tau 0."""
    fn, params = network(ResNet50)
    return compare(fn, params, unit(pets(40, (512, 512))), threshold=20 / 255)


class Accuracy:
    """Person AP50 of dense and incremental outputs on the same frames."""

    def __init__(self, head, params, size, scale):
        self.decode = jax.jit(
            lambda outputs: of_class(
                head.decode(params, outputs, size=size, score_threshold=0.01, iou_threshold=0.45), 0
            )
        )
        self.scale = np.asarray(scale, np.float32)
        self.found = [[], []]

    def __call__(self, index, *outputs):
        for found, output in zip(self.found, outputs, strict=True):
            found.append(jax.tree.map(np.asarray, self.decode(output)))

    def result(self):
        truth = parse_mot((DATA / "pets09_s2l1" / "gt_mot.txt").read_text())
        count = len(self.found[0])
        boxes, present = pad_boxes([truth.get(i + 1, np.zeros((0, 4))) for i in range(count)])
        values = {}
        for name, found in zip(("dense", "incremental"), self.found, strict=True):
            joined = Detections(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
            joined = joined._replace(boxes=joined.boxes * self.scale)
            value = average_precision(joined, boxes, present).value
            values[f"ap50_{name}"] = 100 * float(value)
        return values


def yolov5n_pets():
    """YOLOv5n (COCO), 640x480, PETS (250 frames), theta 15, tau 0.5."""
    fn, params = load_yolov5(DATA / "weights" / "yolov5n" / "yolov5n.pt")
    frames = unit(pets(250, (480, 640)))
    accuracy = Accuracy(HEADS["yolov5"], params, (480, 640), [768 / 640, 576 / 480] * 2)
    found = compare(fn, params, frames, threshold=15 / 255, truncation=0.5, keep=accuracy)
    return found | accuracy.result()


def yolox_pets():
    """YOLOX-nano (COCO), 416x416 letterboxed, PETS (250 frames), theta 15, tau 0.5."""
    path = DATA / "weights" / "yolox_nano" / "yolox_nano.onnx"
    fn, params = load_onnx(path)
    frames = []
    for frame in pets(250, (312, 416)):
        square = np.full((1, 416, 416, 3), 114, np.float32)
        square[:, :312] = frame[..., ::-1]
        frames.append(square)
    accuracy = Accuracy(HEADS["yolox"], params, (416, 416), [768 / 416] * 4)
    found = compare(
        fn, params, frames, threshold=15.0, truncation=0.5, onnx_path=path, keep=accuracy
    )
    return found | accuracy.result()


def streams():
    """YOLOv5n, 640x480, theta 15, tau 0.5: one stream against eight on one step, by stream."""
    fn, params = load_yolov5(DATA / "weights" / "yolov5n" / "yolov5n.pt")
    frames = unit(pets(100, (480, 640)))
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


def main(names, cases, path):
    """Runs cases by name, all where none is named, and keeps their figures in a JSON file."""
    listed = "\n".join(f"  {name}: {run.__doc__}" for name, run in cases.items())
    parser = argparse.ArgumentParser(
        description=f"Times dynvid against dense networks. Run it alone.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", help="what to time; all where none is named")
    names = parser.parse_args(names).case
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(cases)}")
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    for name in names or cases:
        console.print(f"[bold]{cases[name].__doc__}")
        results[name] = cases[name]()
        console.print_json(data=results[name])
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=2) + "\n")
        temporary.rename(path)


if __name__ == "__main__":
    main(sys.argv[1:], CASES, HERE / "results.json")
