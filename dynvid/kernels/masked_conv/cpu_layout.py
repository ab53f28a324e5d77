"""How a pixel program is laid out as numbers, for `cpu_driver` to read."""

from collections.abc import Sequence

import numpy as np

from dynvid.kernels.masked_conv.pixels import Formula, Leaf, Part, PixelProgram, Product

API_VERSION = (0, 5)
"""Of XLA's foreign functions, major and minor: what their structs look like."""

LANES = 16
"""What the channels of a value are filled up to."""

# What the table that Python fills holds, in words.
TABLE_ROWS, TABLE_WIDE, TABLE_WIDE_COLUMNS, TABLE_NARROW, TABLE_NARROW_COLUMNS = range(5)
TABLE_DEPTHWISE, TABLE_MAXIMUM, TABLE_DIFFERS, TABLE_TASK, TABLE_YIELD = range(5, 10)
TABLE_FORMULAS, TABLE_FORMULA_SLOTS, TABLE_MESSAGE = 10, 11, 12
TABLE_WORDS = 16

# The description of a program: a head, then records of each kind.
HEAD = 20
STREAMS, ROWS, COLUMNS, STEPS, OUTPUTS, VALUE_BYTES = range(6)
MOST_RUNS, MOST_LEAVES, MOST_CHANNELS, ARGUMENTS, MARKS, TOLERANCES = range(6, 12)
STRICT, MACS, AT_STEPS, AT_PARTS, AT_LEAVES, AT_OUTPUTS = range(12, 18)
CELL_ROWS, CELL_COLUMNS = range(18, 20)
STEP = 16
DENSE, DEPTHWISE, MAXIMUM, FORMULA = range(4)
KIND, VALUE_AT, VALUE_STRIDE, FEATURES, FIRST, NUMBER = range(6)
WINDOW_ROWS, WINDOW_COLUMNS, DILATION_ROWS, DILATION_COLUMNS, WEIGHTS, RUNS = range(6, 12)
DEPTH, KEY = range(12, 14)
PART = 20
SOURCE, COMPUTED_AT, COMPUTED_STRIDE, CHANNEL, CHANNELS, DEEP = range(6)
STORED_ROWS, STORED_COLUMNS, STRIDE_ROWS, OFFSET_ROWS, REPEAT_ROWS, STRIDE_COLUMNS = range(6, 12)
OFFSET_COLUMNS, REPEAT_COLUMNS, MERGED, TOP, LEFT, MAP_ROWS = range(12, 18)
MAP_COLUMNS, BORDERED = range(18, 20)
LEAF = 4
LEAF_VALUE, LEAF_MAP, LEAF_VECTOR, LEAF_NUMBER = range(4)
OUTPUT = 10
OUT_AT, OUT_STRIDE, OUT_CHANNELS, OUT_ROWS, OUT_COLUMNS, OUT_TOP = range(6)
OUT_LEFT, OUT_PREVIOUS, OUT_COMPARED, OUT_MOVED = range(6, 10)

_KINDS = {"dense": DENSE, "depthwise": DEPTHWISE, "maximum": MAXIMUM}


