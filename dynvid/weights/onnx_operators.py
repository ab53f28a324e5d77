"""ONNX operators as JAX traces them best: activations are carried channels-last.

A value of the graph is either a NumPy array, constant while tracing (shapes, axes, scalars), or a
`Tensor`: an array stored in an order of axes of its own. Operators that do not care about the
order (elementwise, concatenation, reductions) run in the order they find, `Transpose` only renames
axes, and data moves only where an operator asks for another order. So a network exported as NCHW
runs as NHWC from its first convolution to its last, with no transposition in between.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_DTYPES = {
    1: jnp.float32, 2: jnp.uint8, 3: jnp.int8, 4: jnp.uint16, 5: jnp.int16, 6: jnp.int32,
    7: jnp.int32, 9: jnp.bool_, 10: jnp.float16, 11: jnp.float32, 12: jnp.uint32,
    13: jnp.uint32, 16: jnp.bfloat16,
}  # fmt: skip
"""ONNX element types; 64-bit ones become 32-bit, as everywhere in JAX by default."""

NHWC = (0, 2, 3, 1)
HWIO = (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of the graph: its operator, names, attributes and the operator set's version."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute `key`, or `default` where the node does not state it."""
        return self.attributes.get(key, default)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array whose axis `i` holds the graph's axis `order[i]`.

    >>> t = Tensor(np.zeros((1, 8, 9, 3)), NHWC)
    >>> t.shape, t.position(1), t.stored((0, 1, 2, 3)).shape
    ((1, 3, 8, 9), 3, (1, 3, 8, 9))
    """

    array: Any
    order: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape as the graph sees it."""
        return tuple(int(self.array.shape[self.order.index(axis)]) for axis in range(self.ndim))

    def position(self, axis: int) -> int:
        """Where the graph's `axis` (negative counts from the end) is stored."""
        if not -self.ndim <= axis < self.ndim:
            raise ValueError(f"axis {axis} of a value with {self.ndim} axes")
        return self.order.index(axis % self.ndim)

    def stored(self, order: Sequence[int]) -> Any:
        """The array with its axes in `order`, transposed only where it must be."""
        if tuple(order) == self.order:
            return self.array
        return self.array.transpose(tuple(self.order.index(axis) for axis in order))

    def plain(self) -> Any:
        """The array in the graph's own order."""
        return self.stored(range(self.ndim))

    def like(self, array: Any) -> "Tensor":
        """Another array in the same order of axes."""
        return Tensor(array, self.order)


Value = Tensor | np.ndarray
Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}
"""What each operator does: `(node, *inputs) -> value or tuple of values`."""


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def register(function: Operator) -> Operator:
        for name in names:
            OPERATORS[name] = function
        return function

    return register


def as_tensor(value: Value) -> Tensor:
    """A value as a `Tensor`; NumPy arrays are stored in the graph's own order."""
    return value if isinstance(value, Tensor) else Tensor(value, tuple(range(value.ndim)))


def _static(value: Any, what: str) -> np.ndarray:
    if isinstance(value, Tensor):
        raise ValueError(f"{what} depends on the frame or the weights; it must be a constant")
    return np.asarray(value)


def _integers(value: Any, what: str) -> tuple[int, ...]:
    return tuple(int(v) for v in _static(value, what).reshape(-1))


def _align(*values: Value) -> tuple[list[Any], tuple[int, ...]]:
    """Arrays that broadcast as the graph's values do, in the order of the largest of them."""
    rank = max(value.ndim for value in values)
    tensors = [value for value in values if isinstance(value, Tensor)]
    leader = max(tensors, key=lambda t: (t.ndim, t.array.size))
    pad = rank - leader.ndim
    order = (*range(pad), *(axis + pad for axis in leader.order))
    arrays = []
    for value in values:
        if isinstance(value, np.ndarray) and value.size == 1:
            arrays.append(value.reshape(()))  # a scalar stays a literal of the jaxpr
            continue
        tensor = as_tensor(value)
        pad = rank - tensor.ndim
        own = (*range(pad), *(axis + pad for axis in tensor.order))
        arrays.append(Tensor(tensor.array.reshape((1,) * pad + tensor.array.shape), own))
    return [a.stored(order) if isinstance(a, Tensor) else a for a in arrays], order


