"""What experiments share is in `experiments.bench`, and nowhere else."""

import ast
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dynvid.ops.boxes import Detections
from experiments.bench import cases, results
from experiments.bench.accuracy import Accuracy, class_indices, drawn_truth
from experiments.bench.videos import Clip, unit

ROOT = pathlib.Path(__file__).parents[2]


def imported(path, tree):
    """The dotted names that a file imports, relative ones as they are from the root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = [*path.relative_to(ROOT).parent.parts]
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def strangers(path, text):
    """What a script imports of other experiments."""
    own = ".".join(path.relative_to(ROOT).parent.parts)
    return [
        name
        for name in imported(path, ast.parse(text))
        if name.partition(".")[0] == "experiments"
        and not f"{name}.".startswith(("experiments.bench.", f"{own}."))
    ]


def test_no_experiment_imports_another():
    scripts = list((ROOT / "experiments").rglob("*.py"))
    assert len(scripts) > 30
    found = {str(path.relative_to(ROOT)): strangers(path, path.read_text()) for path in scripts}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from experiments.dyncnn.speed import race", ["experiments.dyncnn.speed.race"]),
        ("def f():\n    import experiments.dyncnn.speed", ["experiments.dyncnn.speed"]),
        ("from experiments import incremental_speed", ["experiments.incremental_speed"]),
        ("from ..speed import race", ["experiments.dyncnn.speed.race"]),
        ("from experiments.benchmarks import x", ["experiments.benchmarks.x"]),
        ("from experiments.dyncnn.pets import tuned", []),
        ("from . import tuned\nfrom .tuned import tune", []),
        ("from experiments import bench\nfrom experiments.bench.videos import pets", []),
        ("import numpy\nfrom dynvid.experiments import x", []),
    ],
)  # fmt: skip
def test_an_import_of_another_experiment_is_seen(line, found):
    assert strangers(ROOT / "experiments/dyncnn/pets/theta.py", line) == found


def test_the_package_imports_no_experiment():
    for path in (ROOT / "dynvid").rglob("*.py"):
        names = imported(path, ast.parse(path.read_text()))
        assert not [name for name in names if name.partition(".")[0] == "experiments"], path


def test_data_lie_where_the_environment_says(tmp_path):
    code = "from experiments.bench import DATA; print(DATA)"
    command = [sys.executable, "-c", code]
    for env, folder in (
        ({"DYNVID_DATA": str(tmp_path)}, tmp_path), ({}, ROOT.parent / "shared" / "data"),
    ):  # fmt: skip
        run = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )  # fmt: skip
        assert pathlib.Path(run.stdout.strip()).resolve() == folder.resolve()


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    assert results.read_json(path) == {}
    results.write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        results.write_json(path, {"a": 3, "b": object()})
    assert results.read_json(path) == {"a": [1, 2]}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_cases_run_by_name_and_leave_the_others_figures(tmp_path, capsys):
    path = tmp_path / "results.json"

    def quick():
        """A case that takes no time."""
        return {"ms": 1.0}

    def broken():
        """A case that fails."""
        raise RuntimeError("no")

    results.write_json(path, {"old": {"ms": 2.0}})
    with pytest.raises(RuntimeError):
        cases.main(["quick", "broken"], {"quick": quick, "broken": broken}, path)
    found = json.loads(path.read_text())
    assert found["quick"] == {"ms": 1.0}
    assert found["old"] == {"ms": 2.0}
    assert set(found["machine"]) == {"processor", "cores", "jax", "onnxruntime"}
    with pytest.raises(SystemExit):
        cases.main(["quack"], {"quick": quick}, path)
    assert "no case quack; there are quick" in capsys.readouterr().err


class Boxes:
    """A head whose outputs are its detections."""

    def decode(self, params, outputs, **options):
        del params, options
        return outputs


def test_accuracy_is_judged_in_pixels_of_the_video():
    """Boxes that lie on the drawn ones at the network's size, where the video is twice as large."""
    drawn = np.array([[10.0, 20.0, 30.0, 60.0]])
    clip = Clip("test", [], np.full(4, 2, np.float32), [drawn, drawn, drawn])
    accuracy = Accuracy(Boxes(), {}, (48, 64), clip)

    def detections(boxes):
        here = np.ones((1, 1), np.float32)
        return Detections(
            boxes[None].astype(np.float32), here, np.zeros((1, 1), np.int32), here > 0
        )

    for i in range(2):  # the third frame is not looked at
        accuracy(i, detections(drawn / 2), detections(drawn / 2 + 40 * i))
    assert accuracy.result() == {"ap50_dense": 100, "ap50_incremental": 50}


def test_ground_truth_is_padded_and_classes_are_found_by_name():
    clip = Clip("test", [], np.ones(4), [np.zeros((0, 4)), np.ones((2, 4))])
    truth = drawn_truth(clip)
    assert truth.present.tolist() == [[False, False], [True, True]]
    assert truth.classes.tolist() == [[-1, -1], [0, 0]]
    assert class_indices(("bicycle", "car", "person")) == (2, 1)


def test_unit_frames_are_floats():
    (frame,) = unit([np.array([0, 51, 255], np.uint8)])
    assert frame.dtype == np.float32
    assert frame.tolist() == [0, np.float32(0.2), 1]
