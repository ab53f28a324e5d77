"""What is reported of an error: one line."""


class UsageError(ValueError):
    """What was asked for cannot be done; one line says why."""


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks; its type where it has no message.

    >>> one_line(ValueError("a shape\\n  does not fit")), one_line(MemoryError())
    ('a shape does not fit', 'MemoryError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def reason(error: BaseException) -> str:
    """What the system says of an error, for messages that name the file themselves.

    >>> reason(FileNotFoundError(2, "No such file or directory", "street.mp4"))
    'No such file or directory'
    """
    text = getattr(error, "strerror", None)
    return " ".join(text.split()) if text else one_line(error)