def _images(x: Tensor) -> Any:
    if x.ndim != 4:
        raise ValueError(f"input of shape {x.shape}: only images (N, C, H, W) are supported")
    return x.stored(NHWC)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The value in another shape, storing every group of axes where it was.

    Both shapes are cut into the smallest runs of axes with equal products; each run is reshaped
    where it is stored, so that `(N, C, H, W) -> (N, C, H * W)` of a channels-last value moves
    nothing.

    >>> t = reshape(Tensor(np.zeros((1, 8, 9, 6)), NHWC), (1, 2, 3, 72))
    >>> t.array.shape, t.order
    ((1, 72, 2, 3), (0, 3, 1, 2))
    """
    source, shape = x.shape, tuple(shape)
    if math.prod(source) != math.prod(shape) or min(shape, default=0) < 0:
        raise ValueError(f"cannot reshape {source} to {tuple(shape)}")
    if 0 in source:
        return Tensor(x.plain().reshape(tuple(shape)), tuple(range(len(shape))))
    groups, place = [], -1
    i = j = 0
    while i < len(source) or j < len(shape):
        first, begin = i, j
        i, j = (i + 1, j) if i < len(source) else (i, j + 1)
        if source[first:i] == (1,) and shape[j : j + 1] == (1,):
            j += 1  # an axis of size one stays an axis of size one
        while (left := math.prod(source[first:i])) != (right := math.prod(shape[begin:j])):
            i, j = (i + 1, j) if left < right else (i, j + 1)
        place = x.position(first) if i > first else place  # a new axis follows the one before
        groups.append((place, range(first, i), range(begin, j)))
    groups.sort(key=lambda group: group[0])
    array = x.stored([axis for _, old, _ in groups for axis in old])
    order = tuple(axis for _, _, new in groups for axis in new)
    return Tensor(array.reshape(tuple(shape[axis] for axis in order)), order)


def transpose(x: Tensor, permutation: Sequence[int]) -> Tensor:
    """The value with its graph axes renamed; nothing is moved."""
    return Tensor(x.array, tuple(list(permutation).index(axis) for axis in x.order))


# ----------------------------------------------------------------------------- elementwise


def _gelu(node: Node, x: Any) -> Any:
    return jax.nn.gelu(x, approximate=node.get("approximate", b"none") == b"tanh")


def _hard_sigmoid(node: Node, x: Any) -> Any:
    return jnp.clip(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0.0, 1.0)


def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.get("alpha", 1.6732632), node.get("gamma", 1.0507010)
    return gamma * jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0.0)))


_UNARY: dict[str, Callable[[Node, Any], Any]] = {
    "Abs": lambda _, x: jnp.abs(x),
    "Cast": lambda node, x: x.astype(_cast_dtype(node)),
    "Ceil": lambda _, x: jnp.ceil(x),
    "Cos": lambda _, x: jnp.cos(x),
    "Dropout": lambda _, x: x,
    "Elu": lambda node, x: jax.nn.elu(x, alpha=node.get("alpha", 1.0)),
    "Erf": lambda _, x: lax.erf(x),
    "Exp": lambda _, x: jnp.exp(x),
    "Floor": lambda _, x: jnp.floor(x),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda _, x: jax.nn.hard_swish(x),
    "Identity": lambda _, x: x,
    "LeakyRelu": lambda node, x: jax.nn.leaky_relu(x, node.get("alpha", 0.01)),
    "Log": lambda _, x: jnp.log(x),
    "Mish": lambda _, x: jax.nn.mish(x),
    "Neg": lambda _, x: -x,
    "Not": lambda _, x: jnp.logical_not(x),
    "Reciprocal": lambda _, x: 1.0 / x,
    "Relu": lambda _, x: jax.nn.relu(x),
    "Round": lambda _, x: jnp.round(x),
    "Selu": _selu,
    "Sigmoid": lambda _, x: jax.nn.sigmoid(x),
    "Sign": lambda _, x: jnp.sign(x),
    "Sin": lambda _, x: jnp.sin(x),
    "Softplus": lambda _, x: jax.nn.softplus(x),
    "Softsign": lambda _, x: jax.nn.soft_sign(x),
    "Sqrt": lambda _, x: jnp.sqrt(x),
    "Tanh": lambda _, x: jnp.tanh(x),
}


def _cast_dtype(node: Node) -> Any:
    if node.get("to") not in _DTYPES:
        raise ValueError(f"cast to element type {node.get('to')} is not supported")
    return _DTYPES[node.get("to")]


@_operator(*_UNARY)
def _unary(node: Node, x: Tensor, *_: Value) -> Tensor:
    return x.like(_UNARY[node.op](node, x.array))


def _divide(x: Any, y: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(x, y), jnp.integer):
        return lax.div(*jnp.broadcast_arrays(x, y))  # rounds towards zero, as ONNX does
    return x / y


def _power(x: Any, y: Any) -> Any:
    if isinstance(y, np.ndarray) and y.ndim == 0 and float(y).is_integer():
        return x ** int(y)  # traced as integer_pow, right for negative bases too
    return jnp.power(x, y)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": jnp.add,
    "And": jnp.logical_and,
    "Div": _divide,
    "Equal": jnp.equal,
    "Greater": jnp.greater,
    "GreaterOrEqual": jnp.greater_equal,
    "Less": jnp.less,
    "LessOrEqual": jnp.less_equal,
    "Max": jnp.maximum,
    "Min": jnp.minimum,
    "Mul": jnp.multiply,
    "Or": jnp.logical_or,
    "PRelu": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "Pow": _power,
    "Sub": jnp.subtract,
    "Sum": jnp.add,
    "Xor": jnp.logical_xor,
}


@_operator(*_BINARY)
def _fold(node: Node, *values: Value) -> Tensor:
    arrays, order = _align(*values)  # Max, Min and Sum take any number of inputs
    return Tensor(functools.reduce(_BINARY[node.op], arrays), order)


@_operator("Mod")
def _mod(node: Node, x: Value, y: Value) -> Tensor:
    arrays, order = _align(x, y)
    return Tensor((jnp.fmod if node.get("fmod", 0) else jnp.mod)(*arrays), order)


@_operator("Where")
def _where(node: Node, condition: Value, x: Value, y: Value) -> Tensor:
    arrays, order = _align(condition, x, y)
    return Tensor(jnp.where(*arrays), order)


@_operator("Clip")
def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.get("min") if low is None else _static(low, "min").reshape(())
    high = node.get("max") if high is None else _static(high, "max").reshape(())
    return x.like(jnp.clip(x.array, low, high))


# ----------------------------------------------------------------------------- convolution


def _same_padding(sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int],
                  lower: bool) -> list[tuple[int, int]]:  # fmt: skip
    padding = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        less, more = total // 2, total - total // 2
        padding.append((more, less) if lower else (less, more))
    return padding


def _window(node: Node, x: Tensor, kernel: Sequence[int]) -> tuple[list, list, list, list]:
    """Extents, strides, dilations and padding of a convolution or pooling over `(H, W)`."""
    strides = list(node.get("strides", [1, 1]))
    dilations = list(node.get("dilations", [1, 1]))
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = node.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        padding = _same_padding(x.shape[2:], extents, strides, auto == b"SAME_LOWER")
    elif auto == b"VALID":
        padding = [(0, 0), (0, 0)]
    else:
        pads = node.get("pads", [0, 0, 0, 0])
        padding = [(pads[0], pads[2]), (pads[1], pads[3])]
    return extents, strides, dilations, padding


def _add_bias(y: Any, bias: Value | None) -> Any:
    return y if bias is None else y + as_tensor(bias).array


@_operator("Conv")
def _conv(node: Node, x: Tensor, kernel: Value, bias: Value | None = None) -> Tensor:
    images, weight = _images(x), as_tensor(kernel)
    if weight.ndim != 4:
        raise ValueError(f"kernel of shape {weight.shape}: only 2-D convolutions are supported")
    _, strides, dilations, padding = _window(node, x, weight.shape[2:])
    y = lax.conv_general_dilated(
        images,
        weight.stored(HWIO),
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=node.get("group", 1),
    )
    return Tensor(_add_bias(y, bias), NHWC)


def transposed_kernel(kernel: np.ndarray, groups: int) -> np.ndarray:
    """The kernel of the convolution that a transposed convolution is: flipped, `OIHW`.

    >>> transposed_kernel(np.arange(8.0).reshape(1, 2, 2, 2), 1)[:, 0, 0]
    array([[3., 2.],
           [7., 6.]])
    """
    inputs, outputs, height, width = kernel.shape
    grouped = kernel[:, :, ::-1, ::-1].reshape(groups, inputs // groups, outputs, height, width)
    return grouped.transpose(0, 2, 1, 3, 4).reshape(-1, inputs // groups, height, width)


@_operator("ConvTranspose")
def _conv_transpose(node: Node, x: Tensor, kernel: Value, bias: Value | None = None) -> Tensor:
    # The reader has replaced the kernel by `transposed_kernel`: it needs the graph's constant.
    images, weight = _images(x), as_tensor(kernel)
    extents, strides, dilations, padding = _window(node, x, weight.shape[2:])
    extra = list(node.get("output_padding", [0, 0]))
    sizes = node.get("output_shape")
    auto = node.get("auto_pad", b"NOTSET")
    same = auto in (b"SAME_UPPER", b"SAME_LOWER")
    if sizes is not None or same:
        wanted = sizes[-2:] if sizes else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        padding = []
        for axis in range(2):
            total = strides[axis] * (x.shape[2 + axis] - 1) + extra[axis] + extents[axis]
            total -= wanted[axis]
            less, more = total // 2, total - total // 2
            padding.append((less, more) if auto == b"SAME_UPPER" else (more, less))
    y = lax.conv_general_dilated(
        images,
        weight.stored(HWIO),
        window_strides=(1, 1),
        padding=[
            (extent - 1 - low, extent - 1 - high + more)
            for extent, (low, high), more in zip(extents, padding, extra, strict=True)
        ],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=node.get("group", 1),
    )
    return Tensor(_add_bias(y, bias), NHWC)


def _per_channel(value: Value, x: Tensor) -> Any:
    """A vector of channel values, ready to broadcast against `x.array`."""
    shape = [1] * x.ndim
    shape[x.position(1)] = -1
    return as_tensor(value).array.reshape(shape)


@_operator("BatchNormalization")
def _batch_normalization(node: Node, x: Tensor, *parameters: Value) -> Tensor:
    if node.get("training_mode", 0):
        raise ValueError("training_mode=1: only inference is supported")
    scale, bias, mean, variance = (_per_channel(p, x) for p in parameters)
    gain = scale / jnp.sqrt(variance + node.get("epsilon", 1e-5))
    return x.like((x.array - mean) * gain + bias)


@_operator("InstanceNormalization")
def _instance_normalization(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    axes = tuple(x.position(axis) for axis in range(2, x.ndim))
    mean = jnp.mean(x.array, axes, keepdims=True)
    variance = jnp.mean(jnp.square(x.array - mean), axes, keepdims=True)
    gain = _per_channel(scale, x) / jnp.sqrt(variance + node.get("epsilon", 1e-5))
    return x.like((x.array - mean) * gain + _per_channel(bias, x))


@_operator("LayerNormalization")
def _layer_normalization(node: Node, x: Tensor, scale: Value, bias: Value | None = None) -> Tensor:
    first = node.get("axis", -1) % x.ndim
    axes = tuple(x.position(axis) for axis in range(first, x.ndim))
    mean = jnp.mean(x.array, axes, keepdims=True)
    variance = jnp.mean(jnp.square(x.array - mean), axes, keepdims=True)
    normal = x.like((x.array - mean) / jnp.sqrt(variance + node.get("epsilon", 1e-5)))
    return _scaled(normal, scale, bias)


def _scaled(x: Tensor, scale: Value, bias: Value | None) -> Tensor:
    (array, gain), order = _align(x, as_tensor(scale))
    scaled = Tensor(array * gain, order)
    if bias is None:
        return scaled
    (array, offset), order = _align(scaled, as_tensor(bias))
    return Tensor(array + offset, order)


@_operator("GroupNormalization")
def _group_normalization(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    groups, (streams, channels, *plane) = node.get("num_groups"), x.shape
    split = reshape(x, (streams, groups, channels // groups, *plane))
    axes = tuple(split.position(axis) for axis in range(2, split.ndim))
    mean = jnp.mean(split.array, axes, keepdims=True)
    variance = jnp.mean(jnp.square(split.array - mean), axes, keepdims=True)
    normal = split.like((split.array - mean) / jnp.sqrt(variance + node.get("epsilon", 1e-5)))
    normal = reshape(normal, x.shape)
    gain, offset = (as_tensor(value).plain() for value in (scale, bias))
    if node.opset < 21:  # one a group, later one a channel
        gain, offset = (jnp.repeat(array, channels // groups) for array in (gain, offset))
    every = (channels, *(1,) * len(plane))
    of_channels: list[Any] = [array.reshape(every) for array in (gain, offset)]
    return _scaled(normal, *map(as_tensor, of_channels))


@_operator("LRN")
def _local_response_normalization(node: Node, x: Tensor) -> Tensor:
    size, axis = node.get("size"), x.position(1)
    if not 1 <= size <= 2 * x.shape[1] + 1:
        raise ValueError(f"size must be of 1 .. twice the {x.shape[1]} channels; got {size}")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    pads = [(0, 0)] * x.ndim
    pads[axis] = (before, after)
    squares = jnp.pad(jnp.square(x.array), pads)
    total = sum(
        lax.slice_in_dim(squares, k, k + x.shape[1], axis=axis) for k in range(size)
    )  # shifted sums over channels keep every pixel by itself
    base = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total
    return x.like(x.array / jnp.power(base, node.get("beta", 0.75)))


# ----------------------------------------------------------------------------- pooling


def _pool_window(node: Node, x: Tensor) -> tuple[list, list, list, list, list]:
    kernel = list(node.get("kernel_shape"))
    if x.ndim != 4:
        raise ValueError(f"input of shape {x.shape}: only images (N, C, H, W) are supported")
    extents, strides, dilations, stated = _window(node, x, kernel)
    padding = list(stated)
    if node.get("ceil_mode", 0):
        for axis, size in enumerate(x.shape[2:]):
            low, high = stated[axis]
            count = -(-(size + low + high - extents[axis]) // strides[axis]) + 1
            if (count - 1) * strides[axis] >= size + low:
                count -= 1  # a window that starts in the end padding is not used
            more = (count - 1) * strides[axis] + extents[axis] - (size + low + high)
            padding[axis] = (low, high + max(more, 0))
    return kernel, strides, dilations, stated, padding


@_operator("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel, strides, dilations, _, padding = _pool_window(node, x)
    images = _images(x)
    floating = jnp.issubdtype(images.dtype, jnp.floating)
    y = lax.reduce_window(
        images,
        -jnp.inf if floating else jnp.iinfo(images.dtype).min,
        lax.max,
        (1, *kernel, 1),
        (1, *strides, 1),
        ((0, 0), *padding, (0, 0)),
        window_dilation=(1, *dilations, 1),
    )
    return Tensor(y, NHWC)


@_operator("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel, strides, dilations, stated, padding = _pool_window(node, x)
    total = lax.reduce_window(
        _images(x),
        0.0,
        lax.add,
        (1, *kernel, 1),
        (1, *strides, 1),
        ((0, 0), *padding, (0, 0)),
        window_dilation=(1, *dilations, 1),
    )
    counts = []
    for axis, size in enumerate(x.shape[2:]):
        low, high = stated[axis] if node.get("count_include_pad", 0) else (0, 0)
        start = np.arange(total.shape[1 + axis]) * strides[axis] - padding[axis][0]
        taps = start[:, None] + np.arange(kernel[axis]) * dilations[axis]
        counts.append(((taps >= -low) & (taps < size + high)).sum(1))
    count = np.outer(*counts).astype(np.float32)[None, :, :, None]
    if (count == count.flat[0]).all():
        count = count.reshape(-1)[0]
    return Tensor(total / count.astype(total.dtype), NHWC)


@_operator("GlobalAveragePool")
def _global_average_pool(node: Node, x: Tensor) -> Tensor:
    axes = tuple(x.position(axis) for axis in range(2, x.ndim))
    return x.like(jnp.mean(x.array, axes, keepdims=True))


@_operator("GlobalMaxPool")
def _global_max_pool(node: Node, x: Tensor) -> Tensor:
    axes = tuple(x.position(axis) for axis in range(2, x.ndim))
    return x.like(jnp.max(x.array, axes, keepdims=True))


# ----------------------------------------------------------------------------- shapes


@_operator("Shape")
def _shape(node: Node, x: Tensor) -> np.ndarray:
    return np.array(x.shape[node.get("start", 0) : node.get("end")], np.int64)


@_operator("Size")
def _size(node: Node, x: Tensor) -> np.ndarray:
    return np.array(math.prod(x.shape), np.int64)


@_operator("Reshape")
def _reshape(node: Node, x: Tensor, shape: Value) -> Tensor:
    target = list(_integers(shape, "shape"))
    if not node.get("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    if -1 in target:
        rest = -math.prod(target)
        if rest == 0 or math.prod(x.shape) % rest:
            raise ValueError(f"cannot reshape {x.shape} to {tuple(target)}")
        target[target.index(-1)] = math.prod(x.shape) // rest
    return reshape(x, target)


@_operator("Flatten")
def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@_operator("Transpose")
def _transpose(node: Node, x: Tensor) -> Tensor:
    return transpose(x, node.get("perm", range(x.ndim)[::-1]))


def _axes(node: Node, given: Any) -> tuple[int, ...] | None:
    if given is not None:
        return _integers(given, "axes")
    return node.get("axes")


def _drop_axes(x: Tensor, axes: set[int]) -> Tensor:
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    order = tuple(kept.index(axis) for axis in x.order if axis not in axes)
    return Tensor(jnp.squeeze(x.array, tuple(x.position(axis) for axis in axes)), order)


@_operator("Squeeze")
def _squeeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = _axes(node, axes)
    if given is None:
        given = [axis for axis, size in enumerate(x.shape) if size == 1]
    chosen = {axis % x.ndim for axis in given}
    if any(x.shape[axis] != 1 for axis in chosen):
        raise ValueError(f"cannot squeeze axes {sorted(chosen)} of a value of shape {x.shape}")
    return _drop_axes(x, chosen)


@_operator("Unsqueeze")
def _unsqueeze(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = _axes(node, axes) or ()
    rank = x.ndim + len(given)
    added = {axis % rank for axis in given}
    remaining = iter(x.shape)
    return reshape(x, [1 if axis in added else next(remaining) for axis in range(rank)])


@_operator("Concat")
def _concat(node: Node, *values: Value) -> Tensor:
    rank = values[0].ndim
    axis = node.get("axis") % rank
    tensors = [as_tensor(value) for value in values]
    leader = max((v for v in values if isinstance(v, Tensor)), key=lambda t: t.array.size)
    batch = leader.shape[0]
    arrays = []
    for tensor in tensors:
        array = tensor.stored(leader.order)
        if axis != 0 and tensor.shape[0] == 1 != batch:  # a constant of a graph of batch one
            place = leader.position(0)
            array = jnp.broadcast_to(
                array, (*array.shape[:place], batch, *array.shape[place + 1 :])
            )
        arrays.append(array)
    return leader.like(jnp.concatenate(arrays, leader.position(axis)))


def _slice(x: Tensor, axis: int, start: int, stop: int, step: int) -> Tensor:
    place = x.position(axis)
    if step > 0:
        return x.like(lax.slice_in_dim(x.array, start, max(stop, start), step, place))
    count = len(range(start, stop, step))
    first = start + (count - 1) * step
    part = lax.slice_in_dim(x.array, max(first, 0), start + 1 if count else max(first, 0),
                            -step, place)  # fmt: skip
    return x.like(lax.rev(part, (place,)))


@_operator("Slice")
def _slices(node: Node, x: Tensor, *given: Any) -> Tensor:
    if given:
        starts, ends = _integers(given[0], "starts"), _integers(given[1], "ends")
    else:
        starts, ends = node.get("starts"), node.get("ends")
    optional = (*given[2:], None, None)
    axes = node.get("axes") if optional[0] is None else _integers(optional[0], "axes")
    steps = [1] * len(starts) if optional[1] is None else _integers(optional[1], "steps")
    axes = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        x = _slice(x, axis, *slice(start, end, step).indices(x.shape[axis]))
    return x


@_operator("Split")
def _split(node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    lengths = node.get("split") if sizes is None else _integers(sizes, "split")
    if lengths is None:
        count = len(node.outputs)
        each = -(-x.shape[axis] // count)
        lengths = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    ends = np.cumsum(lengths)
    if ends[-1] != x.shape[axis]:
        raise ValueError(f"split {tuple(lengths)} of axis {axis} of a value of shape {x.shape}")
    return tuple(
        _slice(x, axis, int(end - length), int(end), 1)
        for end, length in zip(ends, lengths, strict=True)
    )


@_operator("Pad")
def _pad(node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    widths = node.get("pads") if pads is None else _integers(pads, "pads")
    fill = node.get("value", 0.0) if value is None else _static(value, "constant_value").item()
    chosen = range(x.ndim) if axes is None else _integers(axes, "axes")
    padding = [(0, 0)] * x.ndim
    for k, axis in enumerate(chosen):
        padding[x.position(axis)] = (widths[k], widths[k + len(chosen)])
    mode = node.get("mode", b"constant").decode()
    if mode == "constant":
        filling = np.array(fill, x.array.dtype)
        return x.like(lax.pad(x.array, filling, [(low, high, 0) for low, high in padding]))
    if mode not in ("reflect", "edge"):
        raise ValueError(f"padding mode {mode!r} is not supported")
    if mode == "reflect" and any(
        max(pads) >= size for pads, size in zip(padding, x.array.shape, strict=True) if any(pads)
    ):
        raise ValueError(f"pads {tuple(widths)} reflect more than there is of shape {x.shape}")
    return x.like(jnp.pad(x.array, padding, mode=mode))


@_operator("Expand")
def _expand(node: Node, x: Tensor, shape: Value) -> Tensor:
    target = _integers(shape, "shape")
    rank = max(len(target), x.ndim)
    pad = rank - x.ndim
    order = (*range(pad), *(axis + pad for axis in x.order))
    wanted = np.broadcast_shapes(target, x.shape)
    array = x.array.reshape((1,) * pad + x.array.shape)
    return Tensor(jnp.broadcast_to(array, tuple(wanted[axis] for axis in order)), order)


@_operator("Tile")
def _tile(node: Node, x: Tensor, repeats: Value) -> Tensor:
    counts = _integers(repeats, "repeats")
    return x.like(jnp.tile(x.array, [counts[axis] for axis in x.order]))


@_operator("Gather")
def _gather(node: Node, x: Value, indices: Value) -> Tensor:
    data = as_tensor(x)
    axis = node.get("axis", 0) % data.ndim
    place, size = data.position(axis), data.shape[axis]
    if isinstance(indices, Tensor):
        picked, rank = indices.plain(), indices.ndim
        picked = jnp.where(picked < 0, picked + size, picked)
    else:
        picked, rank = np.where(indices < 0, indices + size, indices), indices.ndim
        if (picked < 0).any() or (picked >= size).any():
            raise ValueError(f"indices outside of axis {axis} of a value of shape {data.shape}")
    order: list[int] = []
    for held in data.order:
        if held == axis:
            order.extend(range(axis, axis + rank))
        else:
            order.append(held + rank - 1 if held > axis else held)
    if isinstance(picked, np.ndarray) and picked.ndim <= 1 and picked.size:
        flat = picked.reshape(-1)
        steps = set(np.diff(flat).tolist()) or {1}
        if len(steps) == 1 and min(steps) > 0:  # evenly spaced: a slice, which stays local
            part = _slice(data, axis, int(flat[0]), int(flat[-1]) + 1, int(min(steps))).array
            return Tensor(part if rank else jnp.squeeze(part, place), tuple(order))
    return Tensor(jnp.take(data.array, picked, place, mode="clip"), tuple(order))


def _blocks(x: Tensor, split: Sequence[int], permutation: Sequence[int],
            merged: Sequence[int]) -> Tensor:  # fmt: skip
    return reshape(transpose(reshape(x, split), permutation), merged)


@_operator("DepthToSpace")
def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    depth = c // (b * b)
    if node.get("mode", b"DCR") == b"DCR":
        split, permutation = (n, b, b, depth, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, permutation = (n, depth, b, b, h, w), (0, 1, 4, 2, 5, 3)
    return _blocks(x, split, permutation, (n, depth, h * b, w * b))


@_operator("SpaceToDepth")
def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    (n, c, h, w), b = x.shape, node.get("blocksize")
    split = (n, c, h // b, b, w // b, b)
    return _blocks(x, split, (0, 3, 5, 1, 2, 4), (n, c * b * b, h // b, w // b))


# ----------------------------------------------------------------------------- resizing

_MOST_POSITIONS = 1 << 16  # along one axis: their coordinates are computed while tracing
_MOST_WEIGHTS = 1 << 25  # of one matrix of interpolation, likewise


def _coordinates(mode: str, size: int, count: int, scale: float) -> np.ndarray:
    """Where each of `count` output positions falls in `size` inputs, float32 as in the standard."""
    place, factor = np.arange(count, dtype=np.float32), np.float32(scale)
    half = np.float32(0.5)
    match mode:
        case "asymmetric":
            return place / factor
        case "half_pixel":
            return (place + half) / factor - half
        case "pytorch_half_pixel":
            return (place + half) / factor - half if count > 1 else np.zeros(1, np.float32)
        case "align_corners":
            return place * np.float32((size - 1) / (count - 1) if count > 1 else 0.0)
        case "tf_half_pixel_for_nn":
            return (place + half) / factor
    raise ValueError(f"coordinate_transformation_mode {mode!r} is not supported")


def _nearest(x: Any, place: int, at: np.ndarray, rounding: str) -> Any:
    size, half = x.shape[place], np.float32(0.5)
    match rounding:
        case "round_prefer_floor":
            at = np.ceil(at - half)
        case "round_prefer_ceil":
            at = np.floor(at + half)
        case "floor":
            at = np.floor(at)
        case "ceil":
            at = np.ceil(at)
        case _:
            raise ValueError(f"nearest_mode {rounding!r} is not supported")
    index = np.clip(at, 0, size - 1).astype(np.int32)
    times = len(index) // size
    if times and np.array_equal(index, np.arange(len(index)) // times) and len(index) % size == 0:
        return jnp.repeat(x, times, axis=place) if times > 1 else x
    steps = set(np.diff(index).tolist())
    if len(steps) == 1 and min(steps) > 0:
        return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, min(steps), place)
    return jnp.take(x, index, axis=place, mode="clip", indices_are_sorted=True)


def _interpolation(size: int, at: np.ndarray) -> np.ndarray:
    """The matrix `(size, positions)` of linear interpolation at the coordinates, edges repeated."""
    if size * len(at) > _MOST_WEIGHTS:
        raise ValueError(f"cannot resize {size} positions to {len(at)}")
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((size, len(at)), np.float32)
    column = np.arange(len(at))
    np.add.at(matrix, (low, column), 1 - (at - low))
    np.add.at(matrix, (high, column), at - low)
    return matrix


@_operator("Resize", "Upsample")
def _resize(node: Node, x: Tensor, *given: Any) -> Tensor:
    upsample = node.op == "Upsample" or node.opset < 11
    parts = (None, *given) if upsample else given  # no region of interest before opset 11
    _, scales, sizes = (*parts, None, None, None)[:3]
    axes = node.get("axes", range(x.ndim))
    if node.get("antialias", 0) or node.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("antialias and keep_aspect_ratio_policy are not supported")
    count, factor = list(x.shape), [1.0] * x.ndim
    if sizes is not None and np.size(sizes):
        for axis, size in zip(axes, _integers(sizes, "sizes"), strict=True):
            count[axis], factor[axis] = size, size / x.shape[axis]
        count[0] = x.shape[0] if 0 in axes else count[0]  # the batch that was exported
        factor[0] = 1.0
    else:
        values = node.get("scales") if scales is None else _static(scales, "scales").reshape(-1)
        for axis, scale in zip(axes, values, strict=True):
            count[axis], factor[axis] = math.floor(x.shape[axis] * scale), float(scale)
    if max(count) > _MOST_POSITIONS or min(count) < 1:
        raise ValueError(f"cannot resize {x.shape} to {tuple(count)}")
    mode = node.get("mode", b"nearest").decode()
    default = b"asymmetric" if upsample else b"half_pixel"
    where = node.get("coordinate_transformation_mode", default).decode()
    rounding = node.get("nearest_mode", b"floor" if upsample else b"round_prefer_floor").decode()
    at = {
        axis: _coordinates(where, x.shape[axis], count[axis], factor[axis])
        for axis in range(x.ndim)
        if factor[axis] != 1.0 or count[axis] != x.shape[axis]
    }
    if mode == "nearest":
        array = x.array
        for axis, coordinates in at.items():
            array = _nearest(array, x.position(axis), coordinates, rounding)
        return x.like(array)
    if mode != "linear":
        raise ValueError(f"mode {mode!r} is not supported")
    if not at:
        return x
    # One einsum over all axes: the form in which `jax.image.resize` traces.
    letters, operands = list(range(x.ndim)), []
    for axis, coordinates in at.items():
        place = x.position(axis)
        letters[place] = x.ndim + place
        operands += [_interpolation(x.shape[axis], coordinates), [place, x.ndim + place]]
    array = jnp.einsum(
        x.array, list(range(x.ndim)), *operands, letters, precision=lax.Precision.HIGHEST
    )
    return x.like(array)


# ----------------------------------------------------------------------------- matrices, reductions


@_operator("MatMul")
def _matmul(node: Node, x: Value, y: Value) -> Tensor:
    product = jnp.matmul(as_tensor(x).plain(), as_tensor(y).plain())
    return Tensor(product, tuple(range(product.ndim)))


@_operator("Gemm")
def _gemm(node: Node, x: Value, y: Value, bias: Value | None = None) -> Tensor:
    left, right = as_tensor(x), as_tensor(y)
    left = transpose(left, (1, 0)) if node.get("transA", 0) else left
    right = transpose(right, (1, 0)) if node.get("transB", 0) else right
    product = left.plain() @ right.plain()
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    product = product if alpha == 1.0 else alpha * product
    if bias is not None:
        offset = as_tensor(bias).plain()
        product = product + (offset if beta == 1.0 else beta * offset)
    return Tensor(product, (0, 1))


def _softmax_axes(node: Node, x: Tensor) -> tuple[int, ...]:
    if node.opset >= 13:
        return (x.position(node.get("axis", -1)),)
    first = node.get("axis", 1) % x.ndim  # older sets flatten this axis and all that follow
    return tuple(x.position(axis) for axis in range(first, x.ndim))


@_operator("Softmax")
def _softmax(node: Node, x: Tensor) -> Tensor:
    return x.like(jax.nn.softmax(x.array, _softmax_axes(node, x)))


@_operator("LogSoftmax")
def _log_softmax(node: Node, x: Tensor) -> Tensor:
    return x.like(jax.nn.log_softmax(x.array, _softmax_axes(node, x)))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL2": lambda x, axes: jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)),
    "ReduceMax": lambda x, axes: jnp.max(x, axes, keepdims=True),
    "ReduceMean": lambda x, axes: jnp.mean(x, axes, keepdims=True),
    "ReduceMin": lambda x, axes: jnp.min(x, axes, keepdims=True),
    "ReduceProd": lambda x, axes: jnp.prod(x, axes, keepdims=True),
    "ReduceSum": lambda x, axes: jnp.sum(x, axes, keepdims=True),
}


@_operator(*_REDUCTIONS)
def _reduce(node: Node, x: Tensor, axes: Any = None) -> Tensor:
    given = _axes(node, axes)
    if not given:
        if node.get("noop_with_empty_axes", 0):
            return x
        given = range(x.ndim)
    chosen = {axis % x.ndim for axis in given}
    array = _REDUCTIONS[node.op](x.array, tuple(x.position(axis) for axis in chosen))
    return x.like(array) if node.get("keepdims", 1) else _drop_axes(x.like(array), chosen)


@_operator("ArgMax", "ArgMin")
def _arg(node: Node, x: Tensor) -> Tensor:
    if node.get("select_last_index", 0):
        raise ValueError("select_last_index=1 is not supported")
    axis = node.get("axis", 0) % x.ndim
    function = jnp.argmax if node.op == "ArgMax" else jnp.argmin
    index = x.like(function(x.array, x.position(axis), keepdims=True))
    return index if node.get("keepdims", 1) else _drop_axes(index, {axis})


@_operator("CumSum")
def _cumulative_sum(node: Node, x: Tensor, axis: Value) -> Tensor:
    (chosen,) = _integers(axis, "axis")
    place = x.position(chosen)
    array = jnp.flip(x.array, place) if node.get("reverse", 0) else x.array
    total = jnp.cumsum(array, place)
    if node.get("exclusive", 0):
        before = lax.slice_in_dim(total, 0, total.shape[place] - 1, axis=place)
        first = jnp.zeros_like(lax.slice_in_dim(total, 0, 1, axis=place))
        total = jnp.concatenate([first, before], place)
    return x.like(jnp.flip(total, place) if node.get("reverse", 0) else total)


@_operator("TopK")
def _top_k(node: Node, x: Tensor, k: Value) -> tuple[Tensor, Tensor]:
    (count,) = _integers(k, "K")
    place = x.position(node.get("axis", -1))
    if not 0 <= count <= x.array.shape[place]:
        raise ValueError(f"K must be of 0 .. {x.array.shape[place]}; got {count}")
    last = jnp.moveaxis(x.array, place, -1)
    largest = node.get("largest", 1)
    values, index = lax.top_k(last if largest else -last, count)
    values = values if largest else -values
    return x.like(jnp.moveaxis(values, -1, place)), x.like(jnp.moveaxis(index, -1, place))


# ----------------------------------------------------------------------------- by index


def _index(value: Value, size: int) -> Any:
    """Positions along an axis, in the graph's own order; negative ones count from the end."""
    index = as_tensor(value).plain()
    return jnp.where(index < 0, index + size, index)


