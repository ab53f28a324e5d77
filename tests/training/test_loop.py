"""The same parameters bit for bit, killed or not."""

import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import optax
import pytest

from dynvid.training.checkpoints import Checkpoints
from dynvid.training.loop import fit, update_step
from tests.training import toy


@pytest.fixture(scope="module")
def whole():
    return toy.train()


def test_the_loss_falls(whole):
    before, after = toy.begin(), whole
    key = jax.random.key(100)
    assert toy.loss(after.params, key) < 0.5 * toy.loss(before.params, key)
    assert after.step == toy.STEPS


def test_a_training_killed_while_it_writes_goes_on_as_if_it_had_not(tmp_path, whole):
    program = [sys.executable, "-m", "tests.training.toy", str(tmp_path)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert "5" in left  # whole
    assert "10" not in left
    assert any(name.startswith("10.") for name in left)  # half written
    asked = []

    def batch_at(step):
        asked.append(step)
        return jax.random.key(step)

    chex.assert_trees_all_equal(toy.train(tmp_path, batch_at=batch_at), whole)
    assert asked == list(range(5, toy.STEPS))


def test_every_kind_of_interruption_is_the_same_to_it(tmp_path, whole):
    for stop in (3, 5, 16):  # before a checkpoint, right after one, before the last step

        def batch_at(step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt
            return jax.random.key(step)

        with pytest.raises(KeyboardInterrupt):
            toy.train(tmp_path, batch_at=batch_at)
    chex.assert_trees_all_equal(toy.train(tmp_path), whole)
    # There is nothing left to do.
    chex.assert_trees_all_equal(toy.train(tmp_path, batch_at=None), whole)


def test_a_longer_training_goes_on_from_a_shorter_one(tmp_path, whole):
    toy.train(tmp_path, steps=7)
    chex.assert_trees_all_equal(toy.train(tmp_path), whole)


def test_a_loss_that_is_not_finite_ends_the_training_without_a_checkpoint(tmp_path):
    optimizer = toy.OPTIMIZER
    update = update_step(lambda params, batch: params["out"].sum() * batch, optimizer)

    def batch_at(step):
        return np.float32(np.nan if step >= 5 else 1)

    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(FloatingPointError, match="must be finite; got nan up to step 10"):
        fit(update, toy.begin(), batch_at, steps=20, checkpoints=checkpoints, every=5)
    assert checkpoints.steps() == [5]


def test_the_update_is_the_optimizers():
    """By hand, without jit or donation: optax's own loop."""
    state = toy.begin()
    params, kept = state.params, state.optimizer
    grad = jax.jit(jax.value_and_grad(toy.loss))
    value, gradient = grad(params, jax.random.key(0))
    updates, kept = toy.OPTIMIZER.update(gradient, kept, params)
    expected = optax.apply_updates(params, updates)
    new, found = toy.UPDATE(toy.begin(), jax.random.key(0))
    # A fused multiply and add here, two roundings there, of numbers around one.
    chex.assert_trees_all_close((new.params, found), (expected, value), atol=8 * 2.0**-23)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": -1}, "steps must be at least 0; got -1"),
        ({"steps": 1, "every": 0}, "every must be at least 1; got 0"),
    ],
)
def test_options_out_of_range_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        fit(toy.UPDATE, toy.begin(), jax.random.key, **options)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ImportError, match=r'needs the package optax: .*"dynvid\[train\]"'):
        update_step(toy.loss, toy.OPTIMIZER)
