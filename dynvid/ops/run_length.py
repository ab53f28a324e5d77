"""Runs of one label as single tokens: IFMDC's N-run-length code, up to the packing of bits.

IFMDC (arXiv 2411.00984), section III, Figure 6. Only runs of N are coded; every other label is a
literal. `dynvid.coding.runs` packs the same tokens on the host.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

RUN_BITS = 16
"""The widest field that a run's length may have."""


class Tokens(NamedTuple):
    """Literals and runs in order; what lies beyond `count` is zero.

    Attributes:
      labels: What each token repeats, `int32[n]`.
      lengths: How often, `int32[n]`: 1 for a literal, at least 1 for a run of N.
      count: How many tokens there are, `int32[]`.
    """

    labels: jax.Array
    lengths: jax.Array
    count: jax.Array


def run_length_tokens(labels: jax.Array, *, run_label: int | jax.Array) -> Tokens:
    """Joins neighbouring occurrences of one label to runs; every other label is its own token.

    A token starts where the label is not N or the one before is not N (differencing); its length is
    a `segment_sum` over the token that each position belongs to.

    Args:
      labels: `int[n]`, in scan order.
      run_label: N, the label whose runs are joined.

    Returns:
      `Tokens` with room for `n`.

    Exact: each token repeated as often as its length says, these are the labels.

    >>> tokens = run_length_tokens(jnp.array([2, 2, 2, 0, 0, 2]), run_label=2)
    >>> tokens.labels[: tokens.count], tokens.lengths[: tokens.count]
    (Array([2, 0, 0, 2], dtype=int32), Array([3, 1, 1, 1], dtype=int32))
    """
    size = labels.shape[0]
    is_run = labels == run_label
    start = ~is_run | jnp.concatenate([jnp.ones((1,), bool), ~is_run[:-1]])
    token = jnp.cumsum(start.astype(jnp.int32)) - 1
    lengths = jax.ops.segment_sum(
        jnp.ones((size,), jnp.int32), token, num_segments=size, indices_are_sorted=True
    )
    # Whoever does not start a token writes out of bounds, that is not at all.
    first = jnp.where(start, token, size)
    values = jnp.zeros((size,), jnp.int32).at[first].set(labels.astype(jnp.int32), mode="drop")
    return Tokens(values, lengths, token[-1] + 1)


def run_length_bits(
    tokens: Tokens, *, run_label: int | jax.Array, label_bits: int | jax.Array
) -> jax.Array:
    """Counts the bits of fixed fields, for each width that the run field may have.

    A literal takes w bits. A run takes `w + b_r` bits for each `2^b_r` of its length, the last of
    them perhaps in part: longer runs are split.

    Args:
      tokens: What `run_length_tokens` returns.
      run_label: N.
      label_bits: w, the bits of a label, `ceil(log2 k)`.

    Returns:
      `int32[16]`: the bits of all tokens with `b_r` = 1 .. 16, without any header.

    Exact below 2^31 bits.

    >>> tokens = run_length_tokens(jnp.array([2, 2, 2, 0, 0, 2]), run_label=2)
    >>> run_length_bits(tokens, run_label=2, label_bits=3)[:3]
    Array([18, 16, 18], dtype=int32)
    """
    there = jnp.arange(tokens.labels.shape[0]) < tokens.count
    is_run = there & (tokens.labels == run_label)
    literals = jnp.sum(there & ~is_run, dtype=jnp.int32)
    lengths = jnp.where(is_run, tokens.lengths, 0)

    def pieces(bits: jax.Array) -> jax.Array:
        return jnp.sum((lengths + (1 << bits) - 1) >> bits, dtype=jnp.int32)

    widths = jnp.arange(1, RUN_BITS + 1)
    return literals * label_bits + lax.map(pieces, widths) * (label_bits + widths)