@_operator("GatherElements")
def _gather_elements(node: Node, x: Value, indices: Value) -> Tensor:
    data, axis = as_tensor(x).plain(), node.get("axis", 0)
    axis %= data.ndim
    index = _index(indices, data.shape[axis])
    parts = [slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape)]
    taken = jnp.take_along_axis(jnp.asarray(data)[tuple(parts)], index, axis, mode="clip")
    return Tensor(taken, tuple(range(data.ndim)))


@_operator("GatherND")
def _gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    if node.get("batch_dims", 0):
        raise ValueError("batch_dims is not supported")
    data, index = jnp.asarray(as_tensor(x).plain()), as_tensor(indices).plain()
    taken = data[_places(data, index)]
    return Tensor(taken, tuple(range(taken.ndim)))


@_operator("ScatterND")
def _scatter_nd(node: Node, x: Value, indices: Value, updates: Value) -> Tensor:
    data, index = jnp.asarray(as_tensor(x).plain()), as_tensor(indices).plain()
    place = data.at[_places(data, index)]
    put = {b"none": place.set, b"add": place.add, b"mul": place.multiply,
           b"min": place.min, b"max": place.max}  # fmt: skip
    result = put[node.get("reduction", b"none")](as_tensor(updates).plain())
    return Tensor(result, tuple(range(result.ndim)))


