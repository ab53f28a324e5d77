"""Networks that are cut in two, and how both sides make sure that they run the same one."""

import dataclasses
import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

import dynvid
from dynvid.graph.split import Features
from dynvid.graph.trace import Value, trace
from dynvid.ops.boxes import Detections
from dynvid.types import Frames, Output, Params


@dataclasses.dataclass(frozen=True, eq=False)
class SplitNetwork:
    """A detector in two parts, for frames of one size.

    Attributes:
      name: for messages and reports.
      cut: the name of the feature map that crosses.
      frames: shape and dtype of the frames, `uint8[1, H, W, 3]`.
      feature: shape and dtype of the feature map, floating, `[1, h, w, c]`.
      params: the weights, all of them on both sides.
      front: `front(params, frames) -> feature`.
      back: `back(params, feature) -> Detections`, in pixels of the frames; jitted.
      whole: `whole(params, frames) -> Detections`, the same network in one piece; jitted.
      class_names: of the detections' classes.
      identity: what both sides compare: see `differences`.
    """

    name: str
    cut: str
    frames: jax.ShapeDtypeStruct
    feature: jax.ShapeDtypeStruct
    params: Params
    front: Callable[[Params, Frames], jax.Array]
    back: Callable[[Params, jax.Array], Detections]
    whole: Callable[[Params, Frames], Detections]
    class_names: tuple[str, ...]
    identity: dict[str, str]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames."""
        height, width = self.frames.shape[1:3]
        return height, width


def split_network(
    name: str,
    network: Callable[[Params, Frames], Output],
    decode: Callable[[Params, Output], Detections],
    params: Params,
    *,
    cut: str,
    size: tuple[int, int],
    class_names: tuple[str, ...] = (),
) -> SplitNetwork:
    """Cuts a detector where one feature map crosses.

    Args:
      name: for messages and reports.
      network: `network(params, frames) -> outputs` for `uint8[1, *size, 3]`.
      decode: `decode(params, outputs) -> Detections`; part of the back.
      params: the weights.
      cut: a name that `network` gives (Darknet networks: `layer_12`), or `convolution_12`: what
        its 12th convolution reads, counted from 0 in the order of execution.
      size: (height, width) of the frames.
      class_names: of the detections' classes.

    Raises:
      ValueError: there is no such name, or more than that one feature map crosses there.
    """
    if cut.startswith("convolution_"):
        network = _with_names(network)
    frames = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda p: p, params)

    def whole(params: Params, frames: Frames) -> Detections:
        return decode(params, network(params, frames))

    split = dynvid.split(whole, at=cut)
    features = jax.eval_shape(split.front, shapes, frames)
    feature = features.named[cut]
    if features.others or not isinstance(feature, jax.ShapeDtypeStruct):
        others = ", ".join(features.others) or "several maps of that name"
        raise ValueError(f"one feature map must cross the cut; at {cut} there is also {others}")
    if len(feature.shape) != 4 or not jnp.issubdtype(feature.dtype, jnp.floating):
        raise ValueError(
            f"a floating (1, h, w, c) must cross the cut; {cut} is {feature.dtype} {feature.shape}"
        )

    def front(params: Params, frames: Frames) -> jax.Array:
        value = split.front(params, frames)[cut]
        assert not isinstance(value, tuple)
        return value

    @jax.jit
    def back(params: Params, value: jax.Array) -> Detections:
        return split.back(params, Features({cut: value.astype(feature.dtype)}, {}, frames))

    identity = {
        "network": f"{name} cut at {cut}",
        "frames": "x".join(map(str, frames.shape[1:3])),
        "program": _program(whole, shapes, frames),
        "parameters": _contents(params),
        "jax": jax.__version__,
    }
    return SplitNetwork(
        name, cut, frames, feature, params, front, back, jax.jit(whole), class_names, identity
    )


def differences(own: dict[str, str], other: dict[str, Any]) -> str | None:
    """In what two sides' networks differ, in words; None where they are the same.

    The version of JAX alone is no difference, but it may be why the programs differ.
    """
    named = [
        f"{key} {other.get(key)} here {own[key]}"
        for key in ("network", "frames")
        if own[key] != other.get(key)
    ]
    if named:
        return "the edge has " + ", ".join(named)
    if own["parameters"] != other.get("parameters"):
        return f"both run {own['network']}, with other parameters"
    if own["program"] != other.get("program"):
        return (
            f"both run {own['network']}, as other programs (JAX {other.get('jax')} there, "
            f"{own['jax']} here)"
        )
    return None


def _with_names(fn: Callable[[Params, Frames], Output]) -> Callable[[Params, Frames], Output]:
    """The same function with a name for what each convolution reads: `convolution_0` and so on."""

    def named(params: Params, frames: Frames) -> Output:
        struct = jax.ShapeDtypeStruct(frames.shape, frames.dtype)
        graph = trace(fn, jax.eval_shape(lambda p: p, params), struct)
        leaves = jax.tree.leaves(params)
        arrays: dict[Value, Any] = {graph.frames: frames}

        def read(value: Value) -> Any:
            if value in arrays:
                return arrays[value]
            return leaves[value.argument] if value.constant is None else value.constant

        count = 0
        for node in graph.nodes:
            if node.primitive.name == "conv_general_dilated":
                source = node.inputs[0]
                arrays[source] = checkpoint_name(read(source), f"convolution_{count}")
                count += 1
            arrays.update(zip(node.outputs, node.bind(*map(read, node.inputs)), strict=True))
        return jax.tree.unflatten(graph.structure, [read(value) for value in graph.outputs])

    return named


def _program(fn: Callable, *shapes: Any) -> str:
    """A fingerprint of what a function computes, whatever its parameters are."""
    closed = jax.make_jaxpr(fn)(*shapes)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for constant in closed.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()[:32]


def _contents(params: Params) -> str:
    """A fingerprint of a pytree of arrays: names, shapes, dtypes and every byte."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]
