"""The masked convolution's seam: what a loop over cells computes, marks and writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.kernels.masked_conv import CellGrid, masked_conv, update_cells
from dynvid.ops import cells, masks
from tests.ops.geometry import convolve
from tests.ops.test_sparse_conv import SAME, mask_of, options, problem, whole_numbers


@pytest.mark.parametrize("cell", [1, 2, 3, 4])
def test_wide_layers_by_cells(cell):
    """Sixteen channels and more take Winograd's form on even cells: exact on whole numbers too."""
    generator = np.random.default_rng(cell)
    x = whole_numbers(generator, 2, 9, 7, 17)
    kernel = whole_numbers(generator, 3, 3, 17, 19)
    dense = convolve(x, kernel, SAME)
    mask = mask_of("some", (9, 7), cell)
    previous = jnp.full_like(dense, 0.25)
    found = jax.jit(
        functools.partial(masked_conv, cell=cell, implementation="xla", **options(SAME))
    )(x, kernel, previous, mask)
    expected = np.where(masks.stencil(mask, **SAME)[..., None], dense, previous)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_spreads_no_further_than_its_window(bad, implementation):
    generator = np.random.default_rng(0)
    x = jnp.asarray(whole_numbers(generator, 1, 8, 8, 16)).at[0, 3, 4, 0].set(bad)
    kernel = jnp.ones((3, 3, 16, 16))
    dense = convolve(x, kernel, SAME)
    mask = mask_of("full", (8, 8), 0, streams=1)
    run = functools.partial(masked_conv, implementation=implementation, **options(SAME))
    found = jax.jit(run)(x, kernel, jnp.zeros_like(dense), mask)
    np.testing.assert_array_equal(found, dense)


def test_a_cell_has_at_least_one_pixel():
    x, kernel, previous = problem(SAME, (6, 6), 1, seed=0)
    with pytest.raises(ValueError, match="cell must be at least 1; got 0"):
        masked_conv(x, kernel, previous, mask_of("full", (6, 6), 0), cell=0, **options(SAME))


def test_an_implementation_that_does_not_exist_is_refused():
    x, kernel, previous = problem(SAME, (6, 6), 1, seed=0)
    with pytest.raises(ValueError, match=r"implementation must be one of \['cpu', .*'cuda'"):
        masked_conv(
            x, kernel, previous, mask_of("full", (6, 6), 0), implementation="cuda", **options(SAME)
        )


def test_cells_beyond_the_map_are_written_as_zeros():
    stored = jnp.zeros((2, 9, 9, 1))
    grid = CellGrid(np.array([0, 4]), np.array([0, 4]), size=(4, 4), shape=(6, 7))
    active = jnp.zeros((2, 2, 2), bool).at[1, 1, 1].set(True)
    (out,), _ = update_cells(
        lambda stream, row, column: [jnp.full((len(row), 4, 4, 1), 5.0)],
        [stored],
        masks.worklist(active),
        grid=grid,
        origins=[(1, 1)],
        chunk=1,
    )
    expected = np.zeros((2, 9, 9, 1))
    expected[1, 5:7, 5:8] = 5
    np.testing.assert_array_equal(out, expected)


def reversed_writes(monkeypatch):
    """A device that writes the windows of a scatter in the opposite order."""
    scatter = cells.scatter_windows

    def backwards(padded, windows, stream, row, column, **options):
        flipped = (jnp.flip(part, 0) for part in (windows, stream, row, column))
        return scatter(padded, *flipped, **options)

    monkeypatch.setattr(cells, "scatter_windows", backwards)


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(3, 11), st.integers(3, 11)),
    cell=st.integers(2, 4),
    chunk=st.sampled_from([1, 3, 64]),
    tolerance=st.sampled_from([0.0, 2.0, 6.0]),
    seed=st.integers(0, 99),
)
def test_refreshed_cells_stay_within_the_tolerance_in_any_order_of_writing(
    size, cell, chunk, tolerance, seed
):
    generator = np.random.default_rng(seed)
    new = generator.integers(0, 9, (2, *size, 3)).astype(np.float32)
    old = generator.integers(0, 9, new.shape).astype(np.float32)
    marked = generator.random(new.shape[:3]) < 0.3
    side = (min(cell, size[0]), min(cell, size[1]))
    starts = [
        np.minimum(np.arange(-(-n // k) * k, step=k), n - k)
        for n, k in zip(size, side, strict=True)
    ]
    grid = CellGrid(*starts, size=side, shape=size)

    def run():
        def compute(stream, row, column):
            return [
                cells.gather_windows(jnp.asarray(new), stream, *grid.first(row, column), size=side)
            ]

        active = masks.worklist(masks.to_cells(jnp.asarray(marked), side))
        return update_cells(
            compute,
            [jnp.asarray(old)],
            active,
            grid=grid,
            origins=[(0, 0)],
            chunk=min(chunk, len(active.row)),
            marked=[jnp.asarray(marked)],
            moved=[jnp.zeros(marked.shape, bool)],
            tolerances=[jnp.full(2, tolerance)],
        )

    (out,), (moved,) = jax.jit(run)()
    with pytest.MonkeyPatch.context() as monkeypatch:
        reversed_writes(monkeypatch)
        (again,), (also,) = jax.jit(run)()
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(also, moved)
    out, moved = np.asarray(out), np.asarray(moved)
    np.testing.assert_array_equal(out, np.where(moved[..., None], new, old))
    assert not (moved & ~marked).any()
    off = np.abs(out - new).max(-1)
    assert (off[marked] < max(tolerance, 1e-9)).all()