def padded(channels: int) -> int:
    """The channels of a value in memory."""
    return -(-channels // LANES) * LANES


class Arguments:
    """Where in a call each array is: sources, weights, vectors, what is kept, marks, tolerances."""

    def __init__(self, program: PixelProgram, vectors: int, *, strict: bool):
        weights = sum(isinstance(s, Product) and s.weights >= 0 for s in program.steps)
        self.weights = len(program.sources)
        self.vectors = self.weights + weights
        self.previous = self.vectors + vectors
        self.marks = self.previous + len(program.outputs)
        self.tolerances = self.marks + len(program.outputs)
        self.strict = self.tolerances + 1 if strict else -1
        self.count = self.tolerances + 1 + strict


class _Records:
    """Records of one size, one after the other."""

    def __init__(self, size: int):
        self.size = size
        self.rows: list[np.ndarray] = []

    def add(self, **fields: int) -> int:
        """Adds a record by the names of its fields; returns its number."""
        row = np.zeros(self.size, np.int64)
        for name, value in fields.items():
            row[globals()[name]] = value
        self.rows.append(row)
        return len(self.rows) - 1


def describe(
    program: PixelProgram,
    *,
    streams: int,
    vectors: Sequence[bool],
    strict: bool,
    keys: Sequence[int],
) -> np.ndarray:
    """A program as numbers.

    Args:
      program: The program.
      streams: How many there are.
      vectors: Whether each vector has a row for every stream.
      strict: Whether the call gets positions without tolerance.
      keys: The key of each step that is a formula; 0 of others.

    Returns:
      `int64[n]`.
    """
    arguments = Arguments(program, len(vectors), strict=strict)
    steps, parts, leaves, outputs = (_Records(size) for size in (STEP, PART, LEAF, OUTPUT))
    places, total = [], 0
    for step in program.steps:
        places.append((total, 4 * padded(step.features)))
        total += places[-1][1]

    def part(read: Part, step: Product | None) -> int:
        if read.computed:
            at, stride = places[read.source]
            return parts.add(
                SOURCE=-1,
                COMPUTED_AT=at,
                COMPUTED_STRIDE=stride,
                CHANNEL=read.channel,
                CHANNELS=read.channels,
            )
        source = program.sources[read.source]
        rows, columns, deep = source.shape
        stored_rows, stored_columns = source.stored
        whole = step is not None and step.kind == "dense" and read.channels == deep
        return parts.add(
            SOURCE=read.source,
            CHANNEL=read.channel,
            CHANNELS=read.channels,
            DEEP=deep,
            STORED_ROWS=stored_rows,
            STORED_COLUMNS=stored_columns,
            STRIDE_ROWS=read.rows.stride,
            OFFSET_ROWS=read.rows.offset,
            REPEAT_ROWS=read.rows.repeat,
            STRIDE_COLUMNS=read.columns.stride,
            OFFSET_COLUMNS=read.columns.offset,
            REPEAT_COLUMNS=read.columns.repeat,
            # Taps side by side are one run of memory.
            MERGED=whole and step is not None and step.dilation[1] == 1,
            TOP=source.origin[0],
            LEFT=source.origin[1],
            MAP_ROWS=rows,
            MAP_COLUMNS=columns,
            BORDERED=step is not None and step.kind == "maximum",
        )

    most_runs = most_leaves = most_channels = 0
    for number, (step, (at, stride)) in enumerate(zip(program.steps, places, strict=True)):
        most_channels = max(most_channels, stride // 4)
        same = {"VALUE_AT": at, "VALUE_STRIDE": stride, "FEATURES": step.features}
        if isinstance(step, Formula):
            most_leaves = max(most_leaves, len(step.leaves))
            first = len(leaves.rows)
            for leaf in step.leaves:
                leaves.rows.append(np.array(_leaf(leaf, places, arguments, vectors, part)))
            steps.add(KIND=FORMULA, FIRST=first, NUMBER=len(step.leaves), KEY=keys[number], **same)
            continue
        numbers = [part(read, step) for read in step.parts]
        runs = depth = 0
        for n, read in zip(numbers, step.parts, strict=True):
            merged = parts.rows[n][MERGED]
            runs += step.window[0] * (1 if merged else step.window[1])
            depth += step.window[0] * step.window[1] * read.channels
        most_runs = max(most_runs, runs)
        steps.add(
            KIND=_KINDS[step.kind],
            FIRST=numbers[0],
            NUMBER=len(numbers),
            WINDOW_ROWS=step.window[0],
            WINDOW_COLUMNS=step.window[1],
            DILATION_ROWS=step.dilation[0],
            DILATION_COLUMNS=step.dilation[1],
            WEIGHTS=arguments.weights + step.weights,
            RUNS=runs,
            DEPTH=depth,
            **same,
        )
    for number, (output, place) in enumerate(zip(program.outputs, program.places, strict=True)):
        at, stride = places[output.value]
        moved = len(program.outputs) + sum(o.compared for o in program.outputs[:number])
        outputs.add(
            OUT_AT=at,
            OUT_STRIDE=stride,
            OUT_CHANNELS=place.shape[2],
            OUT_ROWS=place.stored[0],
            OUT_COLUMNS=place.stored[1],
            OUT_TOP=place.origin[0],
            OUT_LEFT=place.origin[1],
            OUT_PREVIOUS=arguments.previous + number,
            OUT_COMPARED=output.compared,
            OUT_MOVED=moved,
        )
    ends = np.cumsum([HEAD, *(r.size * len(r.rows) for r in (steps, parts, leaves))])
    head = _Records(HEAD)
    head.add(
        STREAMS=streams,
        ROWS=program.grid[0],
        COLUMNS=program.grid[1],
        STEPS=len(steps.rows),
        OUTPUTS=len(outputs.rows),
        VALUE_BYTES=total,
        MOST_RUNS=most_runs,
        MOST_LEAVES=most_leaves,
        MOST_CHANNELS=most_channels,
        ARGUMENTS=arguments.count,
        MARKS=arguments.marks,
        TOLERANCES=arguments.tolerances,
        STRICT=arguments.strict,
        MACS=program.macs,
        AT_STEPS=ends[0],
        AT_PARTS=ends[1],
        AT_LEAVES=ends[2],
        AT_OUTPUTS=ends[3],
        CELL_ROWS=program.cell[0],
        CELL_COLUMNS=program.cell[1],
    )
    rows = [row for records in (head, steps, parts, leaves, outputs) for row in records.rows]
    return np.concatenate(rows)


def _leaf(leaf: Leaf, places, arguments: Arguments, vectors: Sequence[bool], part) -> list[int]:
    if leaf.kind == "value":
        return [LEAF_VALUE, *places[leaf.index], 0]
    if leaf.kind == "vector":
        by_stream = leaf.channels if vectors[leaf.index] else 0
        return [LEAF_VECTOR, arguments.vectors + leaf.index, by_stream, 0]
    if leaf.kind == "map":
        read = Part(leaf.index, False, leaf.channel, leaf.channels, leaf.rows, leaf.columns)
        return [LEAF_MAP, part(read, None), 0, 0]
    return [LEAF_NUMBER, 0, 0, 0]
