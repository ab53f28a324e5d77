"""DynCNN's schemes: exact where they claim to be, and wrong exactly where the paper is."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import dynvid
from dynvid.models.vgg import VGG16
from dynvid.systems.dyncnn import comparison, dyncnn, dyncnn_groups, position
from dynvid.systems.dyncnn.layers import from_strip, to_strip
from tests.contract.zoo import BY_NAME, act, clip, conv, pool

SCHEMES = {
    "pixel": {"partition": "pixel"},
    "cell": {"continuous": False},
    "continuous": {},
    "strip": {"layout": "strip"},
    "cell strip": {"continuous": False, "layout": "strip"},
}
AT_REFERENCE = {"reference": "last_used", "inputs": "composite"}
NETWORKS = [
    *("vgg", "residual", "inverted_residual", "inception", "nchw", "transposed", "dense_head"),
    *("shuffle", "boundaries", "nested", "camera", "bytes", "tiny"),
]
KINDS = ("empty", "pixel", "border", "some", "full")


def whole_numbers(seed, *shape, limit=1):
    generator = np.random.default_rng(seed)
    return generator.integers(-limit, limit + 1, shape).astype(np.float32)


def marks(kind, shape, seed=0):
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    if kind == "pixel":
        mask[tuple(generator.integers(0, shape))] = True
    elif kind == "border":
        mask[0, 0], mask[-1, :, -1] = True, True
    elif kind == "some":
        mask[:] = generator.random(shape) < 0.03
    elif kind == "full":
        mask[:] = True
    return mask


def assert_identical(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def assert_at_reference(video, fn, params, state, out):
    """The invariant: outputs and stored maps are those of the dense network at the reference."""
    assert_identical(out, jax.jit(fn)(params, state.reference))
    assert_identical(state.maps, video.init(params, state.reference)[0].maps)


# Exactness.


def run_clip(network, scheme, threshold):
    params = network.params(integer=True)
    video = dyncnn(network.fn, threshold=threshold, cell=3, **AT_REFERENCE, **SCHEMES[scheme])
    first, *rest = clip(network, integer=True)
    state, out = video.init(params, first)
    assert_at_reference(video, network.fn, params, state, out)
    for frame in rest:
        state, out = video.step(params, state, frame)
        assert_at_reference(video, network.fn, params, state, out)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_stays_at_its_reference(name):
    run_clip(BY_NAME[name], "continuous", threshold=3)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "continuous"])
@pytest.mark.parametrize("name", ["nchw", "even_kernels"])
def test_every_scheme_stays_at_its_reference(name, scheme):
    run_clip(BY_NAME[name], scheme, threshold=0)


@st.composite
def problems(draw):
    """A chain of convolutions of any geometry with a pooling somewhere, and how to run it."""
    layers = draw(
        st.lists(
            st.tuples(
                st.tuples(st.integers(1, 4), st.integers(1, 3)),  # window
                st.sampled_from([1, 1, 1, 2]),  # stride
                st.tuples(*[st.integers(0, 2)] * 4),  # padding
                st.integers(1, 2),  # dilation
                st.sampled_from([1, 1, 3]),  # channel groups
            ),
            min_size=1,
            max_size=4,
        )
    )
    return {
        "layers": layers,
        "pool": draw(st.integers(0, 4)),
        "size": draw(st.tuples(st.integers(13, 30), st.integers(13, 30))),
        "streams": draw(st.integers(1, 3)),
        "cell": draw(st.integers(1, 7)),
        "scheme": draw(st.sampled_from(list(SCHEMES))),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_any_geometry_stays_at_its_reference(problem):
    def fn(params, x):
        for i, (kernel, layer) in enumerate(zip(params, problem["layers"], strict=True)):
            if i == problem["pool"]:
                x = pool(x)
            _, stride, (top, bottom, left, right), dilation, groups = layer
            padding = ((top, bottom), (left, right))
            x = conv(x, kernel, stride, padding=padding, dilation=dilation, groups=groups)
            assume(x.size > 0)
            x = act(x + 1)  # not zero where its input is: borders have to be set to zero again
        return x

    shape = (problem["streams"], *problem["size"], 3)
    seed = problem["seed"]
    params = [
        whole_numbers(seed + i, *window, 3 // groups, 3)
        for i, (window, *_, groups) in enumerate(problem["layers"])
    ]
    options = AT_REFERENCE | SCHEMES[problem["scheme"]]
    video = dyncnn(fn, cell=problem["cell"], **options)
    state, _ = video.init(params, whole_numbers(seed, *shape, limit=3))
    for i, kind in enumerate(KINDS):
        frame = whole_numbers(seed + i, *shape, limit=3)
        state, out = video.step(params, state, frame, marks(kind, shape[:3], seed))
        assert_at_reference(video, fn, params, state, out)


def three(params, x):
    """A group of three 3x3 convolutions whose zeros outside are not zero after an activation."""
    for kernel in params:
        x = act(conv(x, kernel) + 1)
    return x


def three_params(depth=4, seed=0):
    return [whole_numbers(seed + i, 3, 3, n, depth) for i, n in enumerate((3, depth, depth))]


def camera(count, size=(48, 54), seed=0):
    """Frames of whole numbers in which a block moves."""
    generator = np.random.default_rng(seed)
    scene = generator.integers(0, 8, (2, *size, 3)).astype(np.float32)
    frames = []
    for k in range(count):
        frame = scene.copy()
        frame[0, 5:9, 3 * k : 3 * k + 4] = 7 - k
        frame[1, 2 * k : 2 * k + 2, 20:23] = k
        frames.append(frame)
    return frames


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_papers_setting_is_exact_on_whole_numbers_below_a_threshold_of_one(scheme):
    params = three_params()
    video = dyncnn(three, threshold=1.0, **SCHEMES[scheme])
    first, *rest = camera(6)
    state, out = video.init(params, first)
    for frame in rest:
        state, out = video.step(params, state, frame)
        assert_identical(out, jax.jit(three)(params, frame))
        assert not state.work.details["dense"].any()
        np.testing.assert_array_equal(state.reference, frame)


def test_the_papers_border_is_wrong_in_the_outermost_rings_only():
    params = three_params()
    shape = (1, 60, 66, 3)
    before, after = (whole_numbers(i, *shape, limit=3) for i in range(2))
    mask = np.zeros(shape[:3], bool)
    mask[0, [20, 2, -1, 30], [1, 20, -9, -2]] = True
    errors = {}
    for border in ("exact", "paper"):
        video = dyncnn(three, border=border, **AT_REFERENCE)
        state, out = video.step(params, video.init(params, before)[0], after, mask)
        assert not state.work.details["dense"].any()
        errors[border] = np.any(out != jax.jit(three)(params, state.reference), axis=-1)
    assert not errors["exact"].any()
    rings = len(params) - 1
    assert not errors["paper"][:, rings:-rings, rings:-rings].any()
    for ring in range(rings):  # as far in as it can get, on all four sides that are computed
        assert errors["paper"][0, ring].any()
        assert errors["paper"][0, :, ring].any()
    assert errors["paper"][0, -1].any()
    assert errors["paper"][0, :, -1].any()


def test_slow_brightening_drifts_with_the_previous_frame_and_not_with_the_last_used():
    params = three_params()
    frames = [np.full((1, 12, 12, 3), 0.5 * k, np.float32) for k in range(20)]
    staleness = {}
    for reference in ("previous", "last_used"):
        video = dyncnn(three, threshold=1.0, reference=reference, inputs="composite")
        state, out = video.init(params, frames[0])
        for frame in frames[1:]:
            state, out = video.step(params, state, frame)
        shown = state.reference if reference == "last_used" else frames[0]
        assert_identical(out, jax.jit(three)(params, shown))
        staleness[reference] = np.abs(frames[-1] - shown).max()
    assert staleness["previous"] == 9.5  # nothing was ever computed again
    assert staleness["last_used"] < 1


@pytest.mark.parametrize("border", ["exact", "paper"])
@pytest.mark.parametrize("continuous", [True, False])
def test_the_strip_equals_the_batch_bit_for_bit(border, continuous):
    def fn(params, x):  # a stride too: its cells lie a whole number of strides apart
        return act(conv(pool(three(params[:3], x)), params[3], 2) + 1)

    params = [*three_params(), whole_numbers(9, 3, 3, 4, 5)]
    shape = (2, 33, 40, 3)
    made = {}
    for layout in ("batch", "strip"):
        video = dyncnn(
            fn, threshold=2.0, border=border, continuous=continuous, layout=layout, cell=4
        )
        state, _ = video.init(params, whole_numbers(0, *shape, limit=3))
        for kind in ("border", "pixel"):
            state, out = video.step(
                params, state, whole_numbers(1, *shape, limit=3), marks(kind, shape[:3])
            )
        assert not state.work.details["dense"].all()
        made[layout] = (out, state.maps)
    assert_identical(made["strip"], made["batch"])


def test_raw_inputs_read_the_new_frame_beside_the_mask():
    kernel = np.ones((1, 3, 1, 1), np.float32)
    fn = lambda kernel, x: conv(x, kernel)  # noqa: E731
    old, new = np.zeros((1, 1, 6, 1), np.float32), np.ones((1, 1, 6, 1), np.float32)
    mask = np.zeros((1, 1, 6), bool)
    mask[0, 0, 2] = True
    found = {}
    for inputs in ("raw", "composite"):
        video = dyncnn(fn, partition="pixel", reference="last_used", inputs=inputs)
        state, out = video.step(kernel, video.init(kernel, old)[0], new, mask)
        found[inputs] = out[0, 0, :, 0].tolist()
        np.testing.assert_array_equal(state.reference[0, 0, :, 0], mask[0, 0])
    assert found == {"raw": [0, 3, 3, 3, 0, 0], "composite": [0, 1, 1, 1, 0, 0]}


# Groups.


@functools.cache
def vgg():
    return dynvid.from_nnx(nnx.eval_shape(lambda: VGG16(rngs=nnx.Rngs(0))))


def test_the_groups_of_vgg16_are_the_papers():
    fn, params = vgg()
    groups = dyncnn_groups(fn, params, jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32))
    assert [len(group.convolutions) for group in groups] == [2, 2, 3, 3, 3]
    assert [group.grid for group in groups] == [(s, s) for s in (512, 256, 128, 64, 32)]
    assert [group.cell for group in groups] == [14, 6, 6, 6, 6]
    assert [math.prod(group.cell_grid) for group in groups] == [1369, 1849, 484, 121, 36]
    assert [group.heights for group in groups] == [
        (18, 16),
        (10, 8),
        (12, 10, 8),
        (12, 10, 8),
        (12, 10, 8),
    ]
    # With continuous convolution, as a share of the grid (and the 10 cells of gp5).
    shares = [group.break_even / math.prod(group.cell_grid) for group in groups]
    np.testing.assert_allclose(shares, [0.66, 0.43, 0.33, 0.33, 0.28], atol=0.005)
    assert round(groups[4].break_even) == 10
    for group, cells in zip(groups, [1024, 1024, 256, 64, 16], strict=True):
        for single in group.single():
            assert single.heights == (group.cell + 2,)
            assert single.break_even == cells
    # The last operation of each group is its activation, not the convolution or the bias.
    tails = {c.tail[-1].primitive.name for group in groups for c in group.convolutions}
    assert tails == {"max"}
    first = groups[0].convolutions[0]
    assert first.macs * math.prod(first.size) == 512 * 512 * 3 * 64 * 9
    text = "gp1: 2 convolutions on 512x512, 37x37 cells of 14, heights 18, 16, break-even at 904"
    assert repr(groups[0]) == f"{text} cells"


def test_groups_end_at_branches_strides_additions_and_outputs():
    k3, k1 = whole_numbers(0, 3, 3, 4, 4), whole_numbers(1, 1, 1, 4, 4)

    def fn(params, x):
        x = jax.nn.silu(conv(x, k3))  # 0: read twice, by the next and by the addition
        y = jax.nn.silu(conv(x, k1))  # 1: two convolutions, the activation reads its input twice
        x = x + jax.nn.silu(conv(y, k3))
        z = act(conv(x, k3, 2))  # 2: a stride
        out = act(conv(z, k1))  # 3: returned as well
        y = act(conv(out, k3)) * z  # 4: the product is outside
        last = jax.nn.relu(conv(y, k3))  # 5: two operations read the activation
        return out, jnp.tanh(last), jnp.exp(last)

    found = dyncnn_groups(fn, [], jax.ShapeDtypeStruct((1, 16, 16, 4), jnp.float32))
    assert [len(group.convolutions) for group in found] == [1, 2, 1, 1, 1, 1]
    assert [group.grid for group in found] == [(16, 16)] * 2 + [(8, 8)] * 4
    tails = [[node.primitive.name for node in g.convolutions[-1].tail] for g in found]
    assert tails[0] == ["logistic", "mul"]
    assert tails[4] == tails[2]
    assert tails[5] == ["max"]


def test_a_strided_convolution_is_a_group_of_its_own():
    kernel = whole_numbers(0, 3, 3, 3, 3)

    def fn(params, x):
        return conv(conv(conv(x, kernel), kernel, 2), kernel)

    found = dyncnn_groups(fn, [], jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    assert [(len(g.convolutions), g.heights) for g in found] == [(1, (8,)), (1, (13,)), (1, (8,))]


def two_groups(params, x):
    for i, kernel in enumerate(params):
        x = act(conv(pool(x) if i == 2 else x, kernel) + 1)
    return x


TWO = [whole_numbers(i, 3, 3, *s) for i, s in enumerate([(3, 4), (4, 4), (4, 8), (8, 8)])]
DENSE = [9 * 3 * 4 * 24 * 24, 9 * 4 * 4 * 24 * 24, 9 * 4 * 8 * 12 * 12, 9 * 8 * 8 * 12 * 12]


def one_step(mask, **options):
    video = dyncnn(two_groups, **AT_REFERENCE, **options)
    shape = (*mask.shape, 3)
    state, _ = video.init(TWO, whole_numbers(0, *shape, limit=3))
    state, out = video.step(TWO, state, whole_numbers(1, *shape, limit=3), mask)
    assert_at_reference(video, two_groups, TWO, state, out)
    return state


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["gp1", "gp2"]),
        ({"groups": [1]}, ["gp2"]),
        ({"groups": range(1)}, ["gp1"]),
        ({"groups": [1, 0], "cell": [6, 3]}, ["gp1", "gp2"]),
        ({"groups": []}, []),
        ({"groups": [1], "continuous": False}, ["gp2_1", "gp2_2"]),
        ({"groups": [0], "partition": "pixel"}, ["gp1_1", "gp1_2"]),
    ],
)
def test_chosen_groups_run_by_the_scheme_and_all_else_densely(options, names):
    mask = np.zeros((1, 24, 24), bool)
    mask[0, 4, 4] = True
    state = one_step(mask, **options)
    assert list(state.maps) == list(state.names) == names
    assert state.work.details["cells"].shape == state.work.details["dense"].shape == (len(names),)
    assert not state.work.details["dense"].any()
    if "cell" in options:  # 5x5 pixels from (2, 2) in cells of 3; then 6x6 from (0, 0) in one of 6
        assert state.work.details["cells"].tolist() == [9, 1]
    rest = sum(DENSE) - sum(sum(DENSE[2 * i : 2 * i + 2]) for i in options.get("groups", [0, 1]))
    assert float(state.work.dense_macs[0]) == sum(DENSE)
    assert rest < float(state.work.macs[0]) + (not names) <= sum(DENSE) + (not names)


# Work.


def corner(*streams):
    """A change at (4, 4) that stays within the first cell of gp1 and reaches one cell of gp2."""
    mask = np.zeros((2, 24, 24), bool)
    mask[list(streams), 2, 2] = True
    return mask


@pytest.mark.parametrize(
    ("options", "cells", "macs"),
    [
        # gp1: 8x8 then 6x6 positions; gp2 likewise.
        ({}, [1, 1], 9 * (12 * 64 + 16 * 36 + 32 * 64 + 64 * 36)),
        ({"continuous": False}, [1, 1, 1, 1], 9 * 36 * (12 + 16 + 32 + 64)),
        # Pixels: 3x3 and 5x5; pooled rows 0 to 2, then 0 to 3 and 0 to 4.
        ({"partition": "pixel"}, [9, 25, 16, 25], 9 * (12 * 9 + 16 * 25 + 32 * 16 + 64 * 25)),
        # One cell is a strip without a seam: K (W - 2) (H - 2) with W = H = 10, then 8.
        ({"layout": "strip"}, [1, 1], 9 * (12 * 64 + 16 * 36 + 32 * 64 + 64 * 36)),
    ],
)
def test_multiply_accumulates_are_those_counted_by_hand(options, cells, macs):
    state = one_step(corner(1), cell=6, **options)
    assert state.work.details["cells"].tolist() == cells
    assert not state.work.details["dense"].any()
    assert state.work.macs.tolist() == [0, macs]
    assert state.work.dense_macs.tolist() == [sum(DENSE)] * 2
    np.testing.assert_allclose(state.work.changed, [0, 1 / 24**2])


def test_the_strips_seams_are_counted():
    state = one_step(corner(0, 1), cell=6, layout="strip")
    assert state.work.details["cells"].tolist() == [2, 2]
    # K (W - 2) (H - 2) with W = 2 x 10: outputs are 18x8, then 16x6, for two cells.
    macs = 9 * (12 * 18 * 8 + 16 * 16 * 6 + 32 * 18 * 8 + 64 * 16 * 6)
    assert state.work.macs.tolist() == [macs / 2] * 2


def test_a_still_frame_computes_only_what_is_always_dense():
    state = one_step(np.zeros((1, 24, 24), bool), groups=[1])
    assert state.work.details["cells"].tolist() == [0]
    assert state.work.macs.tolist() == [DENSE[0] + DENSE[1]]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_past_the_break_even_a_unit_runs_densely(scheme):
    state = one_step(np.ones((1, 24, 24), bool), **SCHEMES[scheme])
    assert state.work.details["dense"].all()
    assert state.work.macs.tolist() == [sum(DENSE)]


def test_the_break_even_itself_still_runs_on_cells():
    # A 3x3 convolution on 24x24 with cells of 6 has 24^2 / 8^2 = 9 of 16.
    kernel = whole_numbers(0, 3, 3, 3, 4)
    fn = lambda kernel, x: conv(x, kernel)  # noqa: E731
    video = dyncnn(fn, cell=6, **AT_REFERENCE)
    ran = []
    for count in (9, 10):
        mask = np.zeros((4, 4), bool)
        mask.ravel()[:count] = True
        pixels = np.zeros((1, 24, 24), bool)
        pixels[0, 3::6, 3::6] = mask  # in the middle of a cell: reaches no other
        state, _ = video.init(kernel, whole_numbers(0, 1, 24, 24, 3))
        state, out = video.step(kernel, state, whole_numbers(1, 1, 24, 24, 3), pixels)
        assert_identical(out, jax.jit(fn)(kernel, state.reference))
        assert state.work.details["cells"].tolist() == [count]
        ran.append(state.work.details["dense"].item())
    assert ran == [False, True]


def test_init_and_step_are_compiled_once_and_may_be_donated():
    calls = []

    def fn(params, x):
        calls.append(x.shape)
        return two_groups(params, x)

    video = dyncnn(fn, **AT_REFERENCE)
    shape = (1, 24, 24, 3)
    step = jax.jit(video.step, donate_argnums=1)
    state, _ = video.init(TWO, whole_numbers(0, *shape))
    for i, kind in enumerate(KINDS):
        state, out = step(TWO, state, whole_numbers(i, *shape), marks(kind, shape[:3]))
        assert_identical(out, jax.jit(two_groups)(TWO, state.reference))
    assert step._cache_size() == 1
    assert len(calls) <= 2  # traced by init and by the first step at most


# Layers.


def test_comparison_counts_equality_as_changed():
    old = np.zeros((1, 1, 3, 2), np.uint8)
    new = old.copy()
    new[0, 0, 1, 1], new[0, 0, 2] = 20, 19
    assert comparison(new, old, threshold=20).tolist() == [[[False, True, False]]]
    assert comparison(new, old, threshold=20, channels="mean").tolist() == [[[False] * 3]]


def test_position_lists_the_cells_of_all_streams():
    group = dyncnn_groups(three, three_params(), jax.ShapeDtypeStruct((2, 24, 27, 3), "float32"))[0]
    mask = np.zeros((2, 24, 27), bool)
    mask[0, 0, 0] = mask[1, 23, 14] = True
    receptive_fields = [c.receptive_field for c in group.convolutions]
    found = position(mask, receptive_fields, [c.size for c in group.convolutions], cell=6)
    expected = np.zeros_like(mask)
    expected[0, :4, :4] = expected[1, 20:, 11:18] = True
    np.testing.assert_array_equal(found.impacted, expected)
    count = int(found.listed.count)
    listed = [axis[:count].tolist() for axis in found.listed[:3]]
    assert listed == [[0, 1, 1], [0, 3, 3], [0, 1, 2]]


@pytest.mark.parametrize(("side", "count", "convolutions"), [(18, 4, 2), (12, 13, 3)])
def test_a_strip_shrinks_as_the_papers_arrays_do(side, count, convolutions):
    # 18x72 -> 16x70 -> 14x68 and 12x156 -> 10x154 -> 8x152 -> 6x150.
    windows = whole_numbers(0, count, side, side, 2)
    kernel = whole_numbers(1, 3, 3, 2, 2)
    strip, batch = to_strip(windows), windows
    for k in range(1, convolutions + 1):
        strip = conv(strip[None], kernel, padding="VALID")[0]
        batch = conv(batch, kernel, padding="VALID")
        assert strip.shape == (side - 2 * k, count * side - 2 * k, 2)
    valid = from_strip(strip, count=count, pitch=side, width=side - 2 * convolutions)
    np.testing.assert_array_equal(valid, batch)


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "tile"}, "partition must be 'pixel' or 'cell'; got 'tile'"),
        ({"reference": "first"}, "reference must be .*; got 'first'"),
        ({"inputs": "new"}, "inputs must be .*; got 'new'"),
        ({"border": "zero"}, "border must be .*; got 'zero'"),
        ({"layout": "row"}, "layout must be .*; got 'row'"),
        ({"channels": "red"}, "channels must be .*; got 'red'"),
        ({"threshold": -1.0}, "threshold must be a number of at least 0.* got -1.0"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"cell": 0}, "cell must be of at least 1 pixel; got 0"),
        ({"cell": [6, 0]}, "cell must be of at least 1 pixel"),
    ],
)
def test_wrong_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        dyncnn(three, **options)


def test_wrong_groups_and_frames_are_refused_by_init_and_step():
    frames = jnp.zeros((1, 24, 24, 3))
    with pytest.raises(ValueError, match=r"groups must be .* below 2, .*; got \[2\]"):
        dyncnn(two_groups, groups=[2]).init(TWO, frames)
    with pytest.raises(ValueError, match=r"groups must be .*; got \[-1\]"):
        dyncnn(two_groups, groups=[-1]).init(TWO, frames)
    with pytest.raises(ValueError, match=r"groups must be distinct"):
        dyncnn(two_groups, groups=[0, 0]).init(TWO, frames)
    with pytest.raises(ValueError, match="cell must be one side, or one for each of the 2"):
        dyncnn(two_groups, cell=[6, 6, 6]).init(TWO, frames)
    with pytest.raises(ValueError, match="cell must be of at least 1"):
        dyncnn_groups(two_groups, TWO, frames, cell=0)
    with pytest.raises(ValueError, match="frames must be"):
        dyncnn(two_groups).init(TWO, frames[0])
    video = dyncnn(two_groups)
    state, _ = video.init(TWO, frames)
    with pytest.raises(ValueError, match="frames must be as in the state"):
        video.step(TWO, state, frames[:, 1:])
    with pytest.raises(ValueError, match=r"mask must be bool\[1, 24, 24\]"):
        video.step(TWO, state, frames, jnp.zeros((1, 24, 24)))


# Streams, settings and parameters.


def small(p, x):
    x = jax.nn.relu(conv(x, p[0]))
    return conv(jax.nn.relu(x + x.mean((0, 1, 2))), p[1])


def test_streams_thresholds_and_parameters_may_change():
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.integers(-1, 2, (3, 3, c, 4)), jnp.float32) for c in (3, 4)]
    frames = rng.integers(0, 8, (4, 2, 16, 16, 3)).astype(np.float32)
    video = dyncnn(small, reference="last_used", inputs="composite", cell=4)
    dense = jax.jit(small)
    state, _ = video.init(params, frames[0])
    other, _ = video.init(params, frames[1][1:])
    state = dynvid.replace_streams(state, other, jnp.array([False, True]))
    still = np.concatenate([frames[0][:1], frames[1][1:]])
    state, out = video.step(params, state, still)
    np.testing.assert_array_equal(out, dense(params, still))
    # Nothing reaches a threshold of 100, in the second stream alone.
    state, out = video.step(params, state.with_settings(threshold=[0, 100]), frames[2])
    mixed = np.concatenate([frames[2][:1], still[1:]])
    np.testing.assert_array_equal(state.reference, mixed)
    np.testing.assert_array_equal(out, dense(params, mixed))
    changed = [-p for p in params]
    state, out = video.step(changed, state, frames[3])
    np.testing.assert_array_equal(out, dense(changed, frames[3]))
    with pytest.raises(ValueError, match=r"threshold must be .* 2 streams"):
        state.with_settings(threshold=[1, 2, 3])
    with pytest.raises(ValueError, match=r"state must be of this very function.*groups"):
        dyncnn(small, groups=[0]).step(params, state, frames[0])
