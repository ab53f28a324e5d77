import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynvid.incremental.geometry import Region, Stencil, Table, cells, hull, required

STENCILS = st.builds(
    Stencil,
    window=st.integers(1, 5),
    stride=st.integers(1, 3),
    low=st.integers(-2, 4),
    dilation=st.integers(1, 3),
    base=st.integers(1, 3),
)


def reads(stencil: Stencil, position: int) -> list[int]:
    """Which inputs an output reads, by the definition."""
    taps = [
        position * stencil.stride - stencil.low + k * stencil.dilation
        for k in range(stencil.window)
    ]
    return [tap // stencil.base for tap in taps if tap % stencil.base == 0]


@settings(deadline=None)
@given(STENCILS, st.integers(1, 30), st.integers(1, 8))
def test_a_region_holds_all_that_its_outputs_read_and_no_more(stencil, length, cell):
    region = cells(length, cell)
    window = required(stencil, region)
    widest = 0
    for start, at in zip(region.starts, window.starts, strict=True):
        inputs = [i for o in range(start, start + region.size) for i in reads(stencil, o)]
        assert all(at <= i < at + window.size for i in inputs)
        low, high = stencil.bounds(np.array([start, start + region.size - 1]))
        widest = max(widest, int(high[1] - low[0]) + 1)
        if stencil.base == 1:
            assert at == min(inputs)
    assert window.size == max(1, widest)


@given(st.integers(1, 60), st.integers(1, 20))
def test_cells_cover_an_axis_and_never_leave_it(length, cell):
    region = cells(length, cell)
    assert region.inside(length)
    covered = {p for s in region.starts for p in range(s, s + region.size)}
    assert covered == set(range(length))
    assert len(region.starts) == -(-length // min(cell, length))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_tables_hold_what_resizing_reads(index, cell):
    first = np.sort(np.array(index))
    table = Table(first, first + 1)
    region = cells(len(first), cell)
    window = required(table, region)
    for start, at in zip(region.starts, window.starts, strict=True):
        read = slice(start, start + region.size)
        assert at == table.first[read].min()
        assert at + window.size > table.last[read].max()


def test_regions_find_their_place_in_each_other():
    outer, inner = Region(np.array([0, 4]), 6), Region(np.array([1, 5]), 3)
    assert outer.offset(inner) == 1
    assert inner.offset(outer) is None
    assert outer.offset(Region(np.array([1, 6]), 3)) is None
    merged = hull(outer, Region(np.array([-2, 2]), 3))
    assert merged is not None
    assert merged.size == 8
    assert hull(Region(np.array([0, 4]), 4), Region(np.array([0, 2]), 4)) is None


@pytest.mark.parametrize(("low", "inside"), [(0, True), (-1, False)])
def test_inside(low, inside):
    assert Region(np.array([low, 4]), 4).inside(8) == inside
    assert not Region(np.array([0, 5]), 4).inside(8)
