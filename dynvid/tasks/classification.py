"""Classification: what is in a frame."""

import dataclasses
from typing import ClassVar

from dynvid.tasks.action_recognition import ActionRecognition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(ActionRecognition):
    """What is in a frame, of any network that scores classes: `(S, classes)`.

    It is `ActionRecognition` frame by frame, and all its attributes.
    """

    name: ClassVar[str] = "classification"
