"""Synthetic actions: what one frame tells, and what only motion or order do."""

import jax
import numpy as np
import pytest

from dynvid.data.action_clips import CLASS_NAMES, KINDS, action_clips

QUIET = {"noise": 0.0}


def frames_of(name, *, count=1, seed=0):
    label = CLASS_NAMES.index(name)
    clips = action_clips(jax.random.key(seed), count=count, labels=[label] * count, **QUIET)
    return np.asarray(clips.frames).astype(int)


def moved(frame, later):
    """By how many pixels around a frame is turned to be most like a later one: (dy, dx)."""
    reach = range(-5, 6)
    errors = {
        (dy, dx): np.abs(np.roll(frame, (dy, dx), (0, 1)) - later).mean()
        for dy in reach
        for dx in reach
    }
    return min(errors, key=errors.get)


def test_a_key_draws_the_same_clips():
    a, b = (action_clips(jax.random.key(3), count=4) for _ in range(2))
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert len(KINDS) == len(CLASS_NAMES)


@pytest.mark.parametrize(
    ("name", "axis", "sign"),
    [("moves left", 1, -1), ("moves right", 1, 1), ("moves up", 0, -1), ("moves down", 0, 1)],
)
def test_discs_move_as_they_are_named(name, axis, sign):
    for clip in frames_of(name, count=6):
        # Without noise the disc is of one colour, which no other pixels share so often.
        colors, counts = np.unique(clip.reshape(-1, 3), axis=0, return_counts=True)
        disc = (clip == colors[counts.argmax()]).all(-1).astype(int)
        steps = [moved(disc[t], disc[t + 1]) for t in range(0, 15, 3)]
        assert np.median([step[axis] for step in steps]) * sign >= 1


def test_colours_and_presence_turn_once():
    red, blue = (frames_of(n, count=6) for n in ("red, then blue", "blue, then red"))
    for clips, sign in ((red, 1), (blue, -1)):
        warm = (clips[..., 0] - clips[..., 2]).mean((2, 3))  # red less blue, by frame
        change = np.diff(warm, axis=1)
        event = np.abs(change).argmax(1)
        assert ((event >= 2) & (event <= 12)).all()
        assert (np.sign(change[np.arange(6), event]) == -sign).all()
    for name, clips in (("appears", frames_of("appears")), ("vanishes", frames_of("vanishes"))):
        first, last = clips[0, 0], clips[0, -1]
        before = np.abs(clips[0, 1] - first).max()
        after = np.abs(clips[0, -2] - last).max()
        # With nothing there, nothing moves.
        assert (before == 0 < after) if name == "appears" else (after == 0 < before)


def test_all_kinds_are_drawn_alike():
    labels = np.asarray(action_clips(jax.random.key(0), count=600, size=(8, 8)).labels)
    counts = np.bincount(labels, minlength=12)
    # Binomial(600, 1/12): mean 50, deviation 6.8; six deviations.
    assert (np.abs(counts - 50) < 41).all()


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="frames must be at least 8"):
        action_clips(jax.random.key(0), count=1, frames=7)