def _places(data: Any, index: Any) -> tuple[Any, ...]:
    parts = [index[..., axis] for axis in range(index.shape[-1])]
    return tuple(
        jnp.where(part < 0, part + n, part) for part, n in zip(parts, data.shape, strict=False)
    )


@_operator("OneHot")
def _one_hot(node: Node, indices: Value, depth: Value, values: Value) -> Tensor:
    (count,), (off, on) = _integers(depth, "depth"), _static(values, "values").reshape(-1)
    index = _index(indices, count)
    axis = node.get("axis", -1) % (index.ndim + 1)
    hot = jnp.expand_dims(index, axis) == jnp.arange(count).reshape(
        [-1 if a == axis else 1 for a in range(index.ndim + 1)]
    )
    return Tensor(jnp.where(hot, on, off), tuple(range(hot.ndim)))


@_operator("GridSample")
def _grid_sample(node: Node, x: Tensor, grid: Value) -> Tensor:
    images, at = _images(x), as_tensor(grid).plain()
    mode, border = node.get("mode", b"linear"), node.get("padding_mode", b"zeros")
    if mode not in (b"bilinear", b"linear", b"nearest") or border not in (b"zeros", b"border"):
        raise ValueError(f"mode {mode!r} with padding_mode {border!r} is not supported")
    streams, height, width, _ = images.shape
    stream = jnp.arange(streams)[:, None, None]
    places = []
    for axis, size in ((1, height), (0, width)):
        half = (at[..., axis] + 1) / 2
        place = half * (size - 1) if node.get("align_corners", 0) else half * size - 0.5
        places.append(jnp.clip(place, 0, size - 1) if border == b"border" else place)

    def pixel(row: Any, column: Any) -> Any:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = (
            jnp.clip(p, 0, n - 1).astype(jnp.int32) for p, n in ((row, height), (column, width))
        )
        return jnp.where(inside[..., None], images[stream, row, column], 0)

    if mode == b"nearest":
        return Tensor(pixel(*map(jnp.round, places)), NHWC)
    (top, left), total = map(jnp.floor, places), 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(places[0] - row)) * (1 - jnp.abs(places[1] - column))
            total = total + weight[..., None] * pixel(row, column)
    return Tensor(total, NHWC)


