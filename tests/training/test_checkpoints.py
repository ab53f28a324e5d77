"""Checkpoints: whole or not at all, the last few, and none of another training."""

import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from dynvid.training.checkpoints import Checkpoints
from tests.training import toy

STATE = {
    "weights": [jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7, jnp.ones(2, jnp.bfloat16)],
    "count": jnp.int32(3),
}


def blank():
    return {"weights": [jnp.zeros((2, 3)), jnp.zeros(2, jnp.bfloat16)], "count": jnp.int32(0)}


def test_the_last_few_stay_and_the_latest_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", keep=2)
    assert checkpoints.steps() == []
    for step in (9, 10, 11):
        checkpoints.save(step, {**STATE, "count": jnp.int32(step)})
    assert checkpoints.steps() == [10, 11]
    # Another program sees the same.
    again = Checkpoints(tmp_path / "new" / "folder", keep=2)
    assert again.steps() == [10, 11]
    chex.assert_trees_all_equal(again.restore(blank()), {**STATE, "count": jnp.int32(11)})
    with pytest.raises(ValueError, match=r"step must be above 11, .*; got 11"):
        again.save(11, STATE)


def test_what_is_half_written_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    checkpoints.save(2, STATE)
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
    again = Checkpoints(tmp_path)
    assert again.steps() == [1]
    chex.assert_trees_all_equal(again.restore(blank()), STATE)
    again.save(2, STATE)
    assert Checkpoints(tmp_path).steps() == [1, 2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**blank(), "count": jnp.float32(0)}, r"count int32\[\] there, float32\[\] here"),
        ({**blank(), "more": jnp.int32(0)}, r"more missing there, int32\[\] here"),
        ({"count": jnp.int32(0)}, r"weights/0 float32\[2, 3\] there, missing here"),
        (
            {**blank(), "weights": [jnp.zeros((3, 2)), jnp.zeros(2, jnp.bfloat16)]},
            r"weights/0 float32\[2, 3\] there, float32\[3, 2\] here",
        ),
    ],
)
def test_another_structure_is_refused_by_the_first_leaf_that_differs(tmp_path, other, said):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    with pytest.raises(ValueError, match=said):
        checkpoints.restore(other)


def test_another_network_is_refused_by_fit(tmp_path):
    toy.train(tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"same training; got optimizer/0/mu/in"):
        toy.train(tmp_path, steps=2, width=5)


@pytest.mark.parametrize("broken", ["manifest.ocdbt", "_METADATA"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, broken, content):
    # One array: of several that cannot be read, orbax reports one and loses the others' errors.
    state = {"weights": jnp.ones(3)}
    Checkpoints(tmp_path).save(1, state)
    (tmp_path / "1" / "default" / broken).write_bytes(content)
    with pytest.raises(ValueError, match="cannot read the checkpoint") as found:
        Checkpoints(tmp_path).restore(state)
    assert str(tmp_path / "1") in str(found.value)
    assert "\n" not in str(found.value)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1; got 0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Checkpoints(tmp_path).restore(STATE)
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        Checkpoints(file)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r'the package orbax: pip install "dynvid\[train\]"'):
        Checkpoints(tmp_path)


def test_arrays_of_numpy_are_kept_too(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.arange(3.0)})
    found = checkpoints.restore({"a": np.zeros(3)})
    np.testing.assert_array_equal(found["a"], np.arange(3.0), strict=True)
