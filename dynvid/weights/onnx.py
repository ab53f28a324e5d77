"""Reading ONNX graphs as JAX functions of a frame."""

import dataclasses
import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.errors import one_line
from dynvid.types import Frames, Limits, Output, Params
from dynvid.weights.onnx_check import check_graph, output_numbers
from dynvid.weights.onnx_operators import (
    HWIO,
    NHWC,
    OPERATORS,
    Node,
    Tensor,
    Value,
    as_tensor,
    transposed_kernel,
)

_WEIGHTED = {"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GroupNormalization",
             "InstanceNormalization", "LayerNormalization", "MatMul", "PRelu"}  # fmt: skip
"""Operators whose constants are weights however small; elsewhere a scalar is a literal."""

_STRUCTURAL = {
    "Clip": 1, "ConstantOfShape": 0, "CumSum": 1, "Dropout": 1, "Expand": 1,
    "OneHot": 1, "Pad": 1, "Range": 0, "Reshape": 1,
    "Resize": 1, "Slice": 1, "Split": 1, "Squeeze": 1, "Tile": 1, "TopK": 1,
    "Unsqueeze": 1, "Upsample": 1,
    "ReduceL2": 1, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceSum": 1,
}  # fmt: skip
"""The first input of each operator that must be constant, as all after it must be."""

