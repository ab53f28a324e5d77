"""The vector code of the masked convolution on CPUs, written as LLVM instructions.

Everything here works on rows: one position's channels, contiguous float32. A vector is as wide as
the processor's registers; what is left over at the end of a row is read and written under a mask.
"""

# llvmlite's builder is annotated in part: what it returns counts as None.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir

from dynvid.kernels.masked_conv.pixels import Formula

FLOAT, INT32, INT64, BIT = ir.FloatType(), ir.IntType(32), ir.IntType(64), ir.IntType(1)
VOID = ir.VoidType()


@dataclasses.dataclass(frozen=True)
class Host:
    """The register tile of a kind of processor.

    Attributes:
      lanes: Floats in a vector.
      rows: Positions that the micro-kernel computes together.
      vectors: Vectors of output channels that it computes of each; fewer where fewer are left.
    """

    lanes: int
    rows: int
    vectors: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels that the micro-kernels compute together, widest first."""
        return tuple(self.lanes * n for n in self.vectors)


# Accumulators, weights and one broadcast value fit the registers: 32 of them, 16 with AVX2.
AVX512 = Host(lanes=16, rows=12, vectors=(2, 1))
AVX2 = Host(lanes=8, rows=6, vectors=(2,))
NEON = Host(lanes=4, rows=6, vectors=(4,))


class _Builder(ir.IRBuilder):
    """Vectors of one width."""

    def __init__(self, block: ir.Block, lanes: int):
        super().__init__(block)
        self.lanes = lanes
        self.vector = ir.VectorType(FLOAT, lanes)
        self.integers = ir.VectorType(INT32, lanes)
        self.bits = ir.VectorType(BIT, lanes)

    def call_vector(self, name: str, *operands: ir.Value) -> ir.Value:
        """An LLVM intrinsic of vectors, such as `fma`."""
        full = f"llvm.{name}.v{self.lanes}f32"
        function = self.module.globals.get(full)
        if function is None:
            kind = ir.FunctionType(self.vector, [self.vector] * len(operands))
            function = ir.Function(self.module, kind, full)
        return self.call(function, operands)

    def number(self, value: float) -> ir.Constant:
        """The same float32 in every lane."""
        return ir.Constant(self.vector, [float(np.float32(value))] * self.lanes)

    def spread(self, scalar: ir.Value) -> ir.Value:
        """A scalar in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.insert_element(undefined, scalar, ir.Constant(INT32, 0))
        return self.shuffle_vector(one, undefined, ir.Constant(self.integers, [0] * self.lanes))

    def at(self, address: ir.Value, kind: ir.Type) -> ir.Value:
        """A pointer from an address, `int64`."""
        return self.inttoptr(address, kind.as_pointer())

    def read(self, address: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """A vector from memory; zeros in lanes that are masked out, which are not touched."""
        pointer = self.at(address, self.vector)
        if mask is None:
            value = self.load(pointer)
            value.align = 4
            return value
        name = f"llvm.masked.load.v{self.lanes}f32.p0"
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(
                self.vector, [self.vector.as_pointer(), INT32, self.bits, self.vector]
            )
            function = ir.Function(self.module, kind, name)
        return self.call(function, [pointer, ir.Constant(INT32, 4), mask, self.number(0)])

    def write(self, vector: ir.Value, address: ir.Value) -> None:
        """A whole vector to memory."""
        self.store(vector, self.at(address, self.vector)).align = 4

    def word(self, address: ir.Value) -> ir.Value:
        """An `int64` from memory."""
        return self.load(self.at(address, INT64))

    def first_lanes(self, count: ir.Value) -> ir.Value:
        """A mask of the first `count` lanes."""
        undefined = ir.Constant(self.integers, ir.Undefined)
        one = self.insert_element(undefined, self.trunc(count, INT32), ir.Constant(INT32, 0))
        zeros = ir.Constant(self.integers, [0] * self.lanes)
        limit = self.shuffle_vector(one, undefined, zeros)
        numbers = ir.Constant(self.integers, list(range(self.lanes)))
        return self.icmp_unsigned("<", numbers, limit)


def _int(value: int) -> ir.Constant:
    return ir.Constant(INT64, value)


def _function(
    module: ir.Module, name: str, arguments: Sequence[ir.Type], lanes: int, result: ir.Type = VOID
) -> tuple[_Builder, list[ir.Argument]]:
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.attributes.add("nounwind")
    return _Builder(function.append_basic_block("entry"), lanes), list(function.args)


def _count(
    builder: _Builder,
    limit: ir.Value,
    body: Callable[..., Sequence[ir.Value]],
    carried: Sequence[ir.Value] = (),
    *,
    step: int = 1,
) -> list[ir.Value]:
    """A loop `for i in range(0, limit, step): carried = body(i, *carried)`, at least once."""
    function, before = builder.function, builder.block
    loop, done = (function.append_basic_block(name) for name in ("loop", "done"))
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(INT64)
    index.add_incoming(_int(0), before)
    values = [builder.phi(value.type) for value in carried]
    for phi, value in zip(values, carried, strict=True):
        phi.add_incoming(value, before)
    results = list(body(index, *values))
    following = builder.add(index, _int(step))
    index.add_incoming(following, builder.block)
    for phi, value in zip(values, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, limit), loop, done)
    builder.position_at_end(done)
    return results


