"""How many bits labels take, counted in the graph: no byte leaves the device."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dynvid.ops.run_length import run_length_bits, run_length_tokens
from dynvid.systems.ifmdc.codec import Symbols
from dynvid.systems.ifmdc.settings import Settings


@functools.partial(jax.jit, static_argnames="settings")
def count_bits(symbols: Symbols, *, settings: Settings) -> jax.Array:
    """Counts the bits of each stream's labels as run-length tokens of fixed fields (rate R1).

    IFMDC, section III, Figure 6: what `dynvid.coding.runs.encode_fixed` packs for that stream
    alone, with the settings' scan, the same width of the run field and, in key frames, the most
    frequent label as N.

    Args:
      symbols: What an encoder of these settings returned.
      settings: The codec's.

    Returns:
      `int32[streams]`, without the seven bytes of a payload's own header and without the bits that
      fill up its last bytes.

    Exact below 2^31 bits a stream. An upper bound of what the better stages take: Huffman codes and
    arithmetic coding need the host.

    >>> settings = Settings(low=0.0, high=4.0, levels=5)
    >>> labels = jnp.array([[[[2], [2], [2], [0]], [[2], [2], [2], [2]]]], jnp.int16)
    >>> symbols = Symbols(labels, jnp.array(False), jnp.array(1, jnp.uint32))
    >>> count_bits(symbols, settings=settings)  # two runs of 3 + 2 bits, one literal of 3
    Array([13], dtype=int32)
    """
    levels = jnp.where(symbols.is_key, settings.labels_of_key, settings.levels)
    label_bits = 32 - lax.clz(levels - 1)

    def most_frequent(labels: jax.Array) -> jax.Array:
        return jnp.argmax(jnp.bincount(labels, length=settings.labels_of_key)).astype(jnp.int32)

    def count(labels: jax.Array) -> jax.Array:
        scanned = (labels.transpose(2, 0, 1) if settings.scan == "chw" else labels).ravel()
        run_label = lax.cond(
            symbols.is_key, most_frequent, lambda _: jnp.int32(settings.run_label), scanned
        )
        tokens = run_length_tokens(scanned, run_label=run_label)
        return jnp.min(run_length_bits(tokens, run_label=run_label, label_bits=label_bits))

    return lax.map(count, symbols.labels)
