"""Masked convolution on CPUs: one call of XLA's for a segment, at single positions.

An *indirect* convolution: the micro-kernel reads the windows of changed positions where they are,
through a table of addresses, so that nothing is gathered or unfolded; what follows at the position,
the comparison with what is kept and the write-back happen while it is in the cache. For float32 on
processors with AVX-512, AVX2 or NEON; compiled by numba and LLVM, no C compiler needed.
"""

import ctypes
import functools
import importlib.metadata
import pkgutil
import threading
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import llvmlite.binding as llvm
import numpy as np

from dynvid.kernels.masked_conv import cpu_code, cpu_objects
from dynvid.kernels.masked_conv.cpu_layout import describe, padded
from dynvid.kernels.masked_conv.pixels import (
    Formula,
    Instruction,
    Leaf,
    Output,
    Part,
    PixelProgram,
    Product,
    Source,
    Steps,
)

TARGET = "dynvid_masked_conv"
_BLOCK = 32  # columns of weights that lie together, and half of it for the last ones
_SLOTS = 4096  # formulas in one process, twice as many as fit
_LOADING = threading.Lock()


class _Library:
    """What is loaded into this process."""

    def __init__(self):
        host = cpu_objects.host()
        if host is None:
            raise NotImplementedError("no vector code for this processor")
        self.host = host
        source = f"{_source_of_kernels()}\n{host}"
        engine = cpu_objects.load("masked_conv", source, lambda: _kernels(host))
        self.table = (ctypes.c_int64 * 16).from_address(
            engine.get_global_value_address("dynvid_table")
        )
        # Two words a slot: the key of a formula and where its code is.
        self.formulas = np.zeros((_SLOTS, 2), np.int64)
        message = b"a formula of this program was not compiled in this process: trace it again"
        self.message = ctypes.create_string_buffer(message)
        widths = host.widths
        address = engine.get_function_address
        self.table[:13] = [
            host.rows,
            address(f"dense_{widths[0]}"),
            widths[0],
            address(f"dense_{widths[-1]}"),
            widths[-1],
            address("depthwise"),
            address("maximum"),
            address("differs"),
            address("dynvid_task"),
            llvm.address_of_symbol("sched_yield") or 0,
            self.formulas.ctypes.data,
            _SLOTS,
            ctypes.addressof(self.message),
        ]
        self.known: set[str] = set()
        self.lock = threading.Lock()
        handler = ctypes.c_void_p(address("dynvid_handler"))
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")

    def add(self, formula: Formula) -> int:
        """Compiles a formula, once; returns its key."""
        name = cpu_code.formula_name(formula)
        key = _key(formula)
        with self.lock:
            self._compile(name, key, formula)
        return key

    def _compile(self, name: str, key: int, formula: Formula) -> None:
        if name not in self.known:
            module = str(cpu_code.formula_module(self.host, formula))
            engine = cpu_objects.load(name, module, lambda: llvm.parse_assembly(module))
            if len(self.known) > _SLOTS // 2:
                raise RuntimeError(f"one process can hold {_SLOTS // 2} formulas; it has them all")
            slot = key & (_SLOTS - 1)
            while self.formulas[slot, 0] != 0:
                slot = (slot + 1) & (_SLOTS - 1)
            self.formulas[slot, 1] = engine.get_function_address(name)
            self.formulas[slot, 0] = key
            self.known.add(name)


def _key(formula: Formula) -> int:
    return int(cpu_code.formula_name(formula).removeprefix("formula_"), 16)


def _source_of_kernels() -> str:
    parts = [importlib.metadata.version("numba"), _STUB]
    for module in ("cpu_code", "cpu_layout", "cpu_driver"):
        source = pkgutil.get_data(__package__ or "", f"{module}.py")
        assert source is not None
        parts.append(source.decode())
    return "\n".join(parts)


_STUB = """
@dynvid_table = global [16 x i64] zeroinitializer
declare i32 @"{handle}"(ptr, ptr, i64, i64)
declare i32 @"{work}"(ptr, ptr, i64)

define ptr @dynvid_handler(ptr %frame) {{
  %result = alloca i64
  %error = alloca ptr
  %address = ptrtoint ptr %frame to i64
  %table = ptrtoint ptr @dynvid_table to i64
  %status = call i32 @"{handle}"(ptr %result, ptr %error, i64 %address, i64 %table)
  %value = load i64, ptr %result
  %pointer = inttoptr i64 %value to ptr
  ret ptr %pointer
}}

define void @dynvid_task(ptr %job) {{
  %result = alloca i64
  %error = alloca ptr
  %address = ptrtoint ptr %job to i64
  %status = call i32 @"{work}"(ptr %result, ptr %error, i64 %address)
  ret void
}}
"""


def _kernels(host):
    """The driver, as numba compiles it, and the vector code in one module."""
    from dynvid.kernels.masked_conv import cpu_driver

    compiled = {
        name: next(iter(getattr(cpu_driver, name).overloads.values()))
        for name in ("handle", "work")
    }
    names = {name: result.fndesc.llvm_func_name for name, result in compiled.items()}
    module = llvm.parse_assembly(_STUB.format(**names))
    module.link_in(llvm.parse_assembly(compiled["handle"].library.get_llvm_str()))
    if module.get_function(names["work"]).is_declaration:
        module.link_in(llvm.parse_assembly(compiled["work"].library.get_llvm_str()))
    module.link_in(llvm.parse_assembly(str(cpu_code.kernel_module(host))))
    return module


