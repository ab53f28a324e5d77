"""Where the cells of a map lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class CellGrid:
    """The cells of a map, all of one size: what is known of them before the first frame.

    Attributes:
      rows: The first row of each row of cells, `int[h]`.
      columns: The first column of each column of cells, `int[w]`.
      size: Rows and columns of a cell.
      shape: Rows and columns of the map.

    >>> grid = CellGrid(np.array([0, 4, 6]), np.array([0, 4, 6]), size=(4, 4), shape=(10, 10))
    >>> grid.overlap, grid.exceed
    (True, False)
    """

    rows: np.ndarray
    columns: np.ndarray
    size: tuple[int, int]
    shape: tuple[int, int]

    @property
    def overlap(self) -> bool:
        """Whether some positions lie in two cells: those at the far border that were moved back."""
        return any(
            bool((np.diff(starts) < side).any())
            for starts, side in zip((self.rows, self.columns), self.size, strict=True)
        )

    @property
    def exceed(self) -> bool:
        """Whether some cells reach beyond the map."""
        return any(
            int(starts.max()) + side > length
            for starts, side, length in zip(
                (self.rows, self.columns), self.size, self.shape, strict=True
            )
        )

    def first(self, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first row and column of cells `(row, column)`, `int32[K]` each."""
        return (
            jnp.asarray(self.rows.astype(np.int32))[row],
            jnp.asarray(self.columns.astype(np.int32))[column],
        )
