"""Contract, "exact", on networks and clips that hypothesis makes up."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

import dynvid
from dynvid.incremental.transform import plan_for
from tests.contract.changes import Watch
from tests.contract.test_exact import assert_identical
from tests.contract.zoo import act, conv

STRIDES = st.tuples(st.integers(1, 3), st.integers(1, 2))


@st.composite
def layer(draw, x, shapes):
    """Draws an operation that fits a map of shape `x`: `(function of p and maps, new shape)`."""
    _, height, width, channels = x
    kind = draw(
        st.sampled_from(
            [
                *("conv", "conv", "conv", "depthwise", "transposed", "max", "sum", "pad", "crop"),
                *("repeat", "resize", "shuffle", "affine", "gate", "blocks", "linear", "flip"),
                *("roll", "scan", "shorten"),
            ]
        )
    )
    mine = len(shapes)
    if kind == "conv":
        groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
        features = groups * draw(st.sampled_from([2, 3] if groups > 1 else [3, 4, 16]))
        window = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
        pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
        strides = draw(STRIDES)
        shapes.append((*window, channels // groups, features))
        padding = ((pads[0], pads[1]), (pads[2], pads[3]))
        return lambda p, y: act(
            conv(y, p[mine], strides, padding=padding, dilation=dilation, groups=groups)
        )
    if kind == "depthwise":
        shapes.append((3, 3, 1, channels))
        strides = draw(STRIDES)
        return lambda p, y: act(conv(y, p[mine], strides, groups=channels))
    if kind == "transposed":
        if max(height, width) > 24:
            return lambda p, y: y
        window = draw(st.integers(1, 4))
        shapes.append((window, window, channels, 3))
        base = draw(STRIDES)
        padding = draw(st.sampled_from(["SAME", "VALID"]))
        return lambda p, y: act(lax.conv_transpose(y, p[mine], base, padding))
    if kind in ("max", "sum"):
        window, stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
        pads = draw(st.tuples(*[st.integers(0, window - 1)] * 4))
        padding = ((0, 0), (pads[0], pads[1]), (pads[2], pads[3]), (0, 0))
        start, combine = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)
        sizes = (1, window, window, 1), (1, stride, stride, 1)
        return lambda p, y: act(lax.reduce_window(y - 1, start, combine, *sizes, padding))
    if kind == "pad":
        config = [
            (0, 0, 0),
            *((draw(st.integers(-2, 3)), draw(st.integers(-1, 2)), 0) for _ in "hw"),
        ]
        config.append((0, draw(st.integers(0, 1)), 0))
        value = np.float32(draw(st.integers(0, 3)))
        return lambda p, y: lax.pad(y, value, config)
    if kind == "crop":
        top, left = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        step = draw(st.integers(1, 2))
        return lambda p, y: y[:, top::step, left:-1]
    if kind in ("repeat", "resize"):
        if max(height, width) > 24:
            return lambda p, y: y
        axis = draw(st.integers(1, 2))
        if kind == "repeat":
            factor = draw(st.integers(2, 3))
            return lambda p, y: jnp.repeat(y, factor, axis=axis)
        size = draw(st.integers(3, 30))
        return lambda p, y: jax.image.resize(
            y, [size if a == axis else n for a, n in enumerate(y.shape)], "nearest"
        )
    if kind == "shuffle":
        order = draw(st.permutations(range(channels)))
        return lambda p, y: y[..., np.array(order)]
    if kind == "affine":
        shapes.append((channels,))
        return lambda p, y: jnp.where(y > 2, 7 - y, y * p[mine])
    if kind == "gate":
        level = draw(st.integers(3, 7))
        return lambda p, y: y * jnp.where(y.max((1, 2), keepdims=True) >= level, 1.0, 0.0)
    if kind == "blocks" and height % 2 == width % 2 == 0:

        def blocks(p, y):
            n, h, w, c = y.shape
            y = y.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
            return y.reshape(n, h // 2, w // 2, 4 * c)

        return blocks
    if kind == "linear":
        shapes.append((channels, 5))
        return lambda p, y: act(y @ p[mine])
    if kind == "flip":
        return lambda p, y: y[:, :, ::-1]
    if kind == "roll":
        by, axis = draw(st.integers(-2, 2)), draw(st.integers(1, 2))
        return lambda p, y: jnp.roll(y, by, axis) + 1
    if kind == "scan" and max(height, width) <= 24:
        return lambda p, y: act(lax.associative_scan(jnp.add, y, axis=2))
    if kind == "shorten":
        # The same positions, of a smaller grid, beside what was before.
        return lambda p, y: y[:, :, :-1] * 2
    return lambda p, y: y


@st.composite
def networks(draw):
    """Draws a directed graph of operations: `(fn, parameter shapes)`."""
    frame = (2, draw(st.integers(7, 23)), draw(st.integers(7, 23)), draw(st.sampled_from([1, 3])))
    shapes: list[tuple[int, ...]] = []
    maps = [jax.ShapeDtypeStruct(frame, np.float32)]
    steps = []

    def shape_of(fn, *xs):
        params = [jax.ShapeDtypeStruct(s, np.float32) for s in shapes]
        return jax.eval_shape(fn, params, *xs)

    for _ in range(draw(st.integers(2, 6))):
        source = draw(st.integers(max(0, len(maps) - 3), len(maps) - 1))
        partners = [i for i, y in enumerate(maps) if y.shape[:3] == maps[source].shape[:3]]
        partner = draw(st.sampled_from(partners))
        if draw(st.integers(0, 3)) == 0:
            sources = (source, partner)
            if maps[source].shape == maps[partner].shape and draw(st.booleans()):
                fn = lambda p, a, b: act(a + b)  # noqa: E731
            else:
                fn = lambda p, a, b: jnp.concatenate([a, b], -1)  # noqa: E731
        else:
            sources = (source,)
            count = len(shapes)
            fn = draw(layer(maps[source].shape, shapes))
            try:
                new = shape_of(fn, maps[source])
            except (ValueError, TypeError):
                new = None
            if new is None or min(new.shape) < 1 or max(new.shape[1:3]) > 50:
                del shapes[count:]
                continue
        new = shape_of(fn, *(maps[i] for i in sources))
        if new.shape[-1] > 32:
            continue
        maps.append(new)
        steps.append((fn, sources))
    outputs = {len(maps) - 1, draw(st.integers(0, len(maps) - 1))}

    def network(p, x):
        values = [x]
        for fn, sources in steps:
            values.append(fn(p, *(values[i] for i in sources)))
        return [values[i] for i in sorted(outputs)]

    return network, shapes, frame


@given(networks(), st.integers(0, 2**32 - 1), st.sampled_from([None, None, 1, 3, 4]))
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_networks_made_up_at_random_are_exact(network, seed, cell):
    fn, shapes, frame = network
    rng = np.random.default_rng(seed)
    params = [rng.choice(np.array([-1, 0, 1], np.float32), shape) for shape in shapes]
    frames = rng.integers(0, 8, frame).astype(np.float32)
    video = dynvid.incremental(fn, cell=cell)
    dense = jax.jit(fn)
    state, out = video.init(params, frames)
    assert_identical(out, dense(params, frames))
    watch = Watch(plan_for(fn, params, frames, cell=cell), out, state)
    for share in (0.005, 0.05, 0.0, 0.3, 0.01, 1.0, 0.02):
        # A few pixels of one stream, a few rectangles of the other.
        mask = rng.random(frame[:3]) < share
        if 0 < share < 1:
            row, column = rng.integers(frame[1]), rng.integers(frame[2])
            mask[1] = False
            mask[1, row : row + 3, column : column + 2] = True
        frames = np.where(mask[..., None], rng.integers(0, 8, frame), frames).astype(np.float32)
        state, out = video.step(params, state, frames)
        assert_identical(out, dense(params, frames))
        watch(out, state)
