"""What is wrong with a bitstream."""


class BitstreamError(ValueError):
    """The bytes are not what an encoder wrote; one line says what is wrong with them.

    >>> raise BitstreamError("the file ends within packet 3")
    Traceback (most recent call last):
    ...
    dynvid.coding.errors.BitstreamError: the file ends within packet 3
    """
