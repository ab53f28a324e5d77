"""Writes a traced frame function as an ONNX graph, for the dense baseline in onnxruntime.

Covers what the benchmark's convolutional networks trace to; anything else is an error.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dynvid.graph.evaluate import constant_fold
from dynvid.graph.trace import trace

_ELEMENTWISE = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
}


class _Writer:
    def __init__(self):
        self.nodes, self.constants, self.names = [], [], {}

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, kind, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def operand(self, value):
        """A value, channels first; constants are moved there as they are written."""
        if value in self.names:
            return self.names[value]
        array = constant_fold(value)
        if array is None:
            raise ValueError(f"no constant and no operation: {value}")
        return self.constant(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)


def export(fn, params, frames, path):
    """Writes `fn(params, frames)` with its weights to `path`; NHWC becomes NCHW."""
    graph = trace(lambda _, x: fn(params, x), None, frames)
    writer = _Writer()
    writer.names[graph.frames] = "frames"
    for node in graph.nodes:
        if not node.outputs[0].frame_dependent:
            continue
        name, p, out = node.primitive.name, node.params, node.outputs[0]
        if name in _ELEMENTWISE:
            operands = map(writer.operand, node.inputs)
            writer.names[out] = writer.node(_ELEMENTWISE[name], *operands)
        elif name == "conv_general_dilated":
            kernel = constant_fold(node.inputs[1]).transpose(3, 2, 0, 1)
            (top, bottom), (left, right) = p["padding"]
            writer.names[out] = writer.node(
                "Conv",
                writer.operand(node.inputs[0]),
                writer.constant(kernel),
                strides=p["window_strides"],
                dilations=p["rhs_dilation"],
                pads=[top, left, bottom, right],
                group=p["feature_group_count"],
            )
        elif name == "reduce_window_max":
            (top, bottom), (left, right) = p["padding"][1:3]
            writer.names[out] = writer.node(
                "MaxPool",
                writer.operand(node.inputs[0]),
                kernel_shape=p["window_dimensions"][1:3],
                strides=p["window_strides"][1:3],
                pads=[top, left, bottom, right],
            )
        elif name == "name":
            writer.names[out] = writer.operand(node.inputs[0])
        elif name == "square":
            factor = writer.operand(node.inputs[0])
            writer.names[out] = writer.node("Mul", factor, factor)
        elif name == "reduce_sum" and p["axes"] == (3,):
            axes = writer.constant(np.array([1]))
            writer.names[out] = writer.node("ReduceSum", writer.operand(node.inputs[0]), axes)
        elif name == "broadcast_in_dim" and node.inputs[0].ndim == 3 and out.shape[3] == 1:
            writer.names[out] = writer.operand(node.inputs[0])  # the sum above kept the axis
        elif name == "concatenate" and p["dimension"] == 3:
            operands = map(writer.operand, node.inputs)
            writer.names[out] = writer.node("Concat", *operands, axis=1)
        elif name == "broadcast_in_dim" and out.ndim > 4:
            writer.names[out] = writer.operand(node.inputs[0])  # the reshape below repeats
        elif name == "reshape" and out.ndim == 4:
            source = node.inputs[0].node.inputs[0]
            scale = [out.shape[1] / source.shape[1], out.shape[2] / source.shape[2]]
            writer.names[out] = writer.node(
                "Resize",
                writer.operand(node.inputs[0]),
                "",
                writer.constant(np.array([1, 1, *scale], np.float32)),
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
        else:
            raise ValueError(f"no ONNX operator for {name} {out.shape}")
    n, h, w, c = frames.shape
    model = helper.make_model(
        helper.make_graph(
            writer.nodes,
            "network",
            [helper.make_tensor_value_info("frames", TensorProto.FLOAT, [n, c, h, w])],
            [
                helper.make_tensor_value_info(writer.names[v], TensorProto.FLOAT, None)
                for v in graph.outputs
            ],
            writer.constants,
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, path)
