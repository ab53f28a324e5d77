"""The CPU call itself, as XLA sees it: compiled by numba, it calls the code of `cpu_code`.

A call lists the marked positions, cuts the list into chunks and shares them with XLA's own thread
pool: every thread claims the next chunk until none is left. Nobody waits for a task to start, so
that two calls at once cannot wait for each other: a task that starts late finds nothing to claim.

Memory is read by address, as the C struct of XLA's foreign functions lays it out
(`xla/ffi/api/c_api.h`, version `API_VERSION`). A program comes as one array of `int64`, an
attribute of the operation, as `cpu_layout.describe` makes it.
"""

# Numba gives its intrinsics other arguments than they are written with.
# pyright: reportCallIssue=false, reportArgumentType=false

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from dynvid.kernels.masked_conv import cpu_layout as at

# What the threads of one call share, in words.
JOB_USERS, JOB_NEXT, JOB_DONE, JOB_CHUNKS, JOB_DESCRIPTION, JOB_TABLE = range(6)
JOB_ARGUMENTS, JOB_RESULTS, JOB_LIST, JOB_CHUNK_LIST, JOB_SIZE, JOB_FORMULAS = range(6, 12)
JOB_WORDS = 16

_CHUNK_BYTES = 1 << 17  # the values of a chunk stay in a second-level cache
_MOST_PIXELS = 96
_SIGN = -(1 << 31)
_POSITION = (1 << 31) - 1
_WORTH_SHARING = 1 << 20  # multiply-accumulates: some twenty microseconds

_WORD, _HALF, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_REAL = ir.FloatType()


def _loader(kind, result, *, acquire=False):
    @intrinsic
    def load(context, address):
        def generate(_, builder, signature, arguments):
            pointer = builder.inttoptr(arguments[0], kind.as_pointer())
            if acquire:
                return builder.load_atomic(pointer, "acquire", 8)
            value = builder.load(pointer)
            value.align = 1
            return value

        return result(types.int64), generate

    return load


def _storer(kind, given):
    @intrinsic
    def store(context, address, value):
        def generate(target, builder, signature, arguments):
            written = builder.store(arguments[1], builder.inttoptr(arguments[0], kind.as_pointer()))
            written.align = 1
            return target.get_dummy_value()

        return types.void(types.int64, given), generate

    return store


_word = _loader(_WORD, types.int64)
_word_now = _loader(_WORD, types.int64, acquire=True)
_half = _loader(_HALF, types.int32)
_byte = _loader(_BYTE, types.uint8)
_real = _loader(_REAL, types.float32)
_put_word = _storer(_WORD, types.int64)
_put_half = _storer(_HALF, types.int32)
_put_byte = _storer(_BYTE, types.uint8)
_put_real = _storer(_REAL, types.float32)


