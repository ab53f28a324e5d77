"""Masked convolution: active cells or positions are computed and written back into kept maps."""

from dynvid.kernels.masked_conv.api import (
    masked_conv,
    pixels_run_on,
    prepare_weights,
    update_cells,
    update_pixels,
)
from dynvid.kernels.masked_conv.cell_grid import CellGrid
from dynvid.kernels.masked_conv.pixels import PixelProgram

__all__ = [
    "CellGrid",
    "PixelProgram",
    "masked_conv",
    "pixels_run_on",
    "prepare_weights",
    "update_cells",
    "update_pixels",
]