_FOLDED = frozenset({
    "Abs", "Add", "And", "ArgMax", "ArgMin", "Cast", "Ceil", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Cos", "CumSum", "DequantizeLinear", "Div", "Equal", "Exp", "Expand",
    "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not",
    "OneHot", "Or", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterND", "Shape",
    "Sigmoid", "Sign", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
"""Operators that are computed ahead where all they read is constant: each in one pass over what it
reads and makes, so that their size says what they cost."""


def load_onnx(
    path: str | os.PathLike[str], *, limits: Limits | None = None
) -> tuple["OnnxFunction", Params]:
    """An ONNX vision model as a function of frames and its weights.

    Activations are carried channels-last, kernels are converted to HWIO once, constants are folded
    and batch normalisation that directly follows a convolution is folded into it, so that the
    function traces as a JAX model written by hand would.

    Args:
      path: The `.onnx` file; tensors stored beside it (external data) are read too.
      limits: How large the graph may be, and what folding its constants may make of it; the usual
        ones where None.

    Returns:
      `(fn, params)`: `fn(params, frames)` takes frames `(S, H, W, C)`, floating, in the unit
      that the network was trained on, and returns the graph's output in the graph's own layout
      (a dict by name where there are several); `params` is a dict of arrays by their names in the
      file. A graph that was exported for one image takes several streams all the same.

    Raises:
      FileNotFoundError: There is no such file.
      ImportError: The package `onnx` is missing (`pip install "dynvid[onnx]"`).
      ValueError: The file is not a complete ONNX model, or no graph at all (cycles, names that
        nothing makes); it has operators that are not supported (all of them are named); it does not
        take exactly one input; it is beyond the limits.

    Approximate because sums are taken in another order than by other runtimes, and 64-bit numbers
    become 32-bit.

    >>> fn, params = load_onnx("detector.onnx")  # doctest: +SKIP
    >>> outputs = jax.jit(fn)(params, frames)  # doctest: +SKIP
    """
    limits = limits or Limits()
    onnx = _import_onnx()
    model = _read(onnx, path, limits)
    try:
        return _function(onnx, model, os.fspath(path), limits)
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from error.__cause__
    except Exception as error:
        # Whatever a damaged or hostile graph makes of the reader, the caller gets one line.
        raise ValueError(f"{path}: not a graph that can be read ({one_line(error)})") from error


class _Refused(Exception):  # noqa: N818  (what is wrong with the file, in words)
    """A graph that cannot be a function of frames."""


def _function(onnx: Any, model: Any, name: str, limits: Limits) -> tuple["OnnxFunction", Params]:
    """The function of a graph that was checked."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    graph = model.graph
    nodes = [_node(onnx, proto, opset) for proto in graph.node]
    constants = {i.name: _array(onnx, i) for i in graph.initializer}
    source = _frames_input(graph, constants)
    evaluate = _Evaluator(onnx, model.ir_version, opset, limits)
    outputs = tuple(o.name for o in graph.output)
    nodes = _needed(nodes, outputs)
    nodes = _fold_constants(nodes, constants, evaluate)
    nodes = _fold_batch_normalization(nodes, constants, outputs)
    nodes = _flip_transposed_kernels(nodes, constants)
    nodes = _needed(nodes, outputs)
    params, orders, statics = _split_weights(nodes, constants, outputs)
    function = OnnxFunction(
        name=name,
        nodes=tuple(nodes),
        statics=statics,
        orders=orders,
        source=source.name,
        shape=tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in source.type.tensor_type.shape.dim
        ),
        dtype=_input_dtype(onnx, source),
        outputs=outputs,
        evaluate=evaluate,
        metadata={item.key: item.value for item in model.metadata_props},
    )
    return function, {name: jnp.asarray(array) for name, array in params.items()}


def _frames_input(graph: Any, constants: Mapping[str, np.ndarray]) -> Any:
    """The one input that is no constant."""
    sources = [i for i in graph.input if i.name not in constants]
    if len(sources) != 1:
        names = ", ".join(i.name for i in sources) or "none"
        raise _Refused(f"the graph must have one input, the frames; got {names}")
    if not sources[0].type.tensor_type.HasField("shape"):
        raise _Refused(f"its input {sources[0].name} has no shape")
    return sources[0]


def _input_dtype(onnx: Any, source: Any) -> np.dtype:
    kind = source.type.tensor_type.elem_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except KeyError:
        dtype = np.dtype(object)
    if not (np.issubdtype(dtype, np.number) or dtype.name == "bfloat16"):
        raise _Refused(f"its input {source.name} has elements of type {kind}, which is no number")
    return dtype


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxFunction:
    """A graph as `fn(params, frames)`, made by `load_onnx`.

    Attributes:
      name: The file it came from, for messages.
      shape: The input's shape as the graph states it, `None` where any size is taken.
      dtype: The element type of the input.
      source: The input's name.
      outputs: The outputs' names.
      nodes: What is left to compute, in order.
      statics: Constants that stay NumPy arrays while tracing.
      orders: In which order of axes each weight is stored.
      evaluate: Computes one node on NumPy arrays (shape arithmetic).
      metadata: What the exporter says of the network.
    """

    name: str
    nodes: tuple[Node, ...]
    statics: dict[str, np.ndarray]
    orders: dict[str, tuple[int, ...]]
    source: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    outputs: tuple[str, ...]
    evaluate: "_Evaluator"
    metadata: dict[str, str]

    @property
    def channels_first(self) -> bool:
        """Whether the graph takes images as `(N, C, H, W)`; frames are `(S, H, W, C)` always."""
        if len(self.shape) != 4:
            return False
        few = (1, 3, 4)
        return not (self.shape[3] in few and self.shape[1] not in few)

    @property
    def frame_shape(self) -> tuple[int | None, ...]:
        """The shape of one frame, `(H, W, C)`; `None` where any size is taken."""
        return tuple(self.shape[axis] for axis in (NHWC if self.channels_first else range(4)))[1:]

    def __call__(self, params: Params, frames: Frames) -> Output:
        """The outputs for frames `(S, H, W, C)`; see `load_onnx`."""
        self._check(frames)
        frames = jnp.asarray(frames).astype(self.dtype)
        streams = frames.shape[0]
        if self.shape[0] != 1 or streams == 1:
            return self._run(params, frames, 0)
        try:
            return self._run(params, frames, streams)
        except _MixesStreams:
            # The graph does to its batch of one what must not be done to several streams.
            outputs = jax.vmap(lambda frame: self._run(params, frame[None], 0))(frames)
            return jax.tree.map(lambda y: y[:, 0] if y.shape[1:2] == (1,) else y, outputs)

    def _run(self, params: Params, frames: Frames, streams: int) -> Output:
        """The graph on `frames`; `streams` (0: as the graph says) stand in for its batch of one."""
        order = NHWC if self.channels_first else tuple(range(frames.ndim))
        values: dict[str, Value | None] = {"": None, **self.statics}
        values |= {name: Tensor(array, self.orders[name]) for name, array in params.items()}
        values[self.source] = Tensor(frames, order)
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            dependent = [
                value
                for name, value in zip(node.inputs, inputs, strict=True)
                if name not in params and isinstance(value, Tensor)
            ]
            try:
                results = self._apply(node, inputs, dependent, streams)
            except _MixesStreams:
                raise
            except Exception as error:  # whatever attributes that make no sense lead to
                if streams:
                    raise _MixesStreams from error
                raise ValueError(
                    f"{self.name}: node {node.name!r} ({node.op}): {one_line(error)}"
                ) from error
            values.update(zip(node.outputs, results, strict=False))
        found = {name: _plain(values[name]) for name in self.outputs}
        return found if len(found) > 1 else found[self.outputs[0]]

    def _apply(
        self, node: Node, inputs: list[Value | None], dependent: list[Tensor], streams: int
    ) -> Sequence[Value]:
        if not any(isinstance(value, Tensor) for value in inputs):
            if node.op in _FOLDED:
                return self.evaluate(node, inputs)
            count = _STRUCTURAL.get(node.op, len(inputs))
            inputs = [
                as_tensor(value) if value is not None and k < count else value
                for k, value in enumerate(inputs)
            ]
            streams = 0
        if streams and _mixes_streams(node, inputs, dependent):
            raise _MixesStreams
        if streams and node.op == "Reshape":
            shape = np.array(inputs[1])  # says 1 where it means the batch
            inputs = [
                inputs[0],
                np.where((np.arange(shape.size) == 0) & (shape == 1), streams, shape),
            ]
        result = OPERATORS[node.op](node, *inputs)
        results = result if isinstance(result, tuple) else (result,)
        if any(node.outputs[len(results) :]):
            names = ", ".join(node.outputs[len(results) :])
            raise ValueError(f"its outputs {names} are not supported")
        if streams and any(isinstance(r, Tensor) and r.shape[:1] != (streams,) for r in results):
            raise _MixesStreams
        return results

    def _check(self, frames: Frames) -> None:
        expected = (self.shape[0], *self.frame_shape) if len(self.shape) == 4 else self.shape
        fits = frames.ndim == len(expected) and all(
            size in (None, given)
            for size, given in zip(expected[1:], frames.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join(str(size or "any") for size in expected[1:])
            raise ValueError(f"{self.name}: frames must be (S, {wanted}); got {frames.shape}")
        kind = jnp.floating if np.issubdtype(self.dtype, np.floating) else self.dtype
        if not jnp.issubdtype(frames.dtype, kind):
            raise ValueError(f"{self.name}: frames must be {self.dtype}; got {frames.dtype}")


class _MixesStreams(Exception):  # noqa: N818  (not an error: it asks for one stream at a time)
    """A node of a graph exported for one image cannot take several streams as they are."""


_REDUCING = {name for name in OPERATORS if name.startswith(("Reduce", "Arg"))} | {
    "LogSoftmax", "Softmax", "Squeeze",
}  # fmt: skip


def _mixes_streams(node: Node, inputs: list[Value | None], dependent: list[Tensor]) -> bool:
    """Whether the node would reach across, drop or move the leading axis, where the streams are."""
    rank = dependent[0].ndim
    if node.op in _REDUCING:
        axes = np.asarray(inputs[1]) if len(inputs) > 1 else node.get("axes", node.get("axis"))
        if axes is None and node.op in ("Softmax", "LogSoftmax"):
            return rank == 1
        return axes is None or 0 in np.asarray(axes) % rank
    if node.op == "Transpose":
        return node.get("perm", [rank - 1])[0] != 0
    if node.op in ("Gather", "GatherElements"):
        return node.get("axis", 0) % rank == 0
    if node.op == "TopK":
        return node.get("axis", -1) % rank == 0
    if node.op == "CumSum":
        return int(np.asarray(inputs[1]).reshape(-1)[0]) % rank == 0
    if node.op in ("GatherND", "ScatterND"):
        return True
    if node.op == "Einsum":
        terms = node.get("equation").decode().replace(" ", "").replace("->", ",").split(",")
        return len({term[:1] for term in terms}) > 1 or "." in terms[0]
    if node.op == "Gemm":
        return bool(node.get("transA", 0))
    return any(value.ndim != rank for value in dependent)


def _plain(value: Any) -> Any:
    return value.plain() if isinstance(value, Tensor) else jnp.asarray(value)


def _import_onnx() -> Any:
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            'reading ONNX models needs the package onnx: pip install "dynvid[onnx]"'
        ) from error


def _read(onnx: Any, path: str | os.PathLike[str], limits: Limits) -> Any:
    with open(path, "rb"):
        pass  # the plain errors for a missing file, a folder, a file that may not be read
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors differ from version to version
        raise ValueError(f"{path}: not a complete ONNX model ({one_line(error)})") from error
    if not model.graph.node or not model.graph.output or not model.opset_import:
        raise ValueError(f"{path}: not a complete ONNX model (no graph, output or operator set)")
    if unknown := sorted({_operator(node) for node in model.graph.node} - set(OPERATORS)):
        raise ValueError(f"{path}: operators that are not supported: {', '.join(unknown)}")
    try:
        check_graph(onnx, model, limits)
        onnx.external_data_helper.load_external_data_for_model(model, os.path.dirname(path) or ".")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: its tensors are not beside it ({error})") from error
    except Exception as error:
        raise ValueError(f"{path}: not a graph that can be read ({one_line(error)})") from error
    return model


def _array(onnx: Any, tensor: Any) -> np.ndarray:
    array = np.asarray(onnx.numpy_helper.to_array(tensor))
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _operator(proto: Any) -> str:
    return proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"


def _node(onnx: Any, proto: Any, opset: int) -> Node:
    op = _operator(proto)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
    name = proto.name or next(iter(proto.output), op)
    return Node(op, name, tuple(proto.input), tuple(proto.output), attributes, opset)


class _Evaluator:
    """Computes a node on NumPy arrays, by ONNX's own reference implementation.

    What all its calls make together is limited.
    """

    def __init__(self, onnx: Any, ir_version: int, opset: int, limits: Limits):
        self._onnx, self._ir_version, self._opset = onnx, ir_version, opset
        self._most, self._left = limits.constants, limits.constants
        self._reference = importlib.import_module("onnx.reference").ReferenceEvaluator

    def __call__(self, node: Node, inputs: list[Any]) -> tuple[np.ndarray, ...]:
        helper, given = self._onnx.helper, {}
        for name, value in zip(node.inputs, inputs, strict=True):
            if value is not None:
                given[name] = value
        proto = helper.make_node(node.op, node.inputs, node.outputs, node.name, **node.attributes)
        count = output_numbers(self._onnx, node, proto, given, ir_version=self._ir_version)
        self._left -= count
        if self._left < 0:
            raise ValueError(
                f"node {node.name!r} ({node.op}) would make {count:,} numbers of constants, where "
                f"{self._most:,} in all are the limit"
            )
        infos = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in given.items()
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in node.outputs]
        model = helper.make_model(
            helper.make_graph([proto], node.name, infos, results),
            opset_imports=[helper.make_opsetid("", self._opset)],
            ir_version=self._ir_version,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, about values nobody reads
            found = self._reference(model).run(None, given)
        return tuple(np.asarray(value) for value in found)


def _fold_constants(
    nodes: list[Node], constants: dict[str, np.ndarray], evaluate: _Evaluator
) -> list[Node]:
    kept = []
    for node in nodes:
        if node.op in _FOLDED and all(name in constants for name in node.inputs if name):
            inputs = [constants.get(name) for name in node.inputs]
            constants.update(zip(node.outputs, evaluate(node, inputs), strict=True))
        else:
            kept.append(node)
    return kept


def _fold_batch_normalization(
    nodes: list[Node], constants: dict[str, np.ndarray], outputs: tuple[str, ...]
) -> list[Node]:
    """Scales kernels and biases by the normalisation that alone reads the convolution."""
    readers: dict[str, int] = dict.fromkeys(outputs, 1)
    for name in (name for node in nodes for name in node.inputs):
        readers[name] = readers.get(name, 0) + 1
    writers = {name: k for k, node in enumerate(nodes) for name in node.outputs}
    result: list[Node | None] = [*nodes]
    for k, node in enumerate(nodes):
        if node.op != "BatchNormalization" or node.get("training_mode", 0):
            continue
        place = writers.get(node.inputs[0])
        before = None if place is None else result[place]
        if (
            before is None
            or before.op != "Conv"
            or readers[node.inputs[0]] != 1
            or not all(name in constants for name in (*before.inputs[1:], *node.inputs[1:]) if name)
        ):
            continue
        scale, offset, mean, variance = (constants[name] for name in node.inputs[1:5])
        gain = scale / np.sqrt(variance + node.get("epsilon", 1e-5))
        kernel = constants[before.inputs[1]]
        given = "".join(before.inputs[2:])
        bias = constants[given] if given else 0.0
        normalized = node.outputs[0]
        # Named after the output: the kernel itself may belong to other convolutions too.
        kernel_name, bias_name = f"{normalized}/kernel", f"{normalized}/bias"
        constants[kernel_name] = (kernel * gain[:, None, None, None]).astype(kernel.dtype)
        constants[bias_name] = ((bias - mean) * gain + offset).astype(kernel.dtype)
        inputs = (before.inputs[0], kernel_name, bias_name)
        result[writers[node.inputs[0]]] = None
        result[k] = dataclasses.replace(before, inputs=inputs, outputs=(normalized,))
        writers[normalized] = k
    return [node for node in result if node is not None]


def _flip_transposed_kernels(nodes: list[Node], constants: dict[str, np.ndarray]) -> list[Node]:
    result = []
    for node in nodes:
        if node.op == "ConvTranspose":
            kernel = constants.get(node.inputs[1])
            if kernel is None or kernel.ndim != 4:
                raise ValueError(
                    f"node {node.name!r} (ConvTranspose): the kernel must be a 4-D constant"
                )
            name = f"{node.outputs[0]}/kernel"
            constants[name] = transposed_kernel(kernel, node.get("group", 1))
            inputs = (node.inputs[0], name, *node.inputs[2:])
            node = dataclasses.replace(node, inputs=inputs)
        result.append(node)
    return result


def _needed(nodes: list[Node], outputs: tuple[str, ...]) -> list[Node]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _split_weights(
    nodes: list[Node], constants: dict[str, np.ndarray], outputs: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """Weights, the order of axes each is stored in, and what must be constant while tracing."""
    structural: set[str] = set()
    weighted: set[str] = set()
    orders: dict[str, tuple[int, ...]] = {}
    for node in nodes:
        structural.update(node.inputs[_STRUCTURAL.get(node.op, len(node.inputs)) :])
        if node.op in _WEIGHTED:
            weighted.update(node.inputs)
        if node.op in ("Conv", "ConvTranspose"):
            orders[node.inputs[1]] = HWIO
        elif node.op == "Gemm" and node.get("transB", 0):
            orders[node.inputs[1]] = (1, 0)
    used = {name for node in nodes for name in node.inputs} | set(outputs)
    params, statics = {}, {}
    for name in used & set(constants):
        array = constants[name]
        weight = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
        if weight and name not in structural and (name in weighted or array.size > 1):
            orders.setdefault(name, tuple(range(array.ndim)))
            params[name] = np.ascontiguousarray(array.transpose(orders[name]))
        else:
            statics[name] = array
    return params, {name: orders[name] for name in params}, statics
