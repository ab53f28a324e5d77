import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dynvid.models.spynet import LAYERS, LEVELS, spynet
from dynvid.weights.spynet import load_spynet
from tests.data import data_path

EPS = np.finfo(np.float32).eps


def constant_params(*biases):
    """Levels that add a constant to the flow, whatever they see."""
    levels = []
    for bias in (*biases, *[(0.0, 0.0)] * (LEVELS - len(biases))):
        layers = [{"kernel": jnp.zeros((7, 7, i, o)), "bias": jnp.zeros(o)} for i, o in LAYERS]
        layers[-1]["bias"] = jnp.array(bias)
        levels.append(layers)
    return levels


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((32, 20), [(32, 20)]),
        ((33, 20), [(16, 10), (33, 20)]),
        ((360, 480), [(22, 30), (45, 60), (90, 120), (180, 240), (360, 480)]),
        # Six levels at most, as there are weights for.
        ((2048, 64), [(64, 2), (128, 4), (256, 8), (512, 16), (1024, 32), (2048, 64)]),
    ],
)
def test_grids_are_those_of_the_published_pyramid(size, grids):
    frames = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    for levels, grid in enumerate(grids, 1):
        flow = jax.eval_shape(
            lambda c, k, n=levels: spynet(constant_params(), c, k, levels=n), frames, frames
        )
        assert flow.shape == (2, *grid, 2)
    full = jax.eval_shape(lambda c, k: spynet(constant_params(), c, k), frames, frames)
    assert full.shape[1:3] == grids[-1] == size


def test_levels_add_up():
    frames = jnp.zeros((1, 70, 66, 3))
    params = constant_params((1.0, -2.0), (0.5, 0.25), (0.0, 4.0))
    flow = np.asarray(jax.jit(spynet)(params, frames, frames))
    # Doubled at every level before the next is added, odd rows as those beside them.
    np.testing.assert_allclose(flow[..., 0], 2 * (2 * 1.0 + 0.5), rtol=4 * EPS)
    np.testing.assert_allclose(flow[..., 1], 2 * (2 * -2.0 + 0.25) + 4, rtol=16 * EPS)


def test_what_a_level_sees():
    """One network that hands on its input shows the order, the normalisation and the warp."""
    rng = np.random.default_rng(0)
    current, key = (rng.integers(0, 256, (1, 64, 48, 3), np.uint8) for _ in range(2))
    levels = constant_params((1.5, -1.0))
    run = jax.jit(spynet)
    seen = []
    for channel in range(8):
        layers = [dict(layer) for layer in levels[1]]
        # ReLU between the layers: all values are shifted to be positive, and back at the end.
        for layer, (inputs, outputs) in zip(layers, LAYERS, strict=True):
            source = channel if inputs == 8 else 0
            layer["kernel"] = jnp.zeros((7, 7, inputs, outputs)).at[3, 3, source, 0].set(1.0)
        layers[0]["bias"] = layers[0]["bias"].at[0].set(8.0)
        flow = run([levels[0], layers], current, key)
        seen.append(np.asarray(flow)[0, ..., 0] - 3.0 - 8.0)  # upsampled: (3, -2)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    first, second = ((x[0] / 255 - mean) / deviation for x in (current, key))
    rows = np.clip(np.arange(64)[:, None] - 2, 0, 63)  # beyond the border: its edge
    columns = np.clip(np.arange(48) + 3, 0, 47)
    expected = [*np.moveaxis(first, -1, 0), *np.moveaxis(second[rows, columns], -1, 0)]
    expected += [np.full((64, 48), 3.0), np.full((64, 48), -2.0)]
    # The upsampled flow is within a few roundings of (3, -2), which moves what is read by as many
    # times the pixels' differences (up to 5); all passes through sums of about 11.
    np.testing.assert_allclose(seen, expected, rtol=0, atol=32 * EPS * 11)


def test_flow_is_upsampled_corners_on_corners():
    current = np.random.default_rng(0).uniform(0.5, 1, (1, 40, 36, 3)).astype(np.float32)
    levels = constant_params()
    for layer, (inputs, outputs) in zip(levels[0], LAYERS, strict=True):
        # The coarsest flow is the red of the frame, which is positive.
        layer["kernel"] = jnp.zeros((7, 7, inputs, outputs)).at[3, 3, 0, 0].set(1.0)
    coarse, fine = (
        np.asarray(spynet(levels, current, current, levels=n))[0, ..., 0] for n in (1, 2)
    )
    rows, columns = np.linspace(0, 19, 40), np.linspace(0, 17, 36)
    wide = np.array([np.interp(columns, np.arange(18), row) for row in coarse])
    expected = 2 * np.array([np.interp(rows, np.arange(20), column) for column in wide.T]).T
    # Positions up to 20 are rounded, and weights with them; values are at most 2 * 2.3.
    np.testing.assert_allclose(fine, expected, rtol=0, atol=4 * 20 * EPS * expected.max())


def test_errors():
    frames = jnp.zeros((1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"current must be \(S, H, W, 3\); got \(64, 64, 3\)"):
        spynet([], frames[0], frames[0])
    with pytest.raises(ValueError, match="levels must be 1 to 2 for frames of 64 x 64; got 3"):
        spynet([], frames, frames, levels=3)
    thin = jnp.zeros((1, 64, 3, 3))
    with pytest.raises(ValueError, match="at least 2 pixels each way when halved 1 times"):
        spynet([], thin, thin)


def test_published_weights_find_shifts():
    """README of the data: an end-point error of about 0.035 px on shifts of a PETS crop."""
    fn, params = load_spynet(data_path("weights/spynet"))
    folder = data_path("pets09_s2l1")
    path = sorted(folder.rglob("*.jpg"))[0]
    image = np.asarray(Image.open(path))
    run = jax.jit(fn)
    for dx, dy in ((2, 1), (-5, 4)):
        current, key = (image[200 - y : 328 - y, 250 - x : 378 - x] for x, y in ((0, 0), (dx, dy)))
        flow = np.asarray(run(params, current[None], key[None]))[0]
        errors = np.linalg.norm(flow - (dx, dy), axis=-1)[16:-16, 16:-16]
        # The mean is 0.04 to 0.07 on crops this small, less on larger ones; the shift itself is
        # over 2, and the flow of the swapped frames as wrong as twice the shift.
        assert errors.mean() < 0.1
