"""Pairs of ImageNet VID and DET, from files in the official layout to a step of the training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynvid.data.imagenet_vid import CLASS_NAMES, ImageNetDET, ImageNetVID
from dynvid.models.flow_detection import FlowDetector
from dynvid.models.flow_guided import EmbeddingNetwork, FeatureNetwork, FlowQualityNetwork
from dynvid.models.rfcn import RFCN
from dynvid.training.imagenet import ImageNetPairs, read_ahead
from experiments.flow_detection.train import load, save
from experiments.flow_detection.train_imagenet import Config, train
from tests.data.test_imagenet_vid import annotation, write

DOG, CAT = "n02084071", "n02121808"
VIDEO = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
STILL = "ILSVRC2013_train/n02084071/n02084071_3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A snippet of three lying frames and an upright image."""
    root = tmp_path_factory.mktemp("imagenet")
    for t in range(3):
        text = annotation((0, DOG, (4 * t, 8, 4 * t + 23, 31)), width=80, height=40)
        write(root, "VID", "train", f"{VIDEO}/{t:06d}", text, size=(80, 40))
    text = annotation((None, CAT, (0, 0, 9, 19)), (None, DOG, (0, 0, 29, 79)), width=40, height=80)
    write(root, "DET", "train", STILL, text, size=(40, 80))
    for name, line in (("VID", f"{VIDEO} 1\n"), ("DET", f"{STILL} 1\n")):
        path = root / "ImageSets" / name / "train_1.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    return root


def pairs_of(folder, **options):
    given = {"steps": 8, "short": 32, "long": 64, "slots": 3} | options
    return ImageNetPairs(
        ImageNetVID(folder, split="train"), ImageNetDET(folder, split="train"), **given
    )


def test_videos_and_images_take_turns(folder):
    pairs = pairs_of(folder)
    for step in range(8):
        batch = pairs[step]
        if step % 2:
            assert batch.gap.tolist() == [0]
            np.testing.assert_array_equal(batch.key, batch.current)
            assert batch.current.shape == (1, 64, 32, 3)  # upright
            assert batch.truth.present.tolist() == [[True, True, False]]
            # Largest first; of 40 x 80 pixels there are 32 x 64 left.
            classes = [CLASS_NAMES[c] for c in batch.truth.classes[0, :2]]
            assert classes == ["dog", "domestic cat"]
            left, top, right, bottom = batch.truth.boxes[0, 0]
            assert (right - left, top, bottom) == pytest.approx((24, 0, 64))
        else:
            assert 0 <= batch.gap[0] <= 2
            assert batch.current.shape == (1, 32, 64, 3)
            left, top, right, bottom = batch.truth.boxes[0, 0]
            assert (right - left, top, bottom) == pytest.approx((19.2, 6.4, 25.6))
    assert {int(pairs_of(folder, steps=40)[2 * i].gap[0]) for i in range(20)} == {0, 1, 2}


def test_boxes_are_mirrored_with_their_picture(folder):
    """Of a still image, whose dog reaches from the left border to three quarters."""
    pairs = pairs_of(folder, steps=20)
    edges = {tuple(pairs[step].truth.boxes[0, 0, [0, 2]].round(3)) for step in range(1, 20, 2)}
    assert edges == {(0.0, 24.0), (8.0, 32.0)}


def test_a_batch_of_lying_and_upright_pictures_is_square_and_padded(folder):
    batch = pairs_of(folder, batch=2)[0]
    assert batch.current.shape == (2, 64, 64, 3)
    assert (batch.current[0, 32:] == [123, 116, 103]).all()
    assert (batch.current[1, :, 32:] == [123, 116, 103]).all()
    assert batch.gap[1] == 0


def test_a_batch_is_the_same_whenever_it_is_asked_for(folder):
    direct, ahead = pairs_of(folder), read_ahead(pairs_of(folder), threads=2, ahead=2)
    for step in (3, 4, 5):
        jax.tree.map(np.testing.assert_array_equal, ahead(step), direct[step])
    with pytest.raises(ValueError, match="step must be 6, the next; got 3"):
        ahead(3)


@pytest.mark.parametrize(("options", "match"), [
    ({"batch": 0}, "batch must be at least 1; got 0"),
    ({"short": 40, "long": 32}, "long must be at least 40; got 32"),
    ({"longest_gap": -1}, "longest_gap must be at least 0; got -1"),
])  # fmt: skip
def test_what_is_out_of_range_is_refused(folder, options, match):
    with pytest.raises(ValueError, match=match):
        pairs_of(folder, **options)


def tiny(seed):
    rngs = nnx.Rngs(seed)
    return FlowDetector(
        FeatureNetwork(depths=(1, 1, 1, 1), width=2, features=8, rngs=rngs),
        FlowQualityNetwork(width=1 / 64, rngs=rngs),
        EmbeddingNetwork(depth=8, hidden=4, embedding=4, rngs=rngs),
        RFCN(depth=8, grid=2, max_candidates=16, max_proposals=8, max_detections=8, rngs=rngs),
    )


def test_two_steps_of_the_whole_pipeline(folder, tmp_path):
    """The papers' losses and optimiser on files: what is trained moves, normalisation does not."""
    network, before = tiny(0), tiny(0)
    # Wide and short, so that videos and images have one shape: square.
    config = Config(
        folder, tmp_path / "weights.npz", steps=2, batch=2, short=32, long=64, anchors=8, hard=4,
        rate=0.1,
    )  # fmt: skip
    train(network, config)
    save(network, config.output)
    assert not jnp.array_equal(network.features.reduce.kernel, before.features.reduce.kernel)
    norm, old = (n.features.backbone.stem[0].norm for n in (network, before))
    assert jnp.array_equal(norm.scale[...], old.scale[...])
    assert jnp.array_equal(norm.var[...], old.var[...])
    read = tiny(1)
    load(read, config.output)
    wanted = network.features.reduce.kernel[...].astype(jnp.float16)
    assert jnp.array_equal(read.features.reduce.kernel[...].astype(jnp.float16), wanted)
