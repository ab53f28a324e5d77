"""Features to a bitstream and back: the codec and the container joined, frame by frame."""

from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynvid.coding.container import BitstreamReader, BitstreamWriter, Header, Stage
from dynvid.coding.errors import BitstreamError
from dynvid.systems.ifmdc.codec import Symbols, ifmdc
from dynvid.systems.ifmdc.settings import Settings


class FeatureWriter:
    """Encodes feature maps into a binary file, as they come.

    Args:
      file: Open for writing bytes; a file or a socket.
      settings: What both ends agree on; all but the dead zones goes into the header.
      shape: `(streams, h, w, c)` of every map.
      stage: How labels become bits: "fixed" (R1), "huffman" (R2) or "arithmetic" (R3).
      dtype: Of the features, for the record.

    >>> import io
    >>> file = io.BytesIO()
    >>> writer = FeatureWriter(file, Settings(low=0.0, high=4.0), shape=(1, 2, 2, 1))
    >>> _ = writer.write(jnp.ones((1, 2, 2, 1)))
    >>> writer.close()
    >>> _ = file.seek(0)
    >>> [features.map.ravel().tolist() for features in FeatureReader(file)]
    [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        file: BinaryIO,
        settings: Settings,
        *,
        shape: tuple[int, int, int, int],
        stage: Stage = "arithmetic",
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ):
        codec = ifmdc(settings)
        self._step = jax.jit(codec.encoder.step, donate_argnums=1)
        self._state = codec.blank(shape)
        header = header_of(settings, shape=shape, stage=stage, dtype=dtype)
        self._writer = BitstreamWriter(file, header)

    def write(self, features: jax.Array, *, mask: jax.Array | None = None) -> tuple[int, int]:
        """Encodes the next map.

        Args:
          features: `float[streams, h, w, c]`.
          mask: What may have changed since the last map, `bool[streams, h, w]`; all where None.

        Returns:
          The bytes of its packet, and those of its labels alone.
        """
        self._state, symbols = self._step((), self._state, features, mask)
        return self._writer.write(np.asarray(symbols.labels), is_key=bool(symbols.is_key))

    def close(self) -> None:
        """Writes the end of the bitstream; leaves the file open."""
        self._writer.close()


class Features(NamedTuple):
    """A feature map as it was received.

    Attributes:
      number: Of its frame, from 0.
      map: The reconstruction, `float32[streams, h, w, c]`.
      bits: Of its packet, all of it.
    """

    number: int
    map: jax.Array
    bits: int


class FeatureReader:
    """Decodes feature maps from a binary file, one at a time.

    Iterating yields `Features`.

    Args:
      file: Open for reading bytes.
      skip_damaged: As of `BitstreamReader`: False raises at what is damaged, True goes on at the
        next key frame.

    Raises:
      BitstreamError: The file is not a bitstream (at once), or damaged (while iterating).

    Attributes:
      header: Of the bitstream.
    """

    def __init__(self, file: BinaryIO, *, skip_damaged: bool = False):
        self._reader = BitstreamReader(file, skip_damaged=skip_damaged)
        self.header = self._reader.header
        self._codec = ifmdc(settings_of(self.header))

    def __iter__(self) -> Iterator[Features]:
        state = self._codec.blank(self.header.shape)
        step = jax.jit(self._codec.decoder.step, donate_argnums=1)
        for frame in self._reader:
            symbols = Symbols(
                jnp.asarray(frame.labels),
                jnp.asarray(frame.is_key),
                jnp.asarray(frame.number, jnp.uint32),
            )
            state, reconstruction = step((), state, symbols)
            yield Features(frame.number, reconstruction, frame.bits)


def header_of(
    settings: Settings,
    *,
    shape: tuple[int, int, int, int],
    stage: Stage = "arithmetic",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> Header:
    """Makes the header that tells a decoder the settings.

    >>> header = header_of(Settings(low=0.0, high=4.0), shape=(1, 2, 2, 1))
    >>> settings_of(header) == Settings(low=0.0, high=4.0, key_levels=9)
    True
    """
    return Header(
        shape=shape,
        low=settings.low,
        high=settings.high,
        levels=settings.levels,
        key_levels=settings.labels_of_key,
        group_of_pictures=settings.group_of_pictures,
        residual_divisor=settings.residual_divisor,
        block=settings.block,
        scan=settings.scan,
        stage=stage,
        dtype=dtype,
    )


def settings_of(header: Header) -> Settings:
    """Reads the settings from a header; dead zones are the encoder's own.

    Raises:
      BitstreamError: No codec has these settings.
    """
    try:
        return Settings(
            low=header.low,
            high=header.high,
            levels=header.levels,
            key_levels=header.key_levels,
            group_of_pictures=header.group_of_pictures,
            residual_divisor=header.residual_divisor,
            block=header.block,
            scan=header.scan,
        )
    except ValueError as error:
        raise BitstreamError(f"the header makes no sense: {error}") from error
