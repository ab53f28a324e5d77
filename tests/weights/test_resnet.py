"""ResNets in PyTorch's format: what becomes of them, and of files that are none."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from dynvid.models.deeplab import DeepLabFast
from dynvid.models.modules import from_nnx
from dynvid.models.pspnet import PSPNet
from dynvid.models.resnet import RESNET50, ResNet
from dynvid.models.vgg import VGG16
from dynvid.weights.resnet import LoadReport, load_resnet
from tests.models import reference
from tests.weights.test_pytorch import tensor, torch, write_zip  # noqa: F401

DEPTHS = (2, 1, 2, 1)


@pytest.fixture
def write(torch, tmp_path):  # noqa: F811
    """Writes arrays as torch does; the second argument wraps the state dict."""

    def write(tensors, wrap=lambda state: state, *, name="resnet.pth"):
        keys = {name: str(i) for i, name in enumerate(tensors)}
        state = {name: tensor(torch, keys[name], value) for name, value in tensors.items()}
        storages = {keys[name]: value for name, value in tensors.items()}
        write_zip(tmp_path / name, wrap(state), storages)
        return tmp_path / name

    return write


@functools.cache
def _drawn(**options):
    return ResNet(depths=DEPTHS, width=4, epsilon=0.0, rngs=nnx.Rngs(0), **options)


def narrow(**options):
    return nnx.clone(_drawn(**options))


def values(module):
    return {path: np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(module))}


CLASSIFIER = {"fc.weight": np.ones((10, 128), np.float32), "fc.bias": np.ones(10, np.float32)}


@pytest.mark.parametrize(
    ("stem", "stride_in", "output_stride", "strides", "dilations"),
    [
        (1, "3x3", 32, (1, 2, 2, 2), None),
        (3, "1x1", 16, (1, 2, 2, 1), [(1, 1), (1,), (1, 1), (2,)]),
    ],
)
def test_the_network_is_the_published_one(
    write, stem, stride_in, output_stride, strides, dilations
):
    tensors = reference.resnet_tensors(DEPTHS, 4, stem=stem)
    module = narrow(output_stride=output_stride, stride_in=stride_in, deep_stem=stem == 3)
    report = load_resnet(write(tensors | CLASSIFIER), module)
    assert report == LoadReport((), ("fc.weight", "fc.bias"), ())
    x = reference.frames((45, 64))
    expected = reference.resnet(
        x, tensors, DEPTHS, strides=strides, dilations=dilations, stride_in=stride_in, stem=stem
    )
    fn, params = from_nnx(module)
    found = np.asarray(jax.jit(fn)(params, x))
    assert np.unique(expected).size > 20
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {
            "state_dict": {f"module.backbone.{name}": value for name, value in state.items()}
        },
    ],
)
def test_wrapped_checkpoints_are_the_same(write, wrap):
    tensors = reference.resnet_tensors(DEPTHS, 4)
    plain, wrapped = narrow(), narrow()
    load_resnet(write(tensors), plain)
    assert load_resnet(write(tensors, wrap), wrapped) == LoadReport((), (), ())
    for path, value in values(plain).items():
        np.testing.assert_array_equal(value, values(wrapped)[path])


@pytest.mark.parametrize(("kind", "stem"), [(DeepLabFast, 1), (PSPNet, 3)])
def test_a_larger_network_has_its_backbone_filled(write, kind, stem):
    tensors = reference.resnet_tensors(DEPTHS, 4, stem=stem)
    module = kind(depths=DEPTHS, width=4, rngs=nnx.Rngs(0))
    before = values(module)
    file = write({f"backbone.{k}": v for k, v in tensors.items()} | {"head.weight": np.ones(3)})
    assert load_resnet(file, module).unexpected == ("head.weight",)
    alone = narrow(deep_stem=stem == 3)
    load_resnet(write(tensors), alone)
    after = values(module)
    for path, value in values(alone).items():
        np.testing.assert_array_equal(after["backbone", *path], value)
    for path in before:
        if path[0] != "backbone":
            np.testing.assert_array_equal(after[path], before[path])


def test_shapes_become_arrays(write):
    tensors = reference.resnet_tensors(DEPTHS, 4)
    module = nnx.eval_shape(_drawn.__wrapped__)
    load_resnet(write(tensors), module)
    found = values(module)
    assert all(value.dtype == np.float32 for value in found.values())
    kernel = found["groups", 0, 1, "convs", 1, "conv", "kernel"]
    np.testing.assert_array_equal(kernel, tensors["layer1.1.conv2.weight"].transpose(2, 3, 1, 0))


def test_half_precision_is_read(write):
    tensors = reference.resnet_tensors(DEPTHS, 4)
    half = {k: v.astype(np.float16) if v.ndim else v for k, v in tensors.items()}
    one, other = narrow(), narrow()
    load_resnet(write(tensors), one)
    load_resnet(write(half), other)
    for path, value in values(one).items():
        np.testing.assert_array_equal(value, values(other)[path])


def refused(path, module, match, **options):
    """The loader says so and changes nothing."""
    before = values(module)
    with pytest.raises(ValueError, match=match) as caught:
        load_resnet(path, module, **options)
    after = values(module)
    assert all(np.array_equal(before[p], after[p], equal_nan=True) for p in before)
    return str(caught.value)


def test_another_network_is_said_to_be_one(write):
    deeper = reference.resnet_tensors(RESNET50, 4)
    # Fewer blocks than the file has: all of the network would be filled.
    said = refused(write(deeper | CLASSIFIER), narrow(), "0 missing; 0 of another shape")
    assert f"{len(CLASSIFIER) + 10 * 15} unexpected (layer1.2.conv1.weight, " in said
    assert "layer3.5.conv1.weight" in load_resnet(write(deeper), narrow(), partial=True).unexpected
    stem = {"conv2.weight": deeper["layer1.0.conv2.weight"]}
    refused(write(reference.resnet_tensors(DEPTHS, 4) | stem), narrow(), "conv2.weight")
    # More blocks than it has.
    shallow = reference.resnet_tensors((1, 1, 1, 1), 4)
    said = refused(write(shallow), narrow(), "30 missing")
    assert "layer1.1.conv1.weight, layer1.1.bn1.weight" in said
    assert "..." in said
    # Other widths, and another architecture altogether.
    wide = reference.resnet_tensors(DEPTHS, 8)
    said = refused(write(wide), narrow(), "of another shape")
    assert "conv1.weight: expected (7, 7, 3, 4), got (7, 7, 3, 8)" in said
    other = {"features.0.weight": np.ones((4, 3, 3, 3), np.float32)}
    assert "1 unexpected (features.0.weight)" in refused(write(other), narrow(), "missing")
    assert "features" in refused(write(other), narrow(), "not the weights", partial=True)


def test_part_of_a_network_is_filled_where_asked_for(write):
    """PSPNet's deep stem is in no checkpoint of torchvision; its stages are."""
    tensors = reference.resnet_tensors(DEPTHS, 4)
    tensors = {k: v for k, v in tensors.items() if not k.startswith("layer1.0.")}
    module = narrow(deep_stem=True)
    before = values(module)
    refused(write(tensors), module, "missing")
    report = load_resnet(write(tensors), module, partial=True)
    assert report.wrong_shape == ("conv1.weight",)
    assert {"conv2.weight", "bn3.bias", "layer1.0.conv1.weight"} <= set(report.missing)
    after = values(module)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert ("groups", 2, 1, "convs", 1, "conv", "kernel") in changed
    assert not any(path[:3] == ("groups", 0, 0) for path in changed)
    assert ("stem", 0, "conv", "kernel") not in changed


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("layer2.0.conv2.weight", np.nan, "layer2.0.conv2.weight must be finite; got nan"),
        ("layer1.0.bn1.bias", -np.inf, "must be finite; got -inf"),
        ("bn1.running_var", -1, "bn1.running_var must not be negative; got -1"),
        ("bn1.running_mean", 1e39, "must be finite"),  # in float64; too large for float32
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_what_is_no_weight_is_refused(write, name, value, match, partial):
    tensors = reference.resnet_tensors(DEPTHS, 4)
    tensors[name] = tensors[name].astype(float)
    tensors[name].flat[-1] = value
    refused(write(tensors), narrow(), match, partial=partial)


def test_integers_and_names_that_come_twice_are_refused(write):
    tensors = reference.resnet_tensors(DEPTHS, 4)
    whole = tensors | {"conv1.weight": tensors["conv1.weight"].astype(np.int32)}
    refused(write(whole), narrow(), "conv1.weight must be floating; got int32")
    twice = tensors | {"module.bn1.bias": tensors["bn1.bias"]}
    refused(write(twice), narrow(), "two tensors are bn1.bias, the second as module.bn1.bias")


def test_damaged_files_change_nothing(write, tmp_path):
    whole = write(reference.resnet_tensors(DEPTHS, 4)).read_bytes()
    cut = tmp_path / "cut.pth"
    for kept in (0, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:kept])
        refused(cut, narrow(), "not a complete PyTorch checkpoint")
    with pytest.raises(FileNotFoundError):
        load_resnet(tmp_path / "none.pth", narrow())


@pytest.mark.parametrize("given", [nnx.Linear(2, 2, rngs=nnx.Rngs(0)), VGG16, None])
def test_what_has_no_backbone_is_named(given, tmp_path):
    with pytest.raises(TypeError, match=r"ResNet or have one.*got (Linear|the class VGG16|None)"):
        load_resnet(tmp_path / "any.pth", given)
