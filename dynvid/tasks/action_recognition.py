"""Action recognition, or the classification of whole frames: a few classes with a probability."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynvid.ops.early_exit import Exits, Prediction
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.tasks.task import Task, class_name
from dynvid.types import Agreement, Output, Params
from dynvid.video.draw import draw_exits, draw_ranking


class Ranking(NamedTuple):
    """The likeliest classes, best first.

    Attributes:
      classes: `(S, K)` int32.
      probabilities: `(S, K)` float32 in [0, 1].
      exits: How sure each checkpoint was and where it stopped, of systems that have checkpoints.
    """

    classes: jax.Array
    probabilities: jax.Array
    exits: Exits | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionRecognition(Task):
    """What is going on in a frame, of any network that scores classes: `(S, classes)`.

    Outputs may be a `dynvid.ops.early_exit.Prediction` too; how sure its checkpoints were is drawn.

    Attributes:
      preprocessing: How frames become the network's input.
      class_names: The name of each class index.
      top: How many classes are kept.

    >>> task = ActionRecognition(preprocessing=Preprocessing(placement="stretch", white=1), top=2)
    >>> found = task.decode(None, jnp.array([[0.25, 0.5, 0.25]]), frame_size=(8, 8))
    >>> found.classes, found.probabilities
    (Array([[1, 0]], dtype=int32), Array([[0.5 , 0.25]], dtype=float32))
    """

    name: ClassVar[str] = "action-recognition"
    results: ClassVar[str] = "top classes"
    agreement: ClassVar[str] = "share of frames with dense's best class"

    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    top: int = 5

    def decode(self, params: Params, outputs: Output, *, frame_size: tuple[int, int]) -> Ranking:
        """The likeliest classes: the softmax of the scores, unless they are probabilities already.

        Raises:
          ValueError: The outputs are not scores of at least two classes.
        """
        del params, frame_size
        exits = None
        if isinstance(outputs, Prediction):
            outputs, exits = outputs
        leaves = jax.tree.leaves(outputs)
        if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] < 2:
            raise ValueError(
                "outputs must be one array (S, classes) of at least 2 classes; got "
                f"{[leaf.shape for leaf in leaves]}"
            )
        scores = leaves[0].astype(jnp.float32)
        # Many exported networks end in a softmax: no score below 0, and each row adds up to 1.
        total = jnp.sum(scores, 1, keepdims=True)
        ready = (jnp.min(scores, 1, keepdims=True) >= 0) & (jnp.abs(total - 1) < 1e-3)
        probabilities = jnp.where(ready, scores, jax.nn.softmax(scores, 1))
        best, classes = lax.top_k(probabilities, min(self.top, scores.shape[1]))
        return Ranking(classes, best, exits)

    def compare(self, expected: Ranking, found: Ranking) -> Agreement:
        """1 where both have the same best class, else 0; all frames weigh the same."""
        same = (expected.classes[:, 0] == found.classes[:, 0]).astype(jnp.float32)
        return Agreement(same, jnp.ones_like(same))

    def draw(self, frame: np.ndarray, result: Ranking) -> np.ndarray:
        """The classes with their probabilities as bars, in the upper left corner.

        Where there are checkpoints, below them how sure each was and which one stopped.
        """
        names = [class_name(self.class_names, int(index)) for index in result.classes]
        probabilities = np.asarray(result.probabilities)
        if result.exits is None:
            return draw_ranking(frame, names, probabilities)
        return draw_exits(
            frame,
            names,
            probabilities,
            confidences=np.asarray(result.exits.confidences),
            macs=np.asarray(result.exits.macs),
            stopped=int(result.exits.exit),
        )
