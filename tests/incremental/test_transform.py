import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynvid
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import BY_NAME, clip, conv

FRAMES = np.zeros((2, 8, 10, 3), np.float32)


def double(_, x):
    return 2 * x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, "threshold.*-1"),
        ({"threshold": float("nan")}, "threshold.*nan"),
        ({"truncation": -0.5}, "truncation.*-0.5"),
        ({"truncation": {"conv_1": -1.0}}, "truncation.*conv_1"),
        ({"reference": "first"}, "reference.*first"),
        ({"cell": 0}, "cell.*0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        dynvid.incremental(double, **options)


def test_unknown_channels_and_gray_without_colours():
    video = dynvid.incremental(double, channels="luma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="luma"):
        video.step((), video.init((), FRAMES)[0], FRAMES)
    video = dynvid.incremental(double, channels="gray")
    with pytest.raises(ValueError, match=r"3 channels .*; got 2"):
        video.step((), video.init((), FRAMES[..., :2])[0], FRAMES[..., :2])


def test_names_that_no_layer_has():
    video = dynvid.incremental(lambda p, x: conv(x, p), truncation={"conv_1": 0.1, "conv_7": 0.1})
    with pytest.raises(ValueError, match=r"conv_1.*\['conv_7'\]"):
        video.init(np.zeros((3, 3, 3, 4), "f"), FRAMES)


def test_frames_of_another_rank():
    for entry in (dynvid.incremental(double).init, lambda p, x: dynvid.explain(double, p, x)):
        with pytest.raises(ValueError, match=r"\(8, 10, 3\)"):
            entry((), FRAMES[0])


@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
def test_frames_that_are_neither_floating_nor_bytes(dtype):
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        dynvid.incremental(double).init((), FRAMES.astype(dtype))


def test_frames_unlike_those_of_the_state():
    video = dynvid.incremental(double)
    state, _ = video.init((), FRAMES)
    with pytest.raises(ValueError, match=r"float32\[2, 8, 10, 3\].*float32\[2, 8, 9, 3\]"):
        video.step((), state, FRAMES[:, :, :9])
    with pytest.raises(ValueError, match=r"float32\[2, 8, 10, 3\].*float32\[1, 8, 10, 3\]"):
        video.step((), state, FRAMES[:1])
    with pytest.raises(ValueError, match=r"float32\[2, 8, 10, 3\].*uint8\[2, 8, 10, 3\]"):
        video.step((), state, FRAMES.astype(np.uint8))


def test_masks_unlike_the_frames():
    video = dynvid.incremental(double)
    state, _ = video.init((), FRAMES)
    with pytest.raises(ValueError, match=r"bool\[2, 8, 10\].*bool\[2, 8, 9\]"):
        video.step((), state, FRAMES, np.ones((2, 8, 9), bool))
    with pytest.raises(ValueError, match=r"bool\[2, 8, 10\].*int32\[2, 8, 10\]"):
        video.step((), state, FRAMES, np.ones((2, 8, 10), np.int32))


def test_side_effects():
    def fn(_, x):
        jax.debug.print("{}", x.sum())
        return x

    with pytest.raises(ValueError, match="debug"):
        dynvid.incremental(fn).init((), FRAMES)


def test_mapping_caches_by_the_identity_changes_nothing():
    network = BY_NAME["pyramid"]
    params = network.params(integer=True)
    frames = clip(network, integer=True)
    video = dynvid.incremental(network.fn)
    dense = jax.jit(network.fn)
    state, _ = video.init(params, frames[0])
    for frame in frames[1:5]:
        state = dynvid.map_caches(state, lambda x, stride: x)
        state, out = video.step(params, state, frame)
        assert_identical(out, dense(params, frame))


def test_mapped_caches_follow_a_shift_of_the_scene():
    """Warp the caches, then update where the warp does not hold (Zhu 2018, Eq. 6 and 10)."""

    def fn(p, x):
        x = conv(x, p[0], 2)
        return conv(x, p[1])

    rng = np.random.default_rng(0)
    params = [rng.integers(-1, 2, (3, 3, c, 4)).astype("f") for c in (3, 4)]
    wide = rng.integers(0, 8, (1, 24, 44, 3)).astype("f")
    first, second = wide[:, :, :40], wide[:, :, 4:]
    # What is computed again must read the new frame, also beside the mask.
    video = dynvid.incremental(fn, reference="previous")
    state, _ = video.init(params, first)
    strides = []

    def shift(x, stride):
        strides.append(stride)
        # The map's own stride says how many of its columns four pixels are.
        return jnp.roll(x, -int(4 / stride[1]), axis=2)

    state = dynvid.map_caches(state, shift)
    assert strides == [(2.0, 2.0)] * 2
    # What the edges touch is wrong: other pixels on the right, another border on the left.
    mask = np.zeros((1, 24, 40), bool)
    mask[:, :, :5] = mask[:, :, 30:] = True
    state, out = video.step(params, state, second, mask)
    assert_identical(out, fn(params, second))
    assert state.work.mac_fraction < 0.7


def test_a_transform_must_keep_shapes():
    network = BY_NAME["chain"]
    video = dynvid.incremental(network.fn)
    state, _ = video.init(network.params(integer=True), clip(network, integer=True)[0])
    with pytest.raises(ValueError, match="transform must keep the shape of conv_1"):
        dynvid.map_caches(state, lambda x, stride: x[:, 1:])


def test_parameters_of_other_shapes_are_refused():
    fn = lambda p, x: x * p["gain"] + p["bias"].sum()  # noqa: E731
    video = dynvid.incremental(fn)
    frames = jnp.zeros((1, 8, 8, 3))
    params = {"bias": jnp.zeros(4), "gain": jnp.ones(3)}
    state, _ = video.init(params, frames)
    with pytest.raises(ValueError, match=r"shapes of those of init, \[4\] of array 0; got \[5\]"):
        video.step(params | {"bias": jnp.zeros(5)}, state, frames)
    with pytest.raises(ValueError, match=r"shapes of those of init, 2 arrays; got 3"):
        video.step(params | {"more": jnp.zeros(5)}, state, frames)


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: (z := jnp.roll(x * w, 1, 2) + 1, z[:, :, :-1] * 2),
        lambda w, x: jax.lax.associative_scan(jnp.add, x * w, axis=2),
    ],
)
def test_a_segment_whose_outputs_would_differ_in_size(fn):
    """What a boundary makes, and the same without its last column, beside each other."""
    frames = jnp.arange(2.0 * 8 * 9 * 3).reshape(2, 8, 9, 3)
    video = dynvid.incremental(fn)
    state, _ = video.init(jnp.ones(3), frames)
    frames = frames.at[0, 3, 4].set(7.0)
    _, outputs = video.step(jnp.ones(3), state, frames)
    jax.tree.map(np.testing.assert_array_equal, outputs, fn(jnp.ones(3), frames))