def library() -> _Library | None:
    """What this process has loaded; None where the CPU's own code cannot be used.

    Nothing is said of a processor that nothing was written for. What should run and does not, or
    gives another result than expected, is left alone after one warning.
    """
    with _LOADING:
        return _load()


@functools.cache
def _load() -> _Library | None:
    try:
        loaded = _Library()
    except NotImplementedError:
        return None
    except Exception as error:
        return _refused(repr(error))
    with jax.ensure_compile_time_eval():
        try:
            wrong = _self_test(loaded)
        except Exception as error:
            wrong = repr(error)
    return loaded if wrong is None else _refused(wrong)


def _refused(why: str) -> None:
    warnings.warn(
        f"the CPU kernels do not work here, XLA runs everything instead: {why}",
        RuntimeWarning,
        stacklevel=4,
    )


def _self_test(loaded: _Library) -> str | None:
    """Runs a small program; returns what is wrong with its result, None where nothing is."""
    side, depth, features = 5, 3, 33
    source, place = (
        Source((side, side, channels), (1, 1), (side + 2, side + 2))
        for channels in (depth, features)
    )
    window = (Part(0, False, 0, depth, Steps(1, -1), Steps(1, -1)),)
    doubled = Formula((Leaf("value", 0),), (Instruction("add", (0, 0)),), features)
    product = Product("dense", window, features, (3, 3), weights=0)
    program = PixelProgram(
        (side, side), (source,), (product, doubled), (Output(1, True),), (place,)
    )
    x = np.arange(side * side * depth, dtype=np.float32).reshape(1, side, side, depth) % 7
    kernel = np.arange(9 * depth * features, dtype=np.float32).reshape(3, 3, depth, features) % 5
    halo = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = np.pad(x, halo)
    marked = np.arange(side * side).reshape(1, side, side) % 3 > 0
    expected = np.zeros((1, side, side, features), np.float32)
    for a, b in np.ndindex(3, 3):
        expected += 2 * padded[:, a : a + side, b : b + side] @ kernel[a, b]
    expected = np.pad(np.where(marked[..., None], expected, -1), halo, constant_values=-1)
    (found,), (moved,), count = jax.jit(functools.partial(update_pixels, program, loaded=loaded))(
        [jnp.asarray(padded)],
        [prepare(product, jnp.asarray(kernel))],
        [],
        [jnp.full(expected.shape, -1.0)],
        [jnp.asarray(marked)],
        tolerances=jnp.zeros((1, 1)),
        strict=None,
    )
    if not np.array_equal(found, expected):
        return "a convolution gives another result than expected"
    if not np.array_equal(moved, marked) or int(count[0]) != marked.sum():
        return "a convolution marks other positions than expected"
    return None


# What the weights look like in memory.


def prepare(step: Product, kernel: jax.Array) -> jax.Array:
    """The weights of a product in the order that the micro-kernel reads them.

    Blocks of 32 output channels, the last of 16 where no more are left, filled up with zeros; in
    each the taps of the parts one after the other. The same on every processor.

    Args:
      step: The product.
      kernel: `(kh, kw, C, O)`, of a depthwise one `(kh, kw, 1, O)`.

    Returns:
      `float32[...]`, flat.
    """
    pad = padded(step.features) - step.features
    kernel = jnp.pad(kernel, [(0, 0)] * 3 + [(0, pad)])
    columns = kernel.shape[-1]
    if step.kind == "depthwise":
        return kernel.reshape(-1)
    starts = np.cumsum([0, *(part.channels for part in step.parts)])
    flat = jnp.concatenate(
        [
            kernel[:, :, start : start + part.channels].reshape(-1, columns)
            for start, part in zip(starts, step.parts, strict=False)
        ]
    )
    whole = columns // _BLOCK * _BLOCK
    blocks = flat[:, :whole].reshape(len(flat), -1, _BLOCK).transpose(1, 0, 2)
    return jnp.concatenate([blocks.reshape(-1), flat[:, whole:].reshape(-1)])


def update_pixels(
    program: PixelProgram,
    sources: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    previous: Sequence[jax.Array],
    marked: Sequence[jax.Array],
    *,
    tolerances: jax.Array,
    strict: jax.Array | None,
    loaded: _Library | None = None,
) -> tuple[list[jax.Array], list[jax.Array], jax.Array]:
    """One call of XLA's; see `api.update_pixels`. By what this process has loaded where None."""
    loaded = loaded or library()
    assert loaded is not None
    streams = len(previous[0])
    description = describe(
        program,
        streams=streams,
        vectors=[len(vector) > 1 for vector in vectors],
        strict=strict is not None,
        keys=[loaded.add(s) if isinstance(s, Formula) else 0 for s in program.steps],
    )
    given = [*sources, *weights, *vectors]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in previous]
    compared = [output.compared for output in program.outputs]
    moved = jax.ShapeDtypeStruct((streams, *program.grid), jnp.bool_)
    call = jax.ffi.ffi_call(
        TARGET,
        [*shapes, *([moved] * sum(compared)), jax.ShapeDtypeStruct((streams,), jnp.int32)],
        input_output_aliases={len(given) + i: i for i in range(len(previous))},
        vmap_method="sequential",
    )
    extra = [] if strict is None else [strict]
    results = call(*given, *previous, *marked, tolerances, *extra, program=description)
    found = iter(results[len(previous) : -1])
    marks = [next(found) if c else mark for c, mark in zip(compared, marked, strict=True)]
    return list(results[: len(previous)]), marks, results[-1]
