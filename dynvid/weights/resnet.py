"""Reading published ResNets in PyTorch's format."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynvid.models.resnet import ConvNorm, ResNet
from dynvid.weights.pytorch import load_pytorch

_PREFIXES = ("module.", "backbone.")
"""What wrappers for several devices, and systems around a backbone, put before its names."""

_OF_A_RESNET = re.compile(r"(layer\d+|conv[1-3]|bn[1-3])\.")
"""Names that tell, where the network has no place for them, that the file is of a deeper one."""

_NAMED = 4  # how many names an error lists of each kind


class LoadReport(NamedTuple):
    """How a checkpoint and a network differ.

    Attributes:
      missing: What the network has and the checkpoint has not, by the checkpoint's names.
      unexpected: What the checkpoint has besides, `fc.weight` and `fc.bias` of a classifier, say.
      wrong_shape: What both have in different shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]


def load_resnet(
    path: str | os.PathLike[str], module: nnx.Module, *, partial: bool = False
) -> LoadReport:
    """Fills a ResNet, or the backbone of a larger network, with a published checkpoint.

    Names are torchvision's: `conv1.weight`, `bn1.running_mean`, `layer1.0.conv1.weight`,
    `layer1.0.downsample.0.weight`; a deep stem adds `conv2`, `bn2`, `conv3` and `bn3`, as in the
    authors' PSPNet in PyTorch. They may be wrapped as `load_pytorch` says, and follow `module.` or
    `backbone.`. Kernels become HWIO, numbers float32.

    Shapes cannot tell where a network strides and how it was fed. torchvision's stride in the 3x3
    convolutions (`stride_in="3x3"`) and take RGB of 0..1 less
    `dynvid.models.resnet.RGB_MEAN`, over `RGB_DEVIATION`, with an epsilon of 1e-5.

    Args:
      path: The `.pth` file; nothing pickled in it is run.
      module: A `ResNet`, or a module whose `backbone` is one, changed in place; shapes, as
        `nnx.eval_shape` makes them, become arrays.
      partial: Whether to fill what fits and leave the rest as it is. Else nothing is changed unless
        every variable of the backbone is filled, and the file has no block or stem beyond them.

    Returns:
      What differs. Only with `partial` is anything missing or of a wrong shape.

    Raises:
      FileNotFoundError: There is no such file.
      TypeError: The module is no ResNet and has none as its backbone.
      ValueError: The file is not a complete checkpoint, or of another network than the backbone
        (with `partial`: in all of its tensors), or it has two tensors for one variable, what is no
        number, or a negative variance.

    Exact where the file holds float32, as the published ones do.

    >>> from dynvid.models.resnet import ResNet50
    >>> network = ResNet50(rngs=nnx.Rngs(0))  # doctest: +SKIP
    >>> load_resnet("resnet50-0676ba61.pth", network).unexpected  # doctest: +SKIP
    ('fc.weight', 'fc.bias')
    """
    backbone = module if isinstance(module, ResNet) else getattr(module, "backbone", None)
    if not isinstance(backbone, ResNet):
        name = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"module must be a ResNet or have one as its backbone; got {name}")
    variables = dict(_variables(backbone))
    found: dict[str, np.ndarray] = {}
    unexpected, foreign = [], []
    for given, tensor in load_pytorch(path).items():
        name = _without_prefixes(given)
        if name in found:
            raise ValueError(f"{path}: two tensors are {name}, the second as {given}")
        if name in variables:
            found[name] = _channels_last(tensor)
        # PyTorch counts training steps beside each normalisation.
        elif not name.endswith(".num_batches_tracked"):
            unexpected.append(given)
            if _OF_A_RESNET.match(name):
                foreign.append(given)

    missing = tuple(name for name in variables if name not in found)
    wrong = tuple(n for n in variables if n in found and found[n].shape != variables[n].shape)
    report = LoadReport(missing, tuple(unexpected), wrong)
    fitting = [name for name in variables if name in found and name not in wrong]
    if not fitting if partial else missing or wrong or foreign:
        shapes = [
            f"{n}: expected {variables[n].shape}, got {found[n].shape}" for n in wrong[:_NAMED]
        ]
        raise ValueError(
            f"{path}: not the weights of this ResNet of {len(variables)} arrays: "
            f"{_count(missing, 'missing', missing)}; "
            f"{_count(wrong, 'of another shape (HWIO)', shapes)}; "
            f"{_count(unexpected, 'unexpected', foreign or unexpected)}"
        )

    arrays = {name: _checked(path, name, found[name]) for name in fitting}
    for name, array in arrays.items():
        variables[name].set_value(jnp.asarray(array))
    return report


def _variables(backbone: ResNet) -> Iterator[tuple[str, Any]]:
    """The variables of a backbone by torchvision's names."""

    def of(layer: ConvNorm, conv: str, norm: str) -> Iterator[tuple[str, Any]]:
        yield f"{conv}.weight", layer.conv.kernel
        yield f"{norm}.weight", layer.norm.scale
        yield f"{norm}.bias", layer.norm.bias
        yield f"{norm}.running_mean", layer.norm.mean
        yield f"{norm}.running_var", layer.norm.var

    for i, layer in enumerate(backbone.stem, start=1):
        yield from of(layer, f"conv{i}", f"bn{i}")
    for stage, group in enumerate(backbone.groups, start=1):
        for i, block in enumerate(group):
            place = f"layer{stage}.{i}"
            for k, layer in enumerate(block.convs, start=1):
                yield from of(layer, f"{place}.conv{k}", f"{place}.bn{k}")
            for layer in block.shortcut:
                yield from of(layer, f"{place}.downsample.0", f"{place}.downsample.1")


def _without_prefixes(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _channels_last(tensor: np.ndarray) -> np.ndarray:
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def _checked(path: str | os.PathLike[str], name: str, tensor: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{path}: {name} must be floating; got {tensor.dtype}")
    with np.errstate(over="ignore"):
        array = tensor.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} must be finite; got {array[~np.isfinite(array)][0]}")
    if name.endswith(".running_var") and array.min() < 0:
        raise ValueError(f"{path}: {name} must not be negative; got {array.min()}")
    return array


def _count(names: Sequence[str], kind: str, described: Sequence[str]) -> str:
    shown = ", ".join(described[:_NAMED])
    dots = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {kind}" + (f" ({shown}{dots})" if names else "")
