"""Masked convolution: active cells are gathered, computed and written back into kept maps."""

from dynvid.kernels.masked_conv.api import masked_conv, update_cells
from dynvid.kernels.masked_conv.cell_grid import CellGrid

__all__ = ["CellGrid", "masked_conv", "update_cells"]
