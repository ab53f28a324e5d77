"""How far two float32 evaluations of one network may lie apart, derived layer by layer."""

import math

import jax
import numpy as np

from dynvid.graph.trace import Node, Value, trace

_EPS = float(np.finfo(np.float32).eps)

# An intermediate of Winograd's F(2x2, 3x3) is at most 9 times the result's own bound
# K max|x| max|w|: 4 from the data's transform, 9/4 from the kernel's, 9 from summing 9 of the 16
# products, each of K/9 terms. Two roundings of it are allowed; a direct sum stays far below.
_C = 18

_MOVES = {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "gather", "name"),
    *("reshape", "rev", "slice", "split", "squeeze", "stop_gradient", "transpose"),
}
_CHOICES = {"clamp", "max", "min", "pad", "reduce_max", "reduce_window_max", "select_n", "sort"}
_SLOPES = {
    "abs": 1.0,
    "erf": 2 / math.sqrt(math.pi),
    "erfc": 2 / math.sqrt(math.pi),
    "logistic": 0.25,
    "neg": 1.0,
    "tanh": 1.0,
}


def rounding_bounds(fn, params, frames) -> list[float]:
    """Bounds the distance of two float32 evaluations of `fn(params, frames)`, an output at a time.

    Walks the traced function with the largest magnitude of every value, in float64, and a bound of
    its error. A sum of `K` products adds `c eps K max|x| max|w|` to what its kernel makes of the
    error of its input. That error consists of many independent roundings, so it grows by the
    kernel's 2-norm, as variances do (Higham and Mary 2019, probabilistic error analysis), not by
    its 1-norm. A pointwise operation adds its own rounding to its slope times the error of its
    inputs. Both evaluations may be off, so the result is twice that.

    Returns:
      One number for each output leaf; infinite behind a comparison or a rounding to integers.
    """
    graph = trace(fn, params, frames)
    leaves = jax.tree.leaves(params)
    with jax.enable_x64(True):
        wide: dict[Value, np.ndarray] = {}
        error: dict[Value, float] = {}
        # Parameters are combined apart from the rest: rounded by their largest intermediate.
        largest: dict[Value, float] = {}

        def read(value: Value) -> np.ndarray:
            if value not in wide:
                if value.constant is not None:
                    array = value.constant
                else:
                    array = frames if value is graph.frames else leaves[value.argument]
                wide[value] = _widen(np.asarray(array))
                error[value] = 0.0
                largest[value] = _size(wide[value])
            return wide[value]

        for node in graph.nodes:
            arrays = [read(value) for value in node.inputs]
            outputs = [_widen(np.asarray(array)) for array in _bind(node, arrays)]
            top = max(0.0, *(largest[v] for v in node.inputs), *map(_size, outputs))
            if any(value.frame_dependent for value in node.inputs):
                bound = _bound(node, arrays, [error[v] for v in node.inputs], outputs[0])
            else:
                real = np.issubdtype(outputs[0].dtype, np.floating)
                bound = 2 * _EPS * top if real and node.primitive.name not in _MOVES else 0.0
            for value, array in zip(node.outputs, outputs, strict=True):
                wide[value], error[value], largest[value] = array, bound, top
        bounds = []
        for value in graph.outputs:
            read(value)
            bounds.append(2 * error[value])
    return bounds


def _widen(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def _size(array: np.ndarray) -> float:
    return float(np.abs(array).max()) if np.issubdtype(array.dtype, np.number) else 0.0


def _bind(node: Node, arrays: list[np.ndarray]) -> list[jax.Array]:
    params = dict(node.params)
    for name in ("preferred_element_type", "new_dtype", "dtype"):
        if params.get(name) == np.float32:
            params[name] = np.dtype(np.float64)
    moved = Node(node.primitive, params, node.inputs, node.outputs)
    return moved.bind(*(jax.numpy.asarray(array) for array in arrays))


def _bound(node: Node, arrays: list[np.ndarray], errors: list[float], output) -> float:
    name = node.primitive.name
    if not np.issubdtype(output.dtype, np.floating):
        return math.inf if max(errors) > 0 else 0.0
    sizes = [_size(array) for array in arrays]
    size = _size(output)
    if name in _MOVES:
        return max(errors)
    if name in _CHOICES:
        return max(e for e in errors if math.isfinite(e))
    if name == "conv_general_dilated":
        out = node.params["dimension_numbers"].rhs_spec[0]
        return _products(arrays[1], (out,), sizes, errors)
    if name == "dot_general":
        (_, right), _ = node.params["dimension_numbers"]
        free = tuple(axis for axis in range(arrays[1].ndim) if axis not in right)
        return _products(arrays[1], free, sizes, errors)
    if name in ("reduce_sum", "reduce_window_sum"):
        window = node.params.get("window_dimensions")
        terms = math.prod(window) if window else arrays[0].size // max(1, output.size)
        return math.sqrt(terms) * errors[0] + _C * _EPS * terms * sizes[0]
    if name in ("add", "sub"):
        return errors[0] + errors[1] + _EPS * size
    if name == "mul":
        crossed = sizes[0] * errors[1] + sizes[1] * errors[0] + errors[0] * errors[1]
        return crossed + _EPS * size
    if name == "div":
        least = float(np.abs(arrays[1]).min()) - errors[1]
        return (errors[0] + size * errors[1]) / least + _EPS * size
    if name in ("square", "integer_pow"):
        degree = node.params.get("y", 2)
        return degree * (sizes[0] + errors[0]) ** (degree - 1) * errors[0] + degree * _EPS * size
    if name == "rsqrt":
        return size**3 / 2 * errors[0] + 2 * _EPS * size
    if name == "exp":
        return size * math.expm1(errors[0]) + 8 * _EPS * size
    if name in _SLOPES:
        return _SLOPES[name] * errors[0] + 8 * _EPS * size
    raise NotImplementedError(f"no rounding bound for {name}")


def _products(kernel, free: tuple[int, ...], sizes, errors) -> float:
    summed = tuple(axis for axis in range(kernel.ndim) if axis not in free)
    terms = int((kernel != 0).sum(summed).max())
    gain = math.sqrt(np.square(kernel).sum(summed).max())
    rounding = _C * _EPS * terms * sizes[0] * sizes[1]
    return gain * errors[0] + math.sqrt(terms) * sizes[0] * errors[1] + rounding
