"""The zero-order entropy of labels: a reference (R0), never a rate that was achieved."""

import numpy as np


def zero_order_entropy(labels: np.ndarray) -> float:
    """Counts the bits that labels would take if each were coded alone, its probability known.

    `-sum_i n_i log2(n_i / n)`. It bounds codes that treat labels as independent; one that looks at
    their neighbours can go below, and the model itself is not paid for.

    Args:
      labels: `int[...]`, not negative.

    Returns:
      Bits of all labels together.

    >>> zero_order_entropy(np.array([0, 0, 1, 1]))
    4.0
    """
    counts = np.bincount(np.ravel(labels))
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)))
