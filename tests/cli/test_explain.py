"""`dynvid explain`."""

import pytest

from dynvid.cli import main
from tests.cli.helpers import refused


def test_explain_prints_every_operation(capsys):
    assert main(["explain", "--size", "64x48"]) == 0
    text = capsys.readouterr().out
    assert text.count("conv_general_dilated") == 6
    assert "1x24x32x32" in text
    assert "conv_6" in text
    assert "incremental" in text


@pytest.mark.parametrize("size", ["64", "0x48", "64x48x3", "axb", "-64x48"])
def test_explain_refuses_a_bad_size(capsys, size):
    refused(capsys, ["explain", f"--size={size}"], "--size", size)