def _over_channels(
    builder: _Builder, channels: ir.Value, body: Callable[[ir.Value, ir.Value | None], None]
) -> None:
    """`body(byte, mask)` for every vector of a row; the last one under a mask where it is short."""
    lanes = builder.lanes
    rest = builder.and_(channels, _int(lanes - 1))
    whole = builder.sub(channels, rest)
    with builder.if_then(builder.icmp_signed(">", whole, _int(0))):

        def turn(index: ir.Value) -> list[ir.Value]:
            body(builder.shl(index, _int(2)), None)
            return []

        _count(builder, whole, turn, step=lanes)
    with builder.if_then(builder.icmp_signed(">", rest, _int(0))):
        body(builder.shl(whole, _int(2)), builder.first_lanes(rest))


def add_dense(module: ir.Module, host: Host, vectors: int) -> None:
    """The micro-kernel: products of some rows, read where they are, with a block of weights.

    `dense_N(runs, pointers, lengths, weights, weight_stride, out, out_stride)`: each run is a
    stretch of channels that is contiguous in memory, at another place for each of the rows:
    `pointers[run][row]`. An indirect convolution: nothing is gathered, nothing unfolded.
    """
    builder, arguments = _function(module, f"dense_{vectors * host.lanes}", [INT64] * 7, host.lanes)
    runs, pointers, lengths, weights, weight_stride, out, out_stride = arguments
    lanes, rows = host.lanes, host.rows

    def run(index: ir.Value, weight: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        table = builder.add(pointers, builder.mul(index, _int(8 * rows)))
        sources = [
            builder.at(builder.word(builder.add(table, _int(8 * i))), FLOAT) for i in range(rows)
        ]
        length = builder.word(builder.add(lengths, builder.shl(index, _int(3))))

        def channel(k: ir.Value, weight: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            columns = [
                builder.read(builder.add(weight, _int(4 * lanes * j))) for j in range(vectors)
            ]
            found = []
            for i, source in enumerate(sources):
                value = builder.spread(builder.load(builder.gep(source, [k])))
                for j, column in enumerate(columns):
                    found.append(builder.call_vector("fma", value, column, sums[vectors * i + j]))
            return [builder.add(weight, weight_stride), *found]

        return _count(builder, length, channel, [weight, *sums])

    zeros = [builder.number(0)] * (rows * vectors)
    _, *sums = _count(builder, runs, run, [weights, *zeros])
    for i in range(rows):
        for j in range(vectors):
            row = builder.add(out, builder.mul(out_stride, _int(i)))
            builder.write(sums[vectors * i + j], builder.add(row, _int(4 * lanes * j)))
    builder.ret_void()


def add_windows(module: ir.Module, host: Host, kind: str) -> None:
    """A row's own channels over the taps of a window: `depthwise` sums of products, or `maximum`.

    `kind(runs, pointers, channels, weights, weight_stride, out, out_stride)`, pointers as of the
    micro-kernel, one run a tap.
    """
    builder, arguments = _function(module, kind, [INT64] * 7, host.lanes)
    runs, pointers, channels, weights, weight_stride, out, out_stride = arguments

    def row(i: ir.Value) -> list[ir.Value]:
        lane = builder.add(pointers, builder.shl(i, _int(3)))
        target = builder.add(out, builder.mul(out_stride, i))

        def vector(byte: ir.Value, mask: ir.Value | None) -> None:
            def tap(index: ir.Value, weight: ir.Value, found: ir.Value) -> list[ir.Value]:
                at = builder.add(lane, builder.mul(index, _int(8 * host.rows)))
                value = builder.read(builder.add(builder.word(at), byte), mask)
                if kind == "maximum":
                    found = builder.call_vector("maximum", value, found)
                else:
                    column = builder.read(builder.add(weight, byte))
                    found = builder.call_vector("fma", value, column, found)
                return [builder.add(weight, weight_stride), found]

            start = builder.number(-np.inf if kind == "maximum" else 0)
            _, found = _count(builder, runs, tap, [weights, start])
            builder.write(found, builder.add(target, byte))

        _over_channels(builder, channels, vector)
        return []

    _count(builder, _int(host.rows), row)
    builder.ret_void()


def add_differs(module: ir.Module, host: Host) -> None:
    """`differs(new, old, channels, tolerance)`: whether any channel moved, as `moved_beyond`.

    Not the same and not nearer than the tolerance; NaN on either side has moved.
    """
    builder, arguments = _function(
        module, "differs", [INT64, INT64, INT64, FLOAT], host.lanes, INT64
    )
    new, old, channels, tolerance = arguments
    least = builder.spread(tolerance)
    found = builder.alloca(builder.bits)
    builder.store(ir.Constant(builder.bits, [0] * host.lanes), found)

    def vector(byte: ir.Value, mask: ir.Value | None) -> None:
        a = builder.read(builder.add(new, byte), mask)
        b = builder.read(builder.add(old, byte), mask)
        same = builder.fcmp_ordered("==", a, b)
        distance = builder.call_vector("fabs", builder.fsub(a, b))
        near = builder.or_(same, builder.fcmp_ordered("<", distance, least))
        builder.store(builder.or_(builder.load(found), builder.not_(near)), found)

    _over_channels(builder, channels, vector)
    any_bit = builder.bitcast(builder.load(found), ir.IntType(host.lanes))
    zero = ir.Constant(ir.IntType(host.lanes), 0)
    builder.ret(builder.zext(builder.icmp_unsigned("!=", any_bit, zero), INT64))


# Formulas.


def _exp(b: _Builder, x: ir.Value) -> ir.Value:
    """e^x = 2^n e^r with |r| <= ln(2)/2 and a polynomial of the sixth degree (Cephes, expf)."""
    # By comparison and not by a minimum, which would lose a NaN.
    x = b.select(b.fcmp_ordered(">", x, b.number(89.0)), b.number(89.0), x)
    x = b.select(b.fcmp_ordered("<", x, b.number(-104.0)), b.number(-104.0), x)
    # Rounded by what a float32 of this size cannot hold; its low bits are then n.
    magic = b.number(1.5 * 2**23)
    shifted = b.call_vector("fma", x, b.number(1.4426950408889634), magic)
    n = b.fsub(shifted, magic)
    r = b.call_vector("fma", n, b.number(-0.693359375), x)
    r = b.call_vector("fma", n, b.number(2.12194440e-4), r)
    p = b.number(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = b.call_vector("fma", p, r, b.number(c))
    p = b.call_vector("fma", p, b.fmul(r, r), b.fadd(r, b.number(1)))
    # In two halves: 2^n alone may leave the range where e^x does not.
    bits = b.sub(b.bitcast(shifted, b.integers), b.bitcast(magic, b.integers))
    ones, bias, mantissa = (ir.Constant(b.integers, [k] * b.lanes) for k in (1, 127, 23))
    half = b.ashr(bits, ones)
    for part in (half, b.sub(bits, half)):
        p = b.fmul(p, b.bitcast(b.shl(b.add(part, bias), mantissa), b.vector))
    return p


def _tanh(b: _Builder, x: ir.Value) -> ir.Value:
    """A rational function, as Eigen's and XLA's."""
    limit = b.number(7.90531110763549805)
    low = b.number(-7.90531110763549805)
    z = b.select(b.fcmp_ordered(">", x, limit), limit, x)
    z = b.select(b.fcmp_ordered("<", z, low), low, z)
    square = b.fmul(z, z)
    p = b.number(-2.76076847742355e-16)
    for c in (
        *(2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08),
        *(1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    ):
        p = b.call_vector("fma", p, square, b.number(c))
    q = b.number(1.19825839466702e-06)
    for c in (1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03):
        q = b.call_vector("fma", q, square, b.number(c))
    found = b.fdiv(b.fmul(z, p), q)
    tiny = b.fcmp_ordered("<", b.call_vector("fabs", x), b.number(0.0004))
    return b.select(tiny, x, found)


def _power(b: _Builder, x: ir.Value, exponent: int) -> ir.Value:
    found, factor, left = None, x, abs(exponent)
    while left:
        if left & 1:
            found = factor if found is None else b.fmul(found, factor)
        left >>= 1
        factor = b.fmul(factor, factor) if left else factor
    found = b.number(1) if found is None else found
    return b.fdiv(b.number(1), found) if exponent < 0 else found


def _larger(b: _Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.call_vector("maximum", x, y)


def _smaller(b: _Builder, x: ir.Value, y: ir.Value) -> ir.Value:
    return b.call_vector("minimum", x, y)


_EMIT: dict[str, Callable[..., ir.Value]] = {
    "abs": lambda b, x: b.call_vector("fabs", x),
    "add": lambda b, x, y: b.fadd(x, y),
    "clamp": lambda b, low, x, high: _smaller(b, _larger(b, x, low), high),
    "div": lambda b, x, y: b.fdiv(x, y),
    "eq": lambda b, x, y: b.fcmp_ordered("==", x, y),
    "exp": _exp,
    "floor": lambda b, x: b.call_vector("floor", x),
    "ge": lambda b, x, y: b.fcmp_ordered(">=", x, y),
    "gt": lambda b, x, y: b.fcmp_ordered(">", x, y),
    "le": lambda b, x, y: b.fcmp_ordered("<=", x, y),
    "logistic": lambda b, x: b.fdiv(b.number(1), b.fadd(b.number(1), _exp(b, b.fneg(x)))),
    "lt": lambda b, x, y: b.fcmp_ordered("<", x, y),
    "max": _larger,
    "min": _smaller,
    "mul": lambda b, x, y: b.fmul(x, y),
    "ne": lambda b, x, y: b.fcmp_unordered("!=", x, y),
    "neg": lambda b, x: b.fneg(x),
    "rsqrt": lambda b, x: b.fdiv(b.number(1), b.call_vector("sqrt", x)),
    "select_n": lambda b, which, no, yes: b.select(which, yes, no),
    "sqrt": lambda b, x: b.call_vector("sqrt", x),
    "square": lambda b, x: b.fmul(x, x),
    "sub": lambda b, x, y: b.fsub(x, y),
    "tanh": _tanh,
}


def formula_name(formula: Formula) -> str:
    """What the code of a formula is called: the same in every process."""
    what = repr(([(leaf.kind, leaf.number) for leaf in formula.leaves], formula.code))
    return f"formula_{hashlib.sha256(what.encode()).hexdigest()[:15]}"


def add_formula(module: ir.Module, host: Host, formula: Formula) -> None:
    """`formula_X(rows, channels, out, out_stride, leaves)`.

    `leaves` has two `int64` for each leaf: the address of a value and its stride from row to row,
    of a vector and zero, of a table of addresses, one a row, of a map.
    """
    builder, arguments = _function(module, formula_name(formula), [INT64] * 5, host.lanes)
    rows, channels, out, out_stride, leaves = arguments
    words = [
        [builder.word(builder.add(leaves, _int(16 * n + 8 * i))) for i in range(2)]
        for n in range(len(formula.leaves))
    ]

    def row(i: ir.Value) -> list[ir.Value]:
        target = builder.add(out, builder.mul(out_stride, i))
        starts = []
        for leaf, (address, stride) in zip(formula.leaves, words, strict=True):
            if leaf.kind == "map":
                starts.append(builder.word(builder.add(address, builder.shl(i, _int(3)))))
            else:
                starts.append(builder.add(address, builder.mul(stride, i)))

        def vector(byte: ir.Value, mask: ir.Value | None) -> None:
            found = []
            for leaf, start in zip(formula.leaves, starts, strict=True):
                if leaf.kind == "number":
                    found.append(builder.number(leaf.number))
                else:
                    found.append(builder.read(builder.add(start, byte), mask))
            for name, operands, exponent in formula.code:
                taken = [found[n] for n in operands]
                if name == "integer_pow":
                    found.append(_power(builder, taken[0], exponent))
                else:
                    found.append(_EMIT[name](builder, *taken))
            result = found[-1] if formula.code else found[0]
            builder.write(result, builder.add(target, byte))

        _over_channels(builder, channels, vector)
        return []

    _count(builder, rows, row)
    builder.ret_void()


def kernel_module(host: Host) -> ir.Module:
    """The code that serves every program."""
    module = ir.Module("kernels")
    for vectors in host.vectors:
        add_dense(module, host, vectors)
    for kind in ("depthwise", "maximum"):
        add_windows(module, host, kind)
    add_differs(module, host)
    return module


def formula_module(host: Host, formula: Formula) -> ir.Module:
    """The code of one formula."""
    module = ir.Module("formula")
    add_formula(module, host, formula)
    return module
