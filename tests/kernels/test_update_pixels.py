"""Pixel programs: every implementation against the reference, bit for bit on integers."""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.kernels.masked_conv import (
    cpu,
    cpu_objects,
    pixels_run_on,
    prepare_weights,
    update_pixels,
)
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

pytestmark = pytest.mark.skipif(pixels_run_on() is None, reason="only the reference runs here")

HALO = 3
GRID = (9, 11)
STREAMS = 2


def stored(channels, *, grid=GRID):
    return Source((*grid, channels), (HALO, HALO), (grid[0] + 2 * HALO, grid[1] + 2 * HALO))


def read(source, channels, *, first=0, stride=1, low=0, repeat=1, computed=False):
    return Part(
        source, computed, first, channels, Steps(stride, -low, repeat), Steps(stride, -low, repeat)
    )


def value(index):
    return Leaf("value", index)


def vector(index, channels):
    return Leaf("vector", index, channels=channels)


def relu_of_sum(index, channels, *others):
    """max(value + ..., 0)."""
    leaves = (value(index), *others, Leaf("number", number=0.0))
    last = len(leaves) - 1
    code, total = [], 0
    for n in range(1, last):
        code.append(Instruction("add", (total, n)))
        total = len(leaves) + len(code) - 1
    return Formula(leaves, (*code, Instruction("max", (total, last))), channels)


def program(sources, steps, outputs):
    channels = [steps[output.value].features for output in outputs]
    return PixelProgram(GRID, sources, tuple(steps), tuple(outputs), tuple(map(stored, channels)))


