"""What `--system` takes: every entry builds, runs, and knows its options."""

import inspect
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import dynvid
from dynvid.incremental import incremental
from dynvid.ops.letterbox import letterbox
from dynvid.systems import dyncnn
from dynvid.systems.dvsnet import THRESHOLDS as POLICIES
from dynvid.systems.flow_detection import THRESHOLDS as KEYS
from dynvid.systems.registry import SYSTEMS
from dynvid.types import replace_streams

FRAMES = [
    jnp.asarray(x)[None]
    for x in np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3)).astype(np.uint8)
]
KERNEL = jnp.asarray(np.random.default_rng(1).integers(-2, 3, (3, 3, 3, 4)), jnp.float32)


class Plain(NamedTuple):
    """A network that takes a camera's frames as they are."""

    fn: Callable
    params: Any
    multiple: int = 1

    def on_frames(self, params, frames):
        return self.fn(params, frames)

    def geometry(self, frame_size):
        return letterbox(frame_size, frame_size)

    def resize(self, frames):
        return frames

    def on_images(self, params, images):
        return self.fn(params, images)

    class_scores = on_images


def fn(kernel, frames):
    x = jax.lax.conv_general_dilated(
        frames.astype(jnp.float32), kernel, (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return checkpoint_name(x, "map") + 1


NETWORK = Plain(fn, KERNEL)


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_system_builds_with_its_defaults_and_runs(name):
    system = SYSTEMS[name]
    assert system.name == name
    assert "\n" not in system.summary
    options = system.settings({})
    assert json.loads(json.dumps(options)) == options
    if name == "ifmdc":
        with pytest.raises(ValueError, match="at must be the name of a feature map"):
            system.build(NETWORK, FRAMES, **options)
        options["at"] = "map"
    assert all(option.allows(options[key]) for key, option in system.options.items())
    if name == "dynamic-inference":  # for networks that score classes, which this one does not
        video = system.build(NETWORK, FRAMES[:1], **options)
        with pytest.raises(ValueError, match="the network must score classes"):
            video.init(KERNEL, FRAMES[0])
        assert sorted(system.clip(options)) == list(range(16))
        return
    video = system.build(NETWORK, FRAMES[: system.calibration_frames], **options)
    state, _ = video.init(KERNEL, FRAMES[0])
    for frame in FRAMES[1:]:
        state, output = video.step(KERNEL, state, frame)
    expected = fn(KERNEL, FRAMES[0])
    if name == "dvsnet":  # whose flow network alone is more than this network
        assert output.labels.shape == expected.shape[:3]
        assert system.score_unit(options) == "%"
        return
    assert jax.tree.map(jnp.shape, output) == jax.tree.map(jnp.shape, expected)
    if name != "flow-detection":  # likewise
        assert 0 <= float(state.work.mac_fraction) <= 1.001


@pytest.mark.parametrize(
    ("name", "by", "expected"),
    [
        ("dvsnet", "policy", POLICIES),
        ("flow-detection", "key", KEYS),
    ],
)
def test_a_threshold_that_is_null_is_that_of_the_rule(name, by, expected):
    settings = SYSTEMS[name].settings
    assert {rule: settings({by: rule})["threshold"] for rule in expected} == expected
    some = next(iter(expected))
    assert settings({by: some, "threshold": None})["threshold"] == expected[some]
    assert settings({by: some, "threshold": 0.125})["threshold"] == 0.125


@pytest.mark.parametrize(("name", "function"), [("incremental", incremental), ("dyncnn", dyncnn)])
def test_options_are_those_of_the_function(name, function):
    expected = {
        parameter.name: parameter.default
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.name != "reach"  # for masks that say what a motion leaves to do
    }
    options = {key: option.default for key, option in SYSTEMS[name].options.items()}
    assert list(options) == list(expected)
    # What a camera needs, not what is exact.
    tuned = {"threshold", "truncation", "changes", "settle", "rotation", "dense_above"}
    assert {k: v for k, v in options.items() if k not in tuned} == {
        k: v for k, v in expected.items() if k not in tuned
    }


@pytest.mark.parametrize(("name", "options", "match"), [
    ("incremental", {"partition": "cell"}, "incremental has no option partition"),
    ("incremental", {"threshold": float("nan")}, "threshold must be a number"),
    ("incremental", {"threshold": 256}, "threshold must be a number between 0 and 255"),
    ("incremental", {"truncation": {"conv_1": float("inf")}}, "truncation must be"),
    ("incremental", {"truncation": [1]}, "truncation must be"),
    ("incremental", {"threshold": 10**400}, "threshold must be"),
    ("dyncnn", {"groups": [-1]}, "groups must be a list of group numbers"),
    ("dyncnn", {"cell": []}, "cell must be"),
    ("dyncnn", {"continuous": 1}, "continuous must be true or false; got 1"),
    ("flow-detection", {"at": 4}, "at must be the name of a feature map"),
    ("flow-detection", {"at": []}, "at must be the name of a feature map"),
    ("flow-detection", {"key": "guess"}, "key must be 'feature_consistency', 'every' or 'all'"),
    ("flow-detection", {"threshold": -2}, "threshold must be a number, a share for"),
    ("flow-detection", {"consistency_threshold": 256}, "consistency_threshold must be a number"),
    ("ifmdc", {"at": 4}, "at must be the name of a feature map"),
    ("ifmdc", {"levels": 0}, "levels must be a positive number; got 0"),
    ("ifmdc", {"low": "a"}, "low must be a number or null"),
    ("ifmdc", {"scan": "cwh"}, "scan must be 'chw' or 'hwc'"),
    ("dvsnet", {"policy": "guess"}, "policy must be 'decision_network', .* or 'fixed_period'"),
    ("dvsnet", {"threshold": -1}, "threshold must be a number of at least 0"),
    ("dvsnet", {"rows": 0}, "rows must be a positive number; got 0"),
    ("dvsnet", {"overlap": 1.5}, "overlap must be a number of pixels of at least 0"),
    ("dvsnet", {"incremental": 1}, "incremental must be true or false; got 1"),
    ("dynamic-inference", {"threshold": 1.5}, "threshold must be a number between 0 and 1, or a"),
    ("dynamic-inference", {"groups": 0}, "groups must be a positive number; got 0"),
    ("dynamic-inference", {"seed": -1}, "seed must be a whole number"),
    ("dense", {"threshold": 1}, "dense has no option threshold; it has none"),
])  # fmt: skip
def test_options_that_are_not_allowed_are_named(name, options, match):
    with pytest.raises(ValueError, match=match):
        SYSTEMS[name].settings(options)


def test_layers_that_are_not_there_are_named():
    layer = dynvid.explain(fn, KERNEL, FRAMES[0]).layers[0]
    build = SYSTEMS["incremental"].build
    options = SYSTEMS["incremental"].settings({"truncation": {layer: 1, "conv_99": 1}})
    with pytest.raises(
        ValueError, match=r"truncation must name layers of the network.*; got conv_99"
    ):
        build(NETWORK, FRAMES, **options)
    build(NETWORK, FRAMES, **(options | {"truncation": {layer: 1}}))


def test_dense_is_the_function_and_all_the_work():
    video = SYSTEMS["dense"].build(NETWORK, FRAMES)
    two = jnp.concatenate(FRAMES[:2])
    state, output = video.init(KERNEL, two)
    np.testing.assert_array_equal(output, fn(KERNEL, two))
    assert state.work.dense_macs.tolist() == [48 * 64 * 27 * 4] * 2
    np.testing.assert_array_equal(state.work.macs, state.work.dense_macs)
    state, output = video.step(KERNEL, state, two[::-1], jnp.zeros((2, 48, 64), bool))
    np.testing.assert_array_equal(output, fn(KERNEL, two[::-1]))
    other, _ = video.init(KERNEL, FRAMES[2])
    assert replace_streams(state, other, jnp.array([True, False])).work.macs.shape == (2,)
