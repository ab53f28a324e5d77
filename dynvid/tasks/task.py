"""What a runner has to know of a task, and nothing more."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from dynvid.ops.letterbox import Letterbox
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.types import Agreement, Frames, Output, Params

Result = Any
"""What a task makes of a network's outputs: a pytree of arrays `(S, ...)`, one row a stream."""


class Task(Protocol):
    """What a network is run for: frames into it, results out of it.

    A task is named in `dynvid run --task NAME` and in reports, and `run_video` needs no more of it
    than what stands here. All but `draw` are pure and may be jitted.

    Attributes:
      name: As the command line has it.
      results: What its results are called, in the plural.
      agreement: What `compare` measures.
      preprocessing: How frames become the network's input.
    """

    name: ClassVar[str]
    results: ClassVar[str]
    agreement: ClassVar[str]
    preprocessing: Preprocessing

    def geometry(self, frame_size: tuple[int, int]) -> Letterbox:
        """How frames of `(height, width)` lie in the network's input."""
        return self.preprocessing.letterbox(frame_size)

    def preprocess(
        self, network: Callable[[Params, jax.Array], Output]
    ) -> Callable[[Params, Frames], Output]:
        """The network as a function of a camera's frames, `(S, H, W, 3)` uint8 RGB."""
        return self.preprocessing.on_frames(network)

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Result:
        """Results, in pixels of frames of `(height, width)`, from the network's raw outputs."""
        ...

    def compare(self, expected: Result, found: Result) -> Agreement:
        """How far two results of the same frames agree, and how much there is to agree on: `(S,)`.

        It is what `dynvid.tune` and `dynvid.audited` judge by.
        """
        ...

    def draw(self, frame: np.ndarray, result: Result) -> np.ndarray:
        """A picture `(H', W', 3)` uint8 of a frame `(H, W, 3)` with its result, of one stream."""
        ...


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where there is no name for it.

    >>> class_name(("disc",), 0), class_name(("disc",), 7)
    ('disc', 'class 7')
    """
    return names[index] if index < len(names) else f"class {index}"
