import numpy as np
import pytest

from dynvid.data.mot import parse_mot


def test_mot_text_is_parsed():
    text = "2,1,1.5,2,3,4,1,-1\n\n1,7,0,0,2,2\n2,3,5,5,1,1,0,-1,-1,-1\n2,4,5,5,1,1,1\n"
    found = parse_mot(text)
    np.testing.assert_array_equal(found[2], [[1.5, 2, 4.5, 6], [5, 5, 6, 6]])
    np.testing.assert_array_equal(found[1], [[0, 0, 2, 2]])
    for bad in ("1,2,3", "1,2,x,4,5,6", "nan,2,3,4,5,6", "1,2,inf,4,5,6"):
        with pytest.raises(ValueError, match="line 2: "):
            parse_mot(f"1,7,0,0,2,2\n{bad}")
