"""Ctrl-C, and SIGTERM, which stops a container: between two steps of the work, and once."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager under which both signals end the work alike, as `KeyboardInterrupt`.

    It comes once: what is to be finished then, or has been held, is not interrupted again. Outside
    of the main thread, where Python handles no signals, it changes nothing.

    >>> with Interrupts() as interrupts:
    ...     with contextlib.suppress(KeyboardInterrupt), interrupts.held():
    ...         signal.raise_signal(signal.SIGTERM)
    ...         print("a frame is written whole")
    a frame is written whole
    """

    def __init__(self):
        self._held = 0
        self._came = self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """What comes in the block is raised at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def hold(self) -> None:
        """Nothing is raised from now on: what is left is done in full."""
        self._held += 1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._came:
            print("dynvid: finishing what was done so far ...", file=sys.stderr)
        self._came = True
        self._raise()

    def _raise(self) -> None:
        if self._came and not self._raised and not self._held:
            self._raised = True
            raise KeyboardInterrupt