@_operator("Einsum")
def _einsum(node: Node, *values: Value) -> Tensor:
    product = jnp.einsum(
        node.get("equation").decode(), *(as_tensor(value).plain() for value in values)
    )
    return Tensor(product, tuple(range(product.ndim)))


# ----------------------------------------------------------------------------- eight bits


def _along_axis(value: Value, x: Tensor, axis: int) -> Any:
    """A scale or zero point, one or one for each position of an axis, to go with `x.array`."""
    array = as_tensor(value).plain()
    if not array.ndim or array.size == 1:
        return array.reshape(())
    shape = [1] * x.ndim
    shape[x.position(axis)] = -1
    return array.reshape(shape)


@_operator("DequantizeLinear")
def _dequantize(node: Node, x: Value, scale: Value, zero: Value | None = None) -> Tensor:
    held, axis = as_tensor(x), node.get("axis", 1)
    array = jnp.asarray(held.array).astype(jnp.float32)
    if zero is not None:
        array = array - jnp.asarray(_along_axis(zero, held, axis)).astype(jnp.float32)
    return held.like(array * _along_axis(scale, held, axis))


@_operator("QuantizeLinear")
def _quantize(node: Node, x: Tensor, scale: Value, zero: Value | None = None) -> Tensor:
    axis = node.get("axis", 1)
    return _quantized(x, _along_axis(scale, x, axis), zero, axis)


