"""`dynvid run` on real cameras is as near the dense network as on frames resized beforehand."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from dynvid.cli import main
from dynvid.models.zoo import load_model
from dynvid.video.reader import VideoSource
from tests.data import data_path

COUNT = 24


def resized_beforehand(source, path) -> float:
    """Mean agreement of the incremental network with the dense one on its own input's frames."""
    video = VideoSource(str(source), max_frames=COUNT)
    size = (video.size[0], video.size[1])
    model = load_model(path, frame_size=size)
    task = model.task
    identity = task.preprocess(lambda params, images: images)
    resize = jax.jit(lambda frame: identity(None, frame[None]))
    # Grey levels of the network's own unit, 1 for white.
    video_function = dynvid.incremental(model.network, threshold=15 / 255, truncation=0.5)
    step = jax.jit(video_function.step, donate_argnums=1)
    dense = jax.jit(model.network)
    decode = jax.jit(lambda params, outputs: task.decode(params, outputs, frame_size=size))
    compare = jax.jit(task.compare)
    found, state = [], None
    for frame in map(jnp.asarray, video):
        x = resize(frame)
        if state is None:
            state, _ = video_function.init(model.params, x)
            continue
        state, outputs = step(model.params, state, x)
        expected = decode(model.params, dense(model.params, x))
        found.append(float(compare(expected, decode(model.params, outputs)).score[0]))
    return float(np.mean(found))


@pytest.mark.parametrize("name", ["cameras/highway", "cameras/car_traffic.mp4"])
def test_a_run_agrees_with_dense_as_on_frames_resized_beforehand(name, tmp_path):
    source, weights = data_path(name), data_path("weights/yolov5n/yolov5n.pt")
    if source.is_dir():  # the frames may lie deeper
        source = next(p.parent for p in itertools.chain(source.rglob("*.jpg")))
    arguments = ["run", str(source), "--model", str(weights), "--max-frames", str(COUNT)]
    assert main([*arguments, "--compare-dense", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["detection_agreement"] > resized_beforehand(source, weights) - 0.02