@intrinsic
def _fetch_add(context, address, value):
    def generate(_, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


def _declared(builder, name, result, arguments):
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def _allocate(context, size):
    def generate(_, builder, signature, arguments):
        function = _declared(builder, "malloc", _BYTE.as_pointer(), [_WORD])
        return builder.ptrtoint(builder.call(function, arguments), _WORD)

    return types.int64(types.int64), generate


@intrinsic
def _free(context, address):
    def generate(target, builder, signature, arguments):
        function = _declared(builder, "free", ir.VoidType(), [_BYTE.as_pointer()])
        builder.call(function, [builder.inttoptr(arguments[0], _BYTE.as_pointer())])
        return target.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _copy(context, target, source, size):
    def generate(numba_target, builder, signature, arguments):
        pointer = _BYTE.as_pointer()
        function = builder.module.declare_intrinsic("llvm.memcpy", [pointer, pointer, _WORD])
        places = [builder.inttoptr(address, pointer) for address in arguments[:2]]
        builder.call(function, [*places, arguments[2], ir.Constant(ir.IntType(1), 0)])
        return numba_target.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _clear(context, target, size):
    def generate(numba_target, builder, signature, arguments):
        pointer = _BYTE.as_pointer()
        function = builder.module.declare_intrinsic("llvm.memset", [pointer, _WORD])
        place = builder.inttoptr(arguments[0], pointer)
        nothing = ir.Constant(_BYTE, 0)
        builder.call(function, [place, nothing, arguments[1], ir.Constant(ir.IntType(1), 0)])
        return numba_target.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _caller(kinds, result):
    """Calls the function at an address."""

    def generate(_, builder, signature, arguments):
        given = [argument.type for argument in arguments[1:]]
        returned = ir.VoidType() if result is types.void else _WORD
        pointer = ir.FunctionType(returned, given).as_pointer()
        found = builder.call(builder.inttoptr(arguments[0], pointer), arguments[1:])
        return _.get_dummy_value() if result is types.void else found

    return result(types.int64, *kinds), generate


@intrinsic
def _call_none(context, function):
    return _caller((), types.int64)


@intrinsic
def _call_one(context, function, a):
    return _caller((types.int64,), types.int64)


@intrinsic
def _call_product(context, function, a, b, c, d, e, f, g):
    return _caller((types.int64,) * 7, types.void)


@intrinsic
def _call_formula(context, function, a, b, c, d, e):
    return _caller((types.int64,) * 5, types.void)


@intrinsic
def _call_differs(context, function, a, b, c, d):
    return _caller((types.int64,) * 3 + (types.float32,), types.int64)


_options = {
    "error_model": "numpy",
    "nogil": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


@njit(**_options)
def _along(position, stride, offset, repeat):
    """Where a window begins along an axis."""
    first = position * stride + offset
    return first // repeat if repeat > 1 else first


@njit(**_options)
def _find(part, job, values, stream, positions, count, addresses):
    """Lists where the first channel that a part reads lies, of each position."""
    channel = 4 * _word(part + 8 * at.CHANNEL)
    source = _word(part + 8 * at.SOURCE)
    if source < 0:
        stride = _word(part + 8 * at.COMPUTED_STRIDE)
        value = values + _word(job + 8 * JOB_SIZE) * _word(part + 8 * at.COMPUTED_AT) + channel
        for i in range(count):
            _put_word(addresses + 8 * i, value + i * stride)
        return
    # Read once: what is written below might be anything, as far as a compiler knows.
    base = _word(_word(job + 8 * JOB_ARGUMENTS) + 8 * source) + channel
    deep = 4 * _word(part + 8 * at.DEEP)
    line = deep * _word(part + 8 * at.STORED_COLUMNS)
    base += line * (stream * _word(part + 8 * at.STORED_ROWS) + _word(part + 8 * at.TOP))
    base += deep * _word(part + 8 * at.LEFT)
    stride_y = _word(part + 8 * at.STRIDE_ROWS)
    offset_y = _word(part + 8 * at.OFFSET_ROWS)
    repeat_y = _word(part + 8 * at.REPEAT_ROWS)
    stride_x = _word(part + 8 * at.STRIDE_COLUMNS)
    offset_x = _word(part + 8 * at.OFFSET_COLUMNS)
    repeat_x = _word(part + 8 * at.REPEAT_COLUMNS)
    for i in range(count):
        y = _along(_word(positions + 24 * i), stride_y, offset_y, repeat_y)
        x = _along(_word(positions + 24 * i + 8), stride_x, offset_x, repeat_x)
        _put_word(addresses + 8 * i, base + line * y + deep * x)


@njit(**_options)
def _point(step, part, table, rows, firsts, positions, count, nothing):
    """Fills in where the rows of a part's taps lie: `pointers[tile][run][row]`."""
    runs = _word(step + 8 * at.RUNS)
    high = _word(step + 8 * at.WINDOW_ROWS)
    wide = _word(step + 8 * at.WINDOW_COLUMNS)
    if _word(part + 8 * at.MERGED):
        wide = 1
    apart_y = _word(step + 8 * at.DILATION_ROWS)
    apart_x = _word(step + 8 * at.DILATION_COLUMNS)
    deep = 4 * _word(part + 8 * at.DEEP)
    down = deep * _word(part + 8 * at.STORED_COLUMNS) * apart_y
    right = deep * apart_x
    bordered = _word(part + 8 * at.BORDERED)
    map_rows = _word(part + 8 * at.MAP_ROWS)
    map_columns = _word(part + 8 * at.MAP_COLUMNS)
    stride_y = _word(part + 8 * at.STRIDE_ROWS)
    offset_y = _word(part + 8 * at.OFFSET_ROWS)
    stride_x = _word(part + 8 * at.STRIDE_COLUMNS)
    offset_x = _word(part + 8 * at.OFFSET_COLUMNS)
    lane = 0
    padded = (count + rows - 1) // rows * rows
    for i in range(padded):
        pixel = min(i, count - 1)  # the last one again, to fill the tile
        address = _word(firsts + 8 * pixel)
        slot = table + 8 * lane
        if bordered:
            y = _word(positions + 24 * pixel) * stride_y + offset_y
            left = _word(positions + 24 * pixel + 8) * stride_x + offset_x
            for a in range(high):
                for b in range(wide):
                    x = left + b * apart_x
                    inside = 0 <= y < map_rows and 0 <= x < map_columns
                    place = address + a * down + b * right
                    _put_word(slot, place if inside else nothing)
                    slot += 8 * rows
                y += apart_y
        else:
            for a in range(high):
                for b in range(wide):
                    _put_word(slot, address + a * down + b * right)
                    slot += 8 * rows
        lane += 1
        if lane == rows:
            lane = 0
            table += 8 * rows * runs
    return high * wide


@njit(**_options)
def _product(
    step, job, table, pointers, lengths, firsts, values, stream, positions, count, nothing
):
    """A convolution, or the maximum over a window."""
    rows = _word(table + 8 * at.TABLE_ROWS)
    description = _word(job + 8 * JOB_DESCRIPTION)
    part = description + 8 * (
        _word(description + 8 * at.AT_PARTS) + at.PART * _word(step + 8 * at.FIRST)
    )
    run = 0
    for _ in range(_word(step + 8 * at.NUMBER)):
        _find(part, job, values, stream, positions, count, firsts)
        first = pointers + 8 * run * rows
        more = _point(step, part, first, rows, firsts, positions, count, nothing)
        length = _word(part + 8 * at.CHANNELS)
        if _word(part + 8 * at.MERGED):
            length *= _word(step + 8 * at.WINDOW_COLUMNS)
        for i in range(more):
            _put_word(lengths + 8 * (run + i), length)
        run += more
        part += 8 * at.PART
    tiles = (count + rows - 1) // rows
    out = values + _word(job + 8 * JOB_SIZE) * _word(step + 8 * at.VALUE_AT)
    stride = _word(step + 8 * at.VALUE_STRIDE)
    kind = _word(step + 8 * at.KIND)
    weights = 0
    if kind != at.MAXIMUM:
        weights = _word(_word(job + 8 * JOB_ARGUMENTS) + 8 * _word(step + 8 * at.WEIGHTS))
    if kind != at.DENSE:
        function = _word(table + 8 * (at.TABLE_DEPTHWISE - at.DEPTHWISE + kind))
        for tile in range(tiles):
            _call_product(
                function,
                run,
                pointers + 8 * tile * run * rows,
                _word(step + 8 * at.FEATURES),
                weights,
                stride,
                out + tile * rows * stride,
                stride,
            )
        return
    column = 0
    while 4 * column < stride:
        block = min(32, stride // 4 - column)
        here = weights + 4 * column * _word(step + 8 * at.DEPTH)
        wide = block >= _word(table + 8 * at.TABLE_WIDE_COLUMNS)
        width = _word(table + 8 * (at.TABLE_WIDE_COLUMNS if wide else at.TABLE_NARROW_COLUMNS))
        function = _word(table + 8 * (at.TABLE_WIDE if wide else at.TABLE_NARROW))
        for within in range(0, block, width):
            for tile in range(tiles):
                _call_product(
                    function,
                    run,
                    pointers + 8 * tile * run * rows,
                    lengths,
                    here + 4 * within,
                    4 * block,
                    out + tile * rows * stride + 4 * (column + within),
                    stride,
                )
        column += block


@njit(**_options)
def _formula(step, function, job, leaves, addresses, values, stream, positions, count):
    """What follows a product at every position."""
    size = _word(job + 8 * JOB_SIZE)
    description = _word(job + 8 * JOB_DESCRIPTION)
    leaf = description + 8 * (
        _word(description + 8 * at.AT_LEAVES) + at.LEAF * _word(step + 8 * at.FIRST)
    )
    for n in range(_word(step + 8 * at.NUMBER)):
        kind = _word(leaf)
        index = _word(leaf + 8)
        address = 0
        stride = 0
        if kind == at.LEAF_VALUE:
            address = values + size * index
            stride = _word(leaf + 16)
        elif kind == at.LEAF_VECTOR:
            address = _word(_word(job + 8 * JOB_ARGUMENTS) + 8 * index)
            address += 4 * stream * _word(leaf + 16)
        elif kind == at.LEAF_MAP:
            address = addresses + 8 * n * size
            part = description + 8 * (_word(description + 8 * at.AT_PARTS) + at.PART * index)
            _find(part, job, values, stream, positions, count, address)
        _put_word(leaves + 16 * n, address)
        _put_word(leaves + 16 * n + 8, stride)
        leaf += 8 * at.LEAF
    _call_formula(
        function,
        count,
        _word(step + 8 * at.FEATURES),
        values + size * _word(step + 8 * at.VALUE_AT),
        _word(step + 8 * at.VALUE_STRIDE),
        leaves,
    )


@njit(**_options)
def _keep(number, record, job, table, values, stream, positions, count):
    """Writes a value where it is kept, everywhere or where it moved."""
    description = _word(job + 8 * JOB_DESCRIPTION)
    columns = _word(description + 8 * at.COLUMNS)
    plane = _word(description + 8 * at.ROWS) * columns
    arguments = _word(job + 8 * JOB_ARGUMENTS)
    results = _word(job + 8 * JOB_RESULTS)
    channels = _word(record + 8 * at.OUT_CHANNELS)
    base = _word(results + 8 * number)
    compared = _word(record + 8 * at.OUT_COMPARED)
    marks = 0
    moved = 0
    tolerance = np.float32(0)
    strict = 0
    if compared:
        marks = _word(arguments + 8 * (_word(description + 8 * at.MARKS) + number))
        marks += stream * plane
        moved = _word(results + 8 * _word(record + 8 * at.OUT_MOVED)) + stream * plane
        tolerances = _word(arguments + 8 * _word(description + 8 * at.TOLERANCES))
        streams = _word(description + 8 * at.STREAMS)
        tolerance = _real(tolerances + 4 * (number * streams + stream))
        strict = _word(description + 8 * at.STRICT)
        if strict >= 0:
            strict = _word(arguments + 8 * strict) + stream * plane
    differs = _word(table + 8 * at.TABLE_DIFFERS)
    value = values + _word(job + 8 * JOB_SIZE) * _word(record + 8 * at.OUT_AT)
    stride = _word(record + 8 * at.OUT_STRIDE)
    deep = 4 * channels
    line = deep * _word(record + 8 * at.OUT_COLUMNS)
    base += line * (stream * _word(record + 8 * at.OUT_ROWS) + _word(record + 8 * at.OUT_TOP))
    base += deep * _word(record + 8 * at.OUT_LEFT)
    i = 0
    while i < count:
        end = i + 1
        while end < count and _word(positions + 24 * end + 16) == 0:
            end += 1  # a cell is replaced as a whole
        write = compared == 0
        n = i
        while n < end and not write:
            row = _word(positions + 24 * n)
            column = _word(positions + 24 * n + 8)
            position = row * columns + column
            if _byte(marks + position):
                least = tolerance
                if strict >= 0 and _byte(strict + position):
                    least = np.float32(0)
                place = base + line * row + deep * column
                new = value + stride * n
                write = _call_differs(differs, new, place, channels, least) != 0
            n += 1
        if write:
            for n in range(i, end):
                row = _word(positions + 24 * n)
                column = _word(positions + 24 * n + 8)
                position = row * columns + column
                if compared == 0 or _byte(marks + position):
                    _copy(base + line * row + deep * column, value + stride * n, deep)
                    if compared:
                        _put_byte(moved + position, 1)
        i = end


@njit(**_options)
def _scratch_bytes(description, size):
    """The memory that a thread needs for chunks of `size` positions."""
    return (
        32 * size
        + 8 * size * _word(description + 8 * at.MOST_RUNS)
        + 8 * _word(description + 8 * at.MOST_RUNS)
        + (16 + 8 * size) * _word(description + 8 * at.MOST_LEAVES)
        + 4 * _word(description + 8 * at.MOST_CHANNELS)
        + size * _word(description + 8 * at.VALUE_BYTES)
        + 64
    )


@njit(**_options)
def _chunk(job, number, scratch):
    """Computes the positions of one chunk."""
    description = _word(job + 8 * JOB_DESCRIPTION)
    table = _word(job + 8 * JOB_TABLE)
    size = _word(job + 8 * JOB_SIZE)
    record = _word(job + 8 * JOB_CHUNK_LIST) + 24 * number
    start = _word(record)
    count = _word(record + 8)
    stream = _word(record + 16)
    most_runs = _word(description + 8 * at.MOST_RUNS)
    most_leaves = _word(description + 8 * at.MOST_LEAVES)
    positions = scratch
    pointers = positions + 24 * size
    lengths = pointers + 8 * size * most_runs
    firsts = lengths + 8 * most_runs
    leaves = firsts + 8 * size
    addresses = leaves + 16 * most_leaves
    nothing = addresses + 8 * size * most_leaves
    values = (nothing + 4 * _word(description + 8 * at.MOST_CHANNELS) + 63) // 64 * 64
    for i in range(_word(description + 8 * at.MOST_CHANNELS)):
        _put_real(nothing + 4 * i, np.float32(-np.inf))
    columns = _word(description + 8 * at.COLUMNS)
    listed = _word(job + 8 * JOB_LIST) + 4 * start
    for i in range(count):
        entry = np.int64(_half(listed + 4 * i))
        position = entry & _POSITION
        row = position // columns
        _put_word(positions + 24 * i, row)
        _put_word(positions + 24 * i + 8, position - row * columns)
        _put_word(positions + 24 * i + 16, entry < 0)
    step = description + 8 * _word(description + 8 * at.AT_STEPS)
    for n in range(_word(description + 8 * at.STEPS)):
        # Values lie behind one another, each of as many rows as a chunk may have.
        if _word(step + 8 * at.KIND) == at.FORMULA:
            function = _word(_word(job + 8 * JOB_FORMULAS) + 8 * n)
            _formula(step, function, job, leaves, addresses, values, stream, positions, count)
        else:
            _product(
                step,
                job,
                table,
                pointers,
                lengths,
                firsts,
                values,
                stream,
                positions,
                count,
                nothing,
            )
        step += 8 * at.STEP
    record = description + 8 * _word(description + 8 * at.AT_OUTPUTS)
    for n in range(_word(description + 8 * at.OUTPUTS)):
        _keep(n, record, job, table, values, stream, positions, count)
        record += 8 * at.OUTPUT


@njit(**_options)
def _release(job):
    if _fetch_add(job + 8 * JOB_USERS, -1) == 1:
        _free(job)


@njit(types.int64(types.int64), **_options)
def work(job):
    """What every thread of a call does: chunk after chunk, until all are claimed."""
    chunks = _word(job + 8 * JOB_CHUNKS)
    mine = _fetch_add(job + 8 * JOB_NEXT, 1)
    if mine < chunks:
        size = _word(job + 8 * JOB_SIZE)
        scratch = _allocate(_scratch_bytes(_word(job + 8 * JOB_DESCRIPTION), size))
        while mine < chunks:
            _chunk(job, mine, scratch)
            _fetch_add(job + 8 * JOB_DONE, 1)
            mine = _fetch_add(job + 8 * JOB_NEXT, 1)
        _free(scratch)
    _release(job)
    return 0


@njit(**_options)
def _list(description, arguments, listed, counts):
    """Lists the marked positions by stream, cell after cell; returns how many there are.

    The first position of a cell carries a sign.
    """
    rows = _word(description + 8 * at.ROWS)
    columns = _word(description + 8 * at.COLUMNS)
    high = _word(description + 8 * at.CELL_ROWS)
    wide = _word(description + 8 * at.CELL_COLUMNS)
    outputs = _word(description + 8 * at.OUTPUTS)
    first = arguments + 8 * _word(description + 8 * at.MARKS)
    total = 0
    for stream in range(_word(description + 8 * at.STREAMS)):
        before = total
        offset = stream * rows * columns
        for top in range(0, rows, high):
            bottom = min(top + high, rows)
            for start in range(0, columns, 8):
                end = min(start + 8, columns)
                if end - start == 8:  # mostly nothing: eight at once
                    eight = np.int64(0)
                    for n in range(outputs):
                        place = _word(first + 8 * n) + offset + start
                        for row in range(top, bottom):
                            eight |= _word(place + row * columns)
                    if eight == 0:
                        continue
                for left in range(start, end, wide):
                    sign = _SIGN
                    for row in range(top, bottom):
                        for column in range(left, min(left + wide, end)):
                            position = row * columns + column
                            mark = np.uint8(0)
                            for n in range(outputs):
                                mark |= _byte(_word(first + 8 * n) + offset + position)
                            if mark != 0:
                                _put_half(listed + 4 * total, np.int32(position | sign))
                                sign = 0
                                total += 1
        _put_half(counts + 4 * stream, np.int32(total - before))
    return total


@njit(**_options)
def _failed(api, table):
    """An error for XLA to raise."""
    record = _allocate(32)
    _put_word(record, 28)
    _put_word(record + 8, 0)
    _put_word(record + 16, _word(table + 8 * at.TABLE_MESSAGE))
    _put_word(record + 24, 9)  # a failed precondition
    error = _call_one(_word(api + 48), record)
    _free(record)
    return error


@njit(**_options)
def _formulas(description, table, found):
    """Looks up the code of the program's formulas; returns whether all is there."""
    slots = _word(table + 8 * at.TABLE_FORMULA_SLOTS)
    entries = _word(table + 8 * at.TABLE_FORMULAS)
    step = description + 8 * _word(description + 8 * at.AT_STEPS)
    for n in range(_word(description + 8 * at.STEPS)):
        if _word(step + 8 * at.KIND) == at.FORMULA:
            key = _word(step + 8 * at.KEY)
            slot = key & (slots - 1)
            while _word(entries + 16 * slot) != key:
                if _word(entries + 16 * slot) == 0:
                    return False
                slot = (slot + 1) & (slots - 1)
            _put_word(found + 8 * n, _word(entries + 16 * slot + 8))
        step += 8 * at.STEP
    return True


@njit(**_options)
def _threads(api, context, job):
    """How many threads XLA's pool has."""
    record = job + 8 * JOB_WORDS  # not used yet
    _put_word(record, 32)
    _put_word(record + 8, 0)
    _put_word(record + 16, context)
    _put_word(record + 24, record + 32)
    _put_word(record + 32, 1)
    _call_one(_word(api + 48 + 8 * 12), record)
    return _word(record + 32)


@njit(types.int64(types.int64, types.int64), **_options)
def handle(frame, table):
    """Serves a call; returns an error for XLA to raise, or 0."""
    extension = _word(frame + 8)
    if extension != 0:  # XLA asks for the version that this was written for
        metadata = _word(extension + 24)
        _put_half(metadata + 24, np.int32(at.API_VERSION[0]))
        _put_half(metadata + 28, np.int32(at.API_VERSION[1]))
        _put_half(metadata + 32, np.int32(0))
        return 0
    api = _word(frame + 16)
    context = _word(frame + 24)
    given = _word(frame + 72)
    taken = _word(frame + 112)
    description = _word(_word(_word(frame + 160)) + 16)
    streams = _word(description + 8 * at.STREAMS)
    plane = _word(description + 8 * at.ROWS) * _word(description + 8 * at.COLUMNS)
    steps = _word(description + 8 * at.STEPS)
    outputs = _word(description + 8 * at.OUTPUTS)
    argument_count = _word(description + 8 * at.ARGUMENTS)
    result_count = 2 * outputs + 1
    rows = _word(table + 8 * at.TABLE_ROWS)
    most_chunks = streams * (plane // 2 + 2)  # a cell that is not cut leaves some places free
    job = _allocate(
        8 * (JOB_WORDS + argument_count + result_count + steps + 3 * most_chunks + 8)
        + 4 * streams * plane
        + 64
    )
    arguments = job + 8 * JOB_WORDS + 64
    results = arguments + 8 * argument_count
    formulas = results + 8 * result_count
    chunk_list = formulas + 8 * steps
    listed = chunk_list + 24 * most_chunks
    if not _formulas(description, table, formulas):
        _free(job)
        return _failed(api, table)
    for i in range(argument_count):
        _put_word(arguments + 8 * i, _word(_word(given + 8 * i) + 24))
    last = outputs
    record = description + 8 * _word(description + 8 * at.AT_OUTPUTS)
    for n in range(outputs):
        buffer = _word(taken + 8 * n)
        place = _word(buffer + 24)
        _put_word(results + 8 * n, place)
        previous = _word(arguments + 8 * _word(record + 8 * at.OUT_PREVIOUS))
        if place != previous:
            size = _word(record + 8 * at.OUT_ROWS) * _word(record + 8 * at.OUT_COLUMNS)
            _copy(place, previous, 4 * streams * size * _word(record + 8 * at.OUT_CHANNELS))
        if _word(record + 8 * at.OUT_COMPARED):
            moved = _word(_word(taken + 8 * last) + 24)
            _put_word(results + 8 * last, moved)
            _clear(moved, streams * plane)
            last += 1
        record += 8 * at.OUTPUT
    counts = _word(_word(taken + 8 * last) + 24)
    threads = _threads(api, context, job)
    total = _list(description, arguments, listed, counts)
    if total == 0:
        _free(job)
        return 0
    size = _CHUNK_BYTES // (_word(description + 8 * at.VALUE_BYTES) + 1)
    size = min(_MOST_PIXELS, max(size, (total + 2 * threads - 1) // (2 * threads)))
    size = min(size, (total + 2 * threads - 1) // (2 * threads))
    size = (size + rows - 1) // rows * rows
    chunks = 0
    start = 0
    for stream in range(streams):
        end = start + np.int64(_half(counts + 4 * stream))
        while start < end:
            count = min(size, end - start)
            while start + count < end and _half(listed + 4 * (start + count)) >= 0:
                count -= 1  # a cell is not cut in two
            _put_word(chunk_list + 24 * chunks, start)
            _put_word(chunk_list + 24 * chunks + 8, count)
            _put_word(chunk_list + 24 * chunks + 16, stream)
            chunks += 1
            start += count
    helpers = min(threads - 1, chunks - 1)
    if total * _word(description + 8 * at.MACS) < _WORTH_SHARING:
        helpers = 0
    _put_word(job + 8 * JOB_USERS, helpers + 2)
    _put_word(job + 8 * JOB_NEXT, 0)
    _put_word(job + 8 * JOB_DONE, 0)
    _put_word(job + 8 * JOB_CHUNKS, chunks)
    _put_word(job + 8 * JOB_DESCRIPTION, description)
    _put_word(job + 8 * JOB_TABLE, table)
    _put_word(job + 8 * JOB_ARGUMENTS, arguments)
    _put_word(job + 8 * JOB_RESULTS, results)
    _put_word(job + 8 * JOB_LIST, listed)
    _put_word(job + 8 * JOB_CHUNK_LIST, chunk_list)
    _put_word(job + 8 * JOB_SIZE, size)
    _put_word(job + 8 * JOB_FORMULAS, formulas)
    if helpers > 0:
        record = _allocate(64)
        _put_word(record, 40)
        _put_word(record + 8, 0)
        _put_word(record + 16, context)
        _put_word(record + 24, _word(table + 8 * at.TABLE_TASK))
        _put_word(record + 32, job)
        for _ in range(helpers):
            if _call_one(_word(api + 48 + 8 * 11), record) != 0:
                _release(job)  # of a task that will not come
        _free(record)
    work(job)
    turns = 0
    while _word_now(job + 8 * JOB_DONE) < chunks:
        turns += 1
        if turns > 2000 and _word(table + 8 * at.TABLE_YIELD) != 0:
            _call_none(_word(table + 8 * at.TABLE_YIELD))
    _release(job)
    return 0
