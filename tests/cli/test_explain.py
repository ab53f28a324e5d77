"""`dynvid explain`."""

import numpy as np
import pytest

from dynvid.cli import main
from tests.cli.helpers import refused
from tests.weights.test_onnx import Graph


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


def test_what_the_outputs_are_for_does_not_matter(tmp_path, capsys):
    graph = Graph(shape=(1, 3, 32, 32))
    maps = graph.node("Conv", "x", np.ones((4, 3, 8, 8), np.float32), strides=[8, 8])
    graph.save(tmp_path / "m.onnx", graph.node("Reshape", maps, np.array([1, 4, -1])))
    assert main(["explain", "--model", str(tmp_path / "m.onnx")]) == 0
    assert "conv_general_dilated" in capsys.readouterr().out
    refused(capsys, ["explain", "--model", tmp_path / "m.onnx", "--task", "detection"], "the head")
    huge = ["explain", "--model", tmp_path / "m.onnx", "--size", "99999x99999"]
    refused(capsys, huge, "an array of 30 billion numbers", "--limits raises it")