def _quantized(x: Tensor, scale: Any, zero: Value | None, axis: int) -> Tensor:
    dtype = jnp.uint8 if zero is None else as_tensor(zero).array.dtype
    level = jnp.round(x.array / scale)
    if zero is not None:
        level = level + jnp.asarray(_along_axis(zero, x, axis)).astype(jnp.float32)
    limits = jnp.iinfo(dtype)
    return x.like(jnp.clip(level, limits.min, limits.max).astype(dtype))


@_operator("QLinearConv")
def _quantized_convolution(node: Node, *values: Value) -> Tensor:
    x, x_scale, x_zero, kernel, scale, zero, y_scale, y_zero, *bias = values
    # Sums of products of bytes are whole numbers: exact in float32 up to 2^24.
    levels = _dequantize(node, x, np.ones((), np.float32), x_zero)
    weights = _dequantize(
        dataclasses.replace(node, attributes={"axis": 0}), kernel, np.ones((), np.float32), zero
    )
    offset = [as_tensor(b).plain().astype(jnp.float32) for b in bias[:1]]
    total = _conv(node, levels, weights, *(Tensor(b, (0,)) for b in offset))
    factor = as_tensor(x_scale).plain().reshape(()) * _along_axis(scale, total, 1)
    real = total.like(total.array * factor)
    return _quantized(real, as_tensor(y_scale).plain().reshape(()), y_zero, 1)


for _name in ("Constant", "ConstantOfShape", "Range"):
    OPERATORS[_name] = lambda node, *inputs: [_static(v, "input") for v in inputs]
"""Always constant while tracing: folded by the reader, they only have to be known here."""
