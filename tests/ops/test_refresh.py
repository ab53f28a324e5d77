"""When blocks come to rest, and how settling is spread."""

import jax.numpy as jnp
import numpy as np

from dynvid.ops.refresh import CALM, TURNS, moves_everywhere, quiet_frames, settling


def test_one_block_alone_is_noise_and_three_together_move():
    quiet = jnp.full((1, 9, 9), 7)
    changed = np.zeros((1, 9, 9), bool)
    changed[0, 1, 1] = True
    changed[0, 5:7, 5] = changed[0, 6, 6] = True
    found = np.asarray(quiet_frames(quiet, jnp.asarray(changed), 5))[0]
    assert (found[:4, :4] == 7).all()
    around = np.zeros((9, 9), bool)
    around[4:8, 4:7] = around[5:8, 4:8] = True
    np.testing.assert_array_equal(found == 0, around)


def test_settling_reaches_every_block_once_and_no_frame_gets_more_than_its_share():
    settle, shape = 3, (1, 6, 11)
    quiet = jnp.full(shape, settle)
    moving = jnp.array([False])
    times = np.zeros(shape, int)
    for _ in range(TURNS + 2):
        exact, quiet = settling(quiet, moving, settle)
        assert exact.sum() <= -(-66 // TURNS)
        times += np.asarray(exact)
    assert (times == 1).all()


def test_once_all_is_still_what_settled_stays_exact_until_the_last_has():
    settle = 2
    quiet = jnp.array([[[2, 3, 3, 2, 3]]])
    before = np.zeros((1, 1, 5), bool)
    for turn in range(TURNS):
        exact, quiet = settling(quiet, jnp.array([True]), settle)
        assert (np.asarray(exact) >= before).all()
        before = np.asarray(exact)
        assert before.all() == (turn >= 2)  # two of five blocks a frame
    quiet = quiet_frames(quiet, jnp.array([[[False] * 5]]), settle)
    exact, _ = settling(quiet, jnp.array([False]), settle)
    assert not exact.any()


def test_motion_everywhere_ends_after_calm_frames_below_three_quarters():
    everywhere, calm = jnp.array(False), jnp.array(0)
    shares = [0.5, 0.51, 0.4, *[0.3] * (CALM - 1), 0.4, *[0.3] * CALM, 0.4]
    found = []
    for share in shares:
        everywhere, calm = moves_everywhere(everywhere, calm, jnp.array(share), 0.5)
        found.append(bool(everywhere))
    # The second 0.4 is above three quarters of the limit: the calm has to begin anew.
    assert found == [False, *[True] * (2 * CALM + 1), False, False]
