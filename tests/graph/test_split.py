"""Cutting functions in two: exact, at any place, with nothing carried that is not read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name

import dynvid
from dynvid.graph.evaluate import evaluate
from dynvid.graph.split import Features, split
from dynvid.graph.trace import trace
from tests.contract.zoo import BY_NAME, ZOO, act, clip, conv, upsample

FRAME = (1, 8, 10, 3)


def integers(*shape, seed=0, low=-1, high=2):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(low, high, shape), jnp.float32)


def frames(seed=0):
    return integers(*FRAME, seed=seed, high=8, low=0)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(a, b)


def carried(fn, params, at, x=None):
    """The names of the other values that cross."""
    struct = jax.ShapeDtypeStruct(FRAME, jnp.float32) if x is None else x
    return list(jax.eval_shape(split(fn, at=at).front, params, struct).others)


def named(fn):
    """`fn` with a name for every value that depends on the frames: `v0`, `v1`, ..."""

    def marked(params, x):
        graph = trace(
            fn, jax.eval_shape(lambda p: p, params), jax.ShapeDtypeStruct(x.shape, x.dtype)
        )
        arrays = {graph.frames: jnp.asarray(x)}
        count = 0
        for node in graph.nodes:
            arrays |= dict(
                zip(node.outputs, evaluate(node.outputs, params=params, given=arrays), strict=True)
            )
            for value in node.outputs:
                if value.frame_dependent:
                    arrays[value] = checkpoint_name(arrays[value], f"v{count}")
                    count += 1
        return jax.tree.unflatten(
            graph.structure, evaluate(graph.outputs, params=params, given=arrays)
        )

    return marked


def names_of(fn, params, x):
    graph = trace(fn, jax.eval_shape(lambda p: p, params), jax.ShapeDtypeStruct(x.shape, x.dtype))
    marks = [n for n in graph.nodes if n.primitive.name == "name"]
    return [n.params["name"] for n in marks], graph


def reads_of(jaxpr):
    """Which arguments of a jaxpr an operation, or a result, reads."""
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    return [id(v) in used for v in jaxpr.invars]


def ids(network):
    return network.name


# Any cut of any network.


@pytest.mark.parametrize("network", ZOO, ids=ids)
def test_any_cut_of_any_network_is_exact(network):
    params = network.params(integer=network.integer)
    x = jnp.asarray(clip(network, integer=network.integer)[2])
    fn = named(network.fn)
    places, _ = names_of(fn, params, x)
    rng = np.random.default_rng(len(places))
    if network.integer:
        expected = jax.jit(network.fn)(params, x)
    else:
        with jax.disable_jit():
            expected = network.fn(params, x)
    cuts = [[places[0]], [places[-1]], *(rng.choice(places, n, replace=False) for n in (1, 1, 2))]
    for at in cuts:
        front, back = split(fn, at=list(dict.fromkeys(map(str, at))))
        assert_identical(back(params, front(params, x)), expected)


@pytest.mark.parametrize("network", ZOO, ids=ids)
def test_every_carried_value_is_read_and_frames_cross_only_where_they_must(network):
    params = jax.eval_shape(lambda p: p, network.params(integer=network.integer))
    first = clip(network, integer=network.integer)[0]
    x = jax.ShapeDtypeStruct(first.shape, first.dtype)
    fn = named(network.fn)
    places, graph = names_of(fn, params, x)
    rng = np.random.default_rng(1)
    for at in rng.permutation(places)[:12]:
        front, back = split(fn, at=str(at))
        features = jax.eval_shape(front, params, x)
        closed = jax.make_jaxpr(back)(params, features)
        leaves = len(jax.tree.leaves(params))
        read = reads_of(closed.jaxpr)[leaves:]
        assert all(read[len(jax.tree.leaves(features.named)) :])
        if "frames" in features.others:
            assert frames_needed(graph, str(at))


def frames_needed(graph, at):
    """Whether an output is the frames, or something that depends on `at` reads them."""
    below = set()
    for node in graph.nodes:
        if node.params.get("name") == at or any(v in below for v in node.inputs):
            below.update(node.outputs)
    reads = [v for n in graph.nodes if below & set(n.outputs) for v in n.inputs]
    return graph.frames in [*reads, *graph.outputs]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_graphs_at_random_cuts(data):
    """Elementwise graphs of random wiring: every cut gives the same numbers."""
    count = data.draw(st.integers(2, 9))
    wires = [
        data.draw(st.tuples(st.integers(-1, i - 1), st.integers(-1, i - 1))) for i in range(count)
    ]
    outputs = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True))

    def fn(p, x):
        values = [x]
        for i, (a, b) in enumerate(wires):
            values.append(checkpoint_name(values[a + 1] * p + values[b + 1], f"v{i}"))
        return [values[i + 1] for i in outputs]

    x, p = frames(), jnp.float32(2)
    places, _ = names_of(fn, p, x)
    at = data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=3, unique=True))
    front, back = split(fn, at=at)
    assert_identical(back(p, front(p, x)), fn(p, x))


@pytest.mark.parametrize("name", ["pyramid", "residual", "shuffle", "camera"])
def test_integer_networks_are_exact_however_they_are_compiled(name):
    network = BY_NAME[name]
    params, x = network.params(integer=True), clip(network, integer=True)[3]
    fn = named(network.fn)
    places, _ = names_of(fn, params, x)
    front, back = split(fn, at=places[len(places) // 2])
    expected = jax.jit(network.fn)(params, x)
    assert_identical(jax.jit(back)(params, jax.jit(front)(params, x)), expected)
    assert_identical(jax.jit(lambda p, x: back(p, front(p, x)))(params, x), expected)


@pytest.mark.parametrize("name", ["activations", "letterbox", "averages", "attention"])
def test_one_program_of_both_parts_is_the_program_of_the_whole(name):
    network = BY_NAME[name]
    params, x = network.params(integer=False), clip(network, integer=False)[3]
    fn = named(network.fn)
    places, _ = names_of(fn, params, x)
    for at in places[:: len(places) // 3]:
        front, back = split(fn, at=at)
        joined = jax.jit(lambda p, x: back(p, front(p, x)))  # noqa: B023
        assert_identical(joined(params, x), jax.jit(fn)(params, x))


def test_the_front_runs_incrementally():
    network = BY_NAME["pyramid"]
    params = network.params(integer=True)
    fn = named(network.fn)
    images = clip(network, integer=True)[:5]
    places, _ = names_of(fn, params, images[0])
    front, back = split(fn, at=places[2 * len(places) // 3])
    video = dynvid.incremental(front)
    front, back, dense = jax.jit(front), jax.jit(back), jax.jit(network.fn)
    state, _ = video.init(params, images[0])
    fractions = []
    for x in images:
        state, features = video.step(params, state, x)
        assert_identical(features, front(params, x))
        assert_identical(back(params, features), dense(params, x))
        fractions.append(float(state.work.mac_fraction))
    assert fractions[:2] == [0, 0]  # still
    assert 0 < max(fractions) < 1


# What crosses.


def skip(p, x):
    """A skip connection across the cut, and a map that only the front needs."""
    a = act(conv(x, p[0]))
    b = act(conv(a, p[1]))
    c = checkpoint_name(act(conv(b, p[2])), "c")
    return conv(c, p[3]) + a


SKIP = [integers(3, 3, 3, 4, seed=1), *(integers(3, 3, 4, 4, seed=s) for s in (2, 3, 4))]


def test_a_skip_connection_is_carried_and_nothing_else():
    front, back = split(skip, at="c")
    features = front(SKIP, frames())
    assert len(features.others) == 1
    np.testing.assert_array_equal(
        next(iter(features.others.values())), act(conv(frames(), SKIP[0]))
    )
    assert_identical(back(SKIP, features), skip(SKIP, frames()))


def test_the_back_reads_the_named_value_and_not_what_it_came_from():
    front, back = split(skip, at="c")
    features = front(SKIP, frames())
    other = dataclasses.replace(features, named={"c": features["c"] + 1})
    (a,) = features.others.values()
    np.testing.assert_array_equal(back(SKIP, other), conv(features["c"] + 1, SKIP[3]) + a)


def test_a_value_read_under_its_name_and_without_it_is_one():
    def fn(p, x):
        y = x * p
        z = checkpoint_name(checkpoint_name(y, "inner"), "outer")
        return y + 1, z * 2, checkpoint_name(z, "third")

    p = jnp.float32(3)
    for at in ("inner", "outer", "third"):
        front, back = split(fn, at=at)
        features = front(p, frames())
        assert not features.others
        assert_identical(back(p, features), fn(p, frames()))
        doubled = dataclasses.replace(features, named={at: features[at] * 2})
        assert_identical(back(p, doubled)[0], 6 * frames() + 1)


def test_the_values_that_cross_keep_their_names():
    def fn(p, x):
        a = checkpoint_name(x * p, "layer_0")
        b = checkpoint_name(a + 1, "layer_1")
        return checkpoint_name(b * a, "layer_2")

    assert carried(fn, jnp.float32(2), "layer_1") == ["layer_0"]

    def renamed(p, x):
        a = checkpoint_name(checkpoint_name(x * p, "layer_0"), "layer_1")
        return checkpoint_name(a + 1, "layer_2") * a

    assert carried(renamed, jnp.float32(2), "layer_2") == ["layer_0"]


def test_several_names_and_one_that_the_other_needs():
    def fn(p, x):
        c3 = checkpoint_name(act(conv(x, p[0])), "c3")
        lateral = conv(c3, p[2])  # written before c5, but it reads c3: part of the back
        c4 = act(conv(c3, p[1]))
        c5 = checkpoint_name(act(conv(c4, p[1])), "c5")
        return lateral + c5, c4

    params = SKIP
    front, back = split(fn, at=("c3", "c5"))
    features = front(params, frames())
    assert list(features.named) == ["c3", "c5"]
    assert len(features.others) == 1  # c4, an output
    assert_identical(back(params, features), fn(params, frames()))
    changed = dataclasses.replace(features, named={**features.named, "c3": 0 * features["c3"]})
    assert_identical(back(params, changed)[0], features["c5"])


def test_a_name_given_to_several_values():
    def fn(p, x):
        a, b = checkpoint_name((x * p, x + p), "pair")
        return a - b

    front, back = split(fn, at="pair")
    features = front(jnp.float32(5), frames())
    assert [part.shape for part in features["pair"]] == [FRAME, FRAME]
    assert_identical(back(jnp.float32(5), features), fn(jnp.float32(5), frames()))


def test_frames_cross_only_where_the_back_must_read_them():
    def after(p, x):
        y = checkpoint_name(conv(x, p), "y")
        gate = jnp.max(x * 2, axis=(1, 2, 3))  # of the frames alone: moves before the cut
        return y * gate

    def blend(p, x):
        y = checkpoint_name(conv(x, p), "y")
        return y + x[..., :1]

    kernel = integers(3, 3, 3, 1)
    assert len(names := carried(after, kernel, "y")) == 1
    assert names[0].startswith("reduce_max")
    names = carried(blend, kernel, "y")
    assert len(names) == 1
    assert names[0].startswith("slice")  # the one channel that is read, made before the cut
    assert carried(lambda p, x: checkpoint_name(x * p, "y") + x, jnp.float32(2), "y") == ["frames"]


def test_a_second_branch_behind_shared_preprocessing_stays_in_the_front():
    def fn(p, x):
        x = x / 255 - 0.5
        a = checkpoint_name(conv(x, p[0], 2), "a")
        b = conv(x, p[0], 4)
        return a.sum() + conv(b, p[1]).sum()

    (name,) = carried(fn, SKIP, "a")
    assert name.startswith("reduce_sum")


def test_what_comes_before_the_cut_is_in_the_front():
    def fn(p, x):
        trunk = checkpoint_name(act(conv(x, p[0])), "trunk")
        side = checkpoint_name(conv(trunk, p[1], 2), "side")
        y = checkpoint_name(conv(trunk, p[2]), "y")
        return conv(y, p[3], 2) + side

    assert carried(fn, SKIP, "y") == ["side"]
    assert carried(fn, SKIP, "side") == ["trunk"]


def test_another_branch_that_follows_is_in_the_back():
    def fn(p, x):
        trunk = checkpoint_name(act(conv(x, p[0])), "trunk")
        coarse = checkpoint_name(conv(trunk, p[1], 2), "coarse")
        fine = conv(act(conv(trunk, p[1])), p[2])
        return coarse, fine

    assert carried(fn, SKIP, "coarse") == ["trunk"]
    features = jax.eval_shape(split(fn, at="coarse").front, SKIP, frames())
    explained = dynvid.explain(split(fn, at="coarse").front, SKIP, frames())
    convolutions = [row for row in explained.rows if row.operation == "conv_general_dilated"]
    assert len(convolutions) == 2
    assert features["coarse"].shape == (1, 4, 5, 4)


def test_what_is_only_arranged_anew_crosses_once_and_small():
    def fn(p, x):
        y = checkpoint_name(conv(x, p), "y")
        mean = x.mean((1, 2, 3), keepdims=True)
        return y * jnp.broadcast_to(mean, y.shape), y + mean, mean.reshape(-1)

    kernel = integers(3, 3, 3, 1)
    shapes = jax.eval_shape(split(fn, at="y").front, kernel, frames()).others
    assert [value.shape for value in shapes.values()] == [(1, 1, 1, 1)]
    front, back = split(fn, at="y")
    with jax.disable_jit():
        expected = fn(kernel, frames())
    assert_identical(back(kernel, front(kernel, frames())), expected)


def test_what_depends_on_parameters_alone_does_not_cross():
    def fn(p, x):
        kernel = p["kernel"] * p["gain"]
        y = checkpoint_name(conv(x, kernel), "y")
        return conv(y, kernel), kernel, jnp.arange(3), 4.0

    params = {"kernel": integers(3, 3, 3, 3), "gain": 2.0}
    assert carried(fn, params, "y") == []
    front, back = split(fn, at="y")
    assert_identical(back(params, front(params, frames())), fn(params, frames()))


def test_outputs_that_are_ready_are_carried():
    def fn(p, x):
        y = checkpoint_name(x * p, "y")
        return {"y": y, "frames": x, "early": x + 1, "late": jnp.sin(y)}

    p = jnp.float32(2)
    front, back = split(fn, at="y")
    features = front(p, frames())
    assert len(features.others) == 2
    assert "frames" in features.others
    assert_identical(back(p, features), fn(p, frames()))


def test_a_cut_at_the_frames_and_at_the_output():
    def fn(p, x):
        x = checkpoint_name(x, "in")
        return checkpoint_name(upsample(conv(x, p)), "out")

    kernel = integers(3, 3, 3, 2)
    for at in ("in", "out"):
        assert carried(fn, kernel, at) == []
        front, back = split(fn, at=at)
        assert_identical(back(kernel, front(kernel, frames())), fn(kernel, frames()))


def test_parts_can_be_cut_again():
    front, back = split(functools.partial(named(skip)), at="v8")
    first, second = split(front, at="v3")
    features = second(SKIP, first(SKIP, frames()))
    assert isinstance(features, Features)
    assert_identical(back(SKIP, features), skip(SKIP, frames()))


def test_parts_are_ordinary_functions():
    front, back = split(skip, at="c")
    grad = jax.grad(lambda p: back(p, front(p, frames())).sum())(SKIP)
    assert_identical(grad, jax.grad(lambda p: skip(p, frames()).sum())(SKIP))
    batch = jnp.stack([frames(0), frames(1)])
    found = jax.vmap(lambda x: back(SKIP, front(SKIP, x)))(batch)
    assert_identical(found, jnp.stack([skip(SKIP, x) for x in batch]))
    leaves, structure = jax.tree.flatten(front(SKIP, frames()))
    shapes = jax.eval_shape(front, SKIP, frames())
    assert structure == jax.tree.structure(shapes)  # what a receiver rebuilds features with
    assert_identical(
        back(SKIP, jax.tree.unflatten(jax.tree.structure(shapes), leaves)), skip(SKIP, frames())
    )


def test_one_executable_serves_all_frames():
    front, back = split(skip, at="c")
    front, back = jax.jit(front), jax.jit(back)
    for seed in range(3):
        back(SKIP, front(SKIP, frames(seed)))
    assert front._cache_size() == back._cache_size() == 1


# What cannot be.


def test_unknown_names_are_reported_with_those_that_exist():
    front, _ = split(named(skip), at="v99")
    with pytest.raises(ValueError, match=r"at must name .*; got 'v99'.*its names are: v0, v1, v2"):
        front(SKIP, frames())
    front, _ = split(lambda p, x: x * p, at="y")
    with pytest.raises(ValueError, match="its names are: none"):
        front(1.0, frames())


def test_a_name_that_no_output_needs_is_unknown():
    def fn(p, x):
        checkpoint_name(x * p, "lost")
        return checkpoint_name(x + p, "kept")

    with pytest.raises(ValueError, match=r"got 'lost'.*names are: kept"):
        split(fn, at=("kept", "lost")).front(1.0, frames())


@pytest.mark.parametrize("at", [(), ("a", "a"), []])
def test_no_name_or_one_twice_is_refused(at):
    with pytest.raises(ValueError, match="at must be a name or several"):
        split(skip, at=at)


def test_a_value_of_parameters_alone_is_no_cut():
    def fn(p, x):
        return x * checkpoint_name(p * 2, "gain")

    with pytest.raises(ValueError, match="at must name what depends on the frames; got 'gain'"):
        split(fn, at="gain").front(1.0, frames())


def test_features_that_do_not_belong_are_refused():
    front, back = split(skip, at="c")
    features = front(SKIP, frames())
    with pytest.raises(ValueError, match=r"named\['c'\] must be float32\[1, 8, 10, 4\]"):
        back(SKIP, dataclasses.replace(features, named={"c": features["c"][:, 1:]}))
    with pytest.raises(ValueError, match=r"got float16\[1, 8, 10, 4\]"):
        back(SKIP, dataclasses.replace(features, named={"c": features["c"].astype(jnp.float16)}))
    with pytest.raises(ValueError, match=r"features.others must be those of this cut"):
        back(SKIP, dataclasses.replace(features, others={}))
    with pytest.raises(ValueError, match="features must be what front returns; got dict"):
        back(SKIP, {"c": features["c"]})