TALL = (2 * GRID[0], 2 * GRID[1])
SMALL = ((GRID[0] + 1) // 2, (GRID[1] + 1) // 2)

# Name: program, shapes of its kernels, channels of its vectors and whether each is one a stream.
PROGRAMS = {
    "3x3": (
        program(
            (stored(5),),
            [
                Product("dense", (read(0, 5, low=1),), 19, (3, 3), weights=0),
                relu_of_sum(0, 19, vector(0, 19)),
            ],
            [Output(1, True)],
        ),
        [(3, 3, 5, 19)],
        [(19, False)],
    ),
    "7x7 with stride": (
        program(
            (stored(3, grid=TALL),),
            [Product("dense", (read(0, 3, stride=2, low=3),), 40, (7, 7), weights=0)],
            [Output(0, False)],
        ),
        [(7, 7, 3, 40)],
        [],
    ),
    "dilated, residual, two outputs": (
        program(
            (stored(16), stored(33)),
            [
                Product("dense", (read(0, 16, low=2),), 33, (3, 3), (2, 2), weights=0),
                relu_of_sum(0, 33, vector(0, 33), Leaf("map", 1, channels=33)),
                Product("dense", (read(1, 33, computed=True),), 64, weights=1),
            ],
            [Output(1, True), Output(2, True)],
        ),
        [(3, 3, 16, 33), (1, 1, 33, 64)],
        [(33, True)],
    ),
    "slices, upsampled and computed side by side": (
        program(
            (stored(8), stored(6, grid=SMALL)),
            [
                Product("dense", (read(0, 4, first=3, low=1),), 17, (3, 3), weights=0),
                Product(
                    "dense",
                    (
                        read(1, 6, repeat=2),
                        read(0, 17, computed=True),
                        read(0, 5, first=1),
                        read(0, 2, first=7, computed=True),
                    ),
                    21,
                    weights=1,
                ),
            ],
            [Output(1, True), Output(0, False)],
        ),
        [(3, 3, 4, 17), (1, 1, 30, 21)],
        [],
    ),
    "3x3 over two maps": (
        program(
            (stored(7), stored(9)),
            [Product("dense", (read(0, 7, low=1), read(1, 9, low=1)), 48, (3, 3), weights=0)],
            [Output(0, True)],
        ),
        [(3, 3, 16, 48)],
        [],
    ),
    "depthwise": (
        program(
            (stored(21, grid=TALL),),
            [
                Product("depthwise", (read(0, 21, stride=2, low=1),), 21, (3, 3), weights=0),
                Formula(
                    (value(0), Leaf("number", number=-3.0), Leaf("number", number=6.0)),
                    (Instruction("clamp", (1, 0, 2)),),
                    21,
                ),
            ],
            [Output(1, True)],
        ),
        [(3, 3, 1, 21)],
        [],
    ),
    "maximum": (
        program(
            (stored(18),),
            [
                Product("maximum", (read(0, 18, low=2),), 18, (5, 5)),
                Product("dense", (read(0, 18), read(0, 18, computed=True)), 16, weights=0),
            ],
            [Output(0, True), Output(1, True)],
        ),
        [(1, 1, 36, 16)],
        [],
    ),
}


def marks(which, generator):
    mask = np.zeros((STREAMS, *GRID), bool)
    if which == "one":
        mask[1, 4, 5] = True
    elif which == "odd":
        mask.reshape(-1)[generator.choice(mask.size, 37, replace=False)] = True
    elif which == "borders":
        mask[:, [0, -1]] = mask[:, :, [0, -1]] = True
    elif which == "one stream":
        mask[0] = generator.random(GRID) < 0.5
    elif which == "full":
        mask[:] = True
    return jnp.asarray(mask)


class Case:
    """A program with integers to run it on."""

    def __init__(self, name, *, strict=False, seed=0, cell=(1, 1)):
        chosen, kernels, vectors = PROGRAMS[name]
        self.program = dataclasses.replace(chosen, cell=cell)
        self.generator = np.random.default_rng(seed)
        self.sources = [self.map(source) for source in self.program.sources]
        self.kernels = [self.integers(*shape) for shape in kernels]
        self.vectors = [self.integers(STREAMS if each else 1, n) for n, each in vectors]
        self.previous = [self.map(place) for place in self.program.places]
        self.strict = marks("odd", self.generator) if strict else None
        products = [s for s in self.program.steps if isinstance(s, Product) and s.weights >= 0]
        self.prepared = [prepare_weights(p, self.kernels[p.weights]) for p in products]
        run = functools.partial(update_pixels, self.program)
        self.expected = jax.jit(functools.partial(run, implementation="xla"))
        self.found = jax.jit(run)

    def integers(self, *shape):
        return jnp.asarray(self.generator.integers(-3, 4, shape).astype(np.float32))

    def map(self, source):
        inside = self.integers(STREAMS, *source.shape)
        return jnp.pad(inside, ((0, 0), (HALO, HALO), (HALO, HALO), (0, 0)))

    def both(self, marked, *, tolerance=0.0):
        tolerances = jnp.full((len(self.previous), STREAMS), tolerance)
        rest = (self.vectors, self.previous, marked)
        options = {"tolerances": tolerances, "strict": self.strict}
        expected = self.expected(self.sources, self.kernels, *rest, **options)
        return expected, self.found(self.sources, self.prepared, *rest, **options)

    def check(self, marked, **options):
        expected, found = self.both(marked, **options)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        return found


@pytest.fixture(scope="module", params=PROGRAMS)
def case(request):
    return Case(request.param)


@pytest.mark.parametrize("cell", [(2, 2), (1, 4), (4, 1)])
def test_cells_are_replaced_as_a_whole(cell):
    case = Case("3x3", cell=cell)
    marked = marks("odd", case.generator) | marks("one stream", case.generator)
    _, (moved,), _ = case.check([marked], tolerance=40.0)
    _, (single,), _ = Case("3x3").check([marked], tolerance=40.0)
    assert (single <= moved).all()
    assert (moved <= marked).all()
    assert single.sum() < moved.sum() < marked.sum()


@pytest.mark.parametrize("which", ["none", "one", "odd", "borders", "one stream", "full"])
def test_maps_what_moved_and_counts_are_the_references(case, which):
    marked = [marks(which, case.generator) for _ in case.previous]
    _, _, counts = case.check(marked)
    some = functools.reduce(np.logical_or, map(np.asarray, marked))
    np.testing.assert_array_equal(counts, some.sum((1, 2)))


def test_each_output_is_compared_under_its_own_marks_and_tolerance(case):
    marked = [marks(which, case.generator) for which in ("odd", "one stream")]
    _, moved, _ = case.check(marked[: len(case.previous)], tolerance=40.0)
    for change, mark, output in zip(moved, marked, case.program.outputs, strict=False):
        assert (change <= mark).all()
        assert output.compared or (change == mark).all()


def test_strict_positions_have_no_tolerance():
    case = Case("dilated, residual, two outputs", strict=True)
    full = marks("full", case.generator)
    _, (moved, _), _ = case.check([full, full], tolerance=1e9)
    assert moved.any()
    assert not (moved & ~case.strict).any()


def test_an_infinite_tolerance_keeps_everything():
    case = Case("3x3")
    (kept,), (moved,), _ = case.check([marks("full", case.generator)], tolerance=jnp.inf)
    assert not moved.any()
    np.testing.assert_array_equal(kept, case.previous[0])


def test_what_is_not_a_number_has_moved_and_spreads_no_further_than_its_window():
    case = Case("3x3")
    case.sources[0] = case.sources[0].at[0, HALO + 4, HALO + 4, 2].set(jnp.nan)
    (out,), (moved,), _ = case.check([marks("full", case.generator)], tolerance=1e9)
    expected = np.zeros((STREAMS, *GRID), bool)
    expected[0, 3:6, 3:6] = True
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(np.isnan(out).any(-1)[:, HALO:-HALO, HALO:-HALO], expected)


@pytest.mark.parametrize(
    ("name", "operands", "lowest", "ulps"),
    [
        *((name, 1, -110.0, 4) for name in ("exp", "logistic")),
        ("tanh", 1, -20.0, 8),
        *((name, 1, -9.0, 1) for name in ("abs", "floor", "neg", "square")),
        *((name, 1, 0.01, 2) for name in ("sqrt", "rsqrt")),
        *((name, 2, -9.0, 1) for name in ("add", "sub", "mul", "div", "max", "min")),
    ],
)
def test_formulas_are_as_accurate_as_xlas(name, operands, lowest, ulps):
    """On values of every size; what is not finite is what it is to XLA."""
    special = [jnp.nan, jnp.inf, -jnp.inf, 0.0, -0.0, 1e-30, -1e-30, 88.7, 89.5, 1.0]
    spread = np.linspace(lowest, 100, STREAMS * GRID[0] * GRID[1] * 16 - len(special))
    values = np.concatenate([special, spread]).astype(np.float32)
    leaves = tuple(Leaf("map", i, channels=16) for i in range(operands))
    step = Formula(leaves, (Instruction(name, tuple(range(operands))),), 16)
    chosen = program((stored(16),) * operands, [step], [Output(0, False)])
    pad = ((0, 0), (HALO, HALO), (HALO, HALO), (0, 0))
    shape = (STREAMS, *GRID, 16)
    maps = [values.reshape(shape), np.roll(values, 4999).reshape(shape)][:operands]
    given = [[jnp.pad(x, pad) for x in maps], [], [], [jnp.zeros((STREAMS, 15, 17, 16))]]
    options = {"tolerances": jnp.zeros((1, STREAMS))}
    full = jnp.ones((STREAMS, *GRID), bool)
    results = [
        jax.jit(functools.partial(update_pixels, chosen, implementation=implementation))(
            *given, [full], **options
        )[0][0]
        for implementation in ("xla", None)
    ]
    expected, found = (np.asarray(x)[:, HALO:-HALO, HALO:-HALO] for x in results)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    # What is smaller than a normal float32 may be zero.
    tiny = np.finfo(np.float32).tiny
    np.testing.assert_allclose(
        found[finite], expected[finite], rtol=ulps * np.finfo(np.float32).eps, atol=2 * tiny
    )


def test_threads_at_once_do_not_disturb_or_wait_for_one_another():
    case = Case("3x3")
    full = [marks("full", case.generator)]
    expected, _ = case.both(full)
    wrong = []

    def often():
        for _ in range(50):
            _, found = case.both(full)
            same = jax.tree.map(np.array_equal, found, expected)
            if not all(jax.tree.leaves(same)):
                wrong.append(found)

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_memory_stays_flat_over_many_calls():
    resource = pytest.importorskip("resource")
    case = Case("dilated, residual, two outputs")
    marked = [marks("full", case.generator)] * 2
    donated = jax.jit(functools.partial(update_pixels, case.program), donate_argnums=3)
    previous = case.previous
    options = {"tolerances": jnp.zeros((2, STREAMS))}

    def often(previous, count):
        for _ in range(count):
            previous, _, _ = donated(
                case.sources, case.prepared, case.vectors, previous, marked, **options
            )
        jax.block_until_ready(previous)
        return previous, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    previous, before = often(previous, 200)
    _, after = often(previous, 2000)
    assert after - before < 4096  # KiB: 2 bytes a call; a leaked job is hundreds


def test_a_map_that_is_given_away_is_written_in_place():
    case = Case("3x3")
    donated = jax.jit(functools.partial(update_pixels, case.program), donate_argnums=3)
    before = case.previous[0].unsafe_buffer_pointer()
    (out,), _, _ = donated(
        case.sources,
        case.prepared,
        case.vectors,
        case.previous,
        [marks("odd", case.generator)],
        tolerances=jnp.zeros((1, STREAMS)),
    )
    assert out.unsafe_buffer_pointer() == before


def test_an_implementation_that_does_not_run_here_is_refused():
    case = Case("3x3")
    with pytest.raises(ValueError, match="implementation must be 'xla', 'cpu' or None; got 'tpu'"):
        update_pixels(
            case.program,
            case.sources,
            case.prepared,
            case.vectors,
            case.previous,
            [marks("one", case.generator)],
            tolerances=jnp.zeros((1, STREAMS)),
            implementation="tpu",
        )


def test_it_runs_inside_scan_and_vmap():
    case = Case("3x3")
    options = {"tolerances": jnp.zeros((1, STREAMS))}
    marked = jnp.stack([marks(which, case.generator) for which in ("odd", "one", "full")])

    @jax.jit
    def scanned(previous, marked):
        def turn(previous, mark):
            out, moved, _ = update_pixels(
                case.program, case.sources, case.prepared, case.vectors, previous, [mark], **options
            )
            return out, moved[0]

        return jax.lax.scan(turn, previous, marked)

    @jax.jit
    @jax.vmap
    def mapped(mark):
        return update_pixels(
            case.program,
            case.sources,
            case.prepared,
            case.vectors,
            case.previous,
            [mark],
            **options,
        )[0][0]

    previous = case.previous
    for mark, one in zip(marked, mapped(marked), strict=True):
        np.testing.assert_array_equal(one, case.both([mark])[1][0][0])
        previous = case.found(
            case.sources, case.prepared, case.vectors, previous, [mark], strict=None, **options
        )[0]
    np.testing.assert_array_equal(scanned(case.previous, marked)[0][0], previous[0])


def test_what_does_not_work_is_left_alone_with_one_warning(monkeypatch):
    monkeypatch.setattr(cpu, "_Library", lambda: None)
    monkeypatch.setattr(cpu, "_self_test", lambda loaded: "planted")
    with pytest.warns(RuntimeWarning, match="the CPU kernels do not work here.*planted"):
        assert cpu._load.__wrapped__() is None

    def fail():
        raise OSError("planted")

    monkeypatch.setattr(cpu, "_Library", fail)
    with pytest.warns(RuntimeWarning, match="planted"):
        assert cpu._load.__wrapped__() is None


def test_code_that_this_process_has_not_compiled_is_an_error_and_no_crash():
    case = Case("3x3")
    full = [marks("full", case.generator)]
    case.both(full)
    loaded = cpu.library()
    assert loaded is not None
    there = loaded.formulas.copy()
    try:
        loaded.formulas[:] = 0
        # Of one kind where the call runs at once, of the other where it runs in the background.
        errors = (jax.errors.JaxRuntimeError, ValueError)
        with pytest.raises(errors, match="was not compiled in this process"):
            jax.block_until_ready(case.both(full))
    finally:
        loaded.formulas[:] = there
    case.check(full)


def test_a_processor_that_nothing_was_written_for_goes_without_a_word(monkeypatch):
    monkeypatch.setattr(cpu_objects, "host", lambda: None)
    assert cpu._load.__wrapped__() is None
