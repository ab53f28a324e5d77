"""What was measured on a kind of device, and what the planner decides by it."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Cost:
    """The constants of one kind of device.

    Attributes:
      cells: The sides of a cell that are tried, best first: larger ones serve where small ones do
        not line up.
      single_pixels: Maps of at most this many positions run on single pixels, where their
        convolutions do not take Winograd's tiles.
      winograd_channels: From this many channels on, in and out, convolutions run by Winograd's form
        in cells although the device has a kernel for single positions.
      break_even: Above this share of active cells a segment runs on whole frames.
      winograd_break_even: The same where cells take Winograd's tiles and whole frames do not.
      chunk_bytes: What the windows of a chunk of cells take at most.
      chunk_rows: How many positions a chunk has at least, for a product to run at full speed.
      pixel_break_even: DynCNN's pixels: above this share of them a convolution runs densely.
      paper_chunk_bytes: As `chunk_bytes`, of DynCNN's larger cells.

    >>> COSTS["cpu"].cells[0]
    2
    """

    cells: tuple[int, ...]
    single_pixels: int
    winograd_channels: int
    break_even: float
    winograd_break_even: float
    chunk_bytes: int
    chunk_rows: int
    pixel_break_even: float
    paper_chunk_bytes: int


COSTS: dict[str, Cost] = {
    # Two x86-64 cores. Cells of 2 beat 4 and 8 on VGG16, ResNet-50 and YOLOX-nano
    # (experiments/incremental_speed); chunks stay in a second-level cache.
    "cpu": Cost(
        cells=(2, 4, 6, 8, 12, 16),
        single_pixels=32 * 32,
        # 177 GMAC/s at 512 channels, where the kernel of single positions reaches some 110.
        winograd_channels=256,
        break_even=0.6,
        winograd_break_even=1.0,  # less than half of the dense products: cells always win
        chunk_bytes=1 << 20,
        chunk_rows=128,
        pixel_break_even=0.5,
        paper_chunk_bytes=2 << 20,
    ),
}
"""By device kind, as `jax.Device.device_kind` or `jax.Device.platform` name it."""


def cost_of(*, device: Any = None) -> Cost:
    """The constants of a device: of its kind, else of its platform, else those of the CPU.

    Args:
      device: A `jax.Device`; the default device where None.

    >>> cost_of() is COSTS["cpu"]
    True
    """
    device = device or jax.config.jax_default_device or jax.local_devices()[0]
    kinds = (getattr(device, name, device) for name in ("device_kind", "platform"))
    return next((COSTS[kind] for kind in kinds if kind in COSTS), COSTS["cpu"])
