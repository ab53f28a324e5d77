import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynvid.coding.bits import WIDEST, pack_fields, unpack_fields
from dynvid.coding.errors import BitstreamError

fields = st.lists(
    st.integers(0, WIDEST).flatmap(
        lambda width: st.tuples(st.integers(0, 2**width - 1), st.just(width))
    ),
    min_size=0,
    max_size=40,
)


@given(fields)
def test_fields_of_any_width_against_text_and_back(pairs):
    values = np.array([v for v, _ in pairs], np.int64)
    widths = np.array([w for _, w in pairs], np.int64)
    data = pack_fields(values, widths)
    text = "".join(f"{v:0{w}b}" for v, w in pairs if w)
    text += "0" * (-len(text) % 8)
    assert data == bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    np.testing.assert_array_equal(unpack_fields(data, widths, count=len(pairs)), values)


@pytest.mark.parametrize("width", [1, 3, 8, 9, 16, 24])
def test_fields_of_one_width(width):
    values = np.random.default_rng(0).integers(0, 2**width, 1000)
    data = pack_fields(values, width)
    assert len(data) == (1000 * width + 7) // 8
    np.testing.assert_array_equal(unpack_fields(data, width, count=1000), values)


def test_too_few_bytes():
    with pytest.raises(BitstreamError, match="3 fields of 8 bits do not fit in 2 bytes"):
        unpack_fields(bytes(2), 8, count=3)
    with pytest.raises(BitstreamError, match="17 bits were announced, 16 are there"):
        unpack_fields(bytes(2), np.array([8, 8, 1]), count=3)
    with pytest.raises(BitstreamError, match="do not fit"):
        unpack_fields(bytes(2), 8, count=1 << 60)  # and nothing is allocated
