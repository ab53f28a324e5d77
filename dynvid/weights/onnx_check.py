"""What is asked of an ONNX file before anything in it is computed: is it a graph, and how large."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynvid.types import Limits
from dynvid.weights.onnx_operators import Node

_SHAPE_SIZE = 64  # numbers in an input that may say how large an output is


def check_graph(onnx: Any, model: Any, limits: Limits) -> None:
    """Refuses a file that is no graph, or whose tensors are larger than allowed.

    Every name is made once and before it is read, so that there is no cycle; outputs are made; the
    tensors of the file stay within `limits.total` together; what else the standard asks for is
    checked by `onnx.checker`, without the values of external tensors.

    Raises:
      ValueError: One line says what is wrong.
    """
    graph = model.graph
    if len(graph.node) > limits.operations:
        raise ValueError(f"it has {len(graph.node):,} nodes, the limit is {limits.operations:,}")
    numbers = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    if numbers > limits.total or any(min(t.dims, default=0) < 0 for t in graph.initializer):
        raise ValueError(
            f"its tensors have {numbers:,} numbers in all, the limit is {limits.total:,}"
        )
    if graph.sparse_initializer:
        raise ValueError("sparse tensors are not supported")
    given = [*graph.initializer, *graph.input]
    made = {item.name for item in given}
    for node in graph.node:
        what = f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"
        for name in node.input:
            if name and name not in made:
                later = any(name in other.output for other in graph.node)
                why = "made later: out of order or in a circle" if later else "made nowhere"
                raise ValueError(f"{what} reads {name!r}, which is {why}")
        for name in node.output:
            if name and name in made:
                raise ValueError(f"{what} makes {name!r} once more")
            made.add(name)
    if missing := [output.name for output in graph.output if output.name not in made]:
        raise ValueError(f"nothing makes its output {missing[0]!r}")
    for output in graph.output:  # what nobody needs, but the checker asks for
        if not output.HasField("type"):
            output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ValueError(" ".join(str(error).split())) from None


def output_numbers(
    onnx: Any, node: Node, proto: Any, given: Mapping[str, np.ndarray], *, ir_version: int
) -> int:
    """How many numbers a node makes of constants, without computing them.

    Args:
      onnx: The package.
      node: The node.
      proto: The same as ONNX has it.
      given: Its inputs that are there.
      ir_version: Of the file.

    Raises:
      ValueError: It cannot be said: inputs or attributes do not fit the operator.
    """
    if node.op == "NonZero":
        return sum(array.ndim * array.size for array in given.values())
    helper, inference = onnx.helper, onnx.shape_inference
    opset = helper.make_opsetid("", node.opset)
    types = {
        name: helper.make_tensor_type_proto(_type(onnx, array), array.shape)
        for name, array in given.items()
    }
    small = {
        name: onnx.numpy_helper.from_array(array)
        for name, array in given.items()
        if array.size <= _SHAPE_SIZE
    }
    try:
        schema = onnx.defs.get_schema(node.op, node.opset, "")
        found = inference.infer_node_outputs(schema, proto, types, small, opset_imports=[opset],
                                             ir_version=ir_version)  # fmt: skip
    except (inference.InferenceError, onnx.defs.SchemaError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    largest = max((array.size for array in given.values()), default=1)
    return sum(_numbers(found[name].tensor_type.shape.dim, largest) for name in found)


def _type(onnx: Any, array: np.ndarray) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(array.dtype)


def _numbers(dims: Sequence[Any], largest: int) -> int:
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    # Where inference leaves a side open, the operators that are folded take parts of what they got.
    known = [max(size, 0) for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else largest
