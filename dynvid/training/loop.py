"""The training loop: a pure update, and a run of them that goes on where it was killed."""

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from dynvid.training._extra import require
from dynvid.training.checkpoints import Checkpoints
from dynvid.types import Params

_REPORT = 20  # steps between two reports of the loss, which wait for the device


class TrainState(NamedTuple):
    """All that a training knows: a pytree of arrays, to donate, save and restore.

    Attributes:
      params: The network's parameters.
      optimizer: What the optimizer keeps.
      step: How many updates were made, int32.
    """

    params: Params
    optimizer: Any
    step: jax.Array


class Steps(Protocol):
    """What `fit` needs of a state: a pytree of arrays that counts its steps."""

    @property
    def step(self) -> jax.Array:
        """How many updates were made, int32."""
        ...


type Update[State: Steps] = Callable[[State, Any], tuple[State, jax.Array]]
"""`update(state, batch) -> (state, loss)`, pure."""


def start(params: Params, optimizer: Any) -> TrainState:
    """The state before the first update.

    Args:
      params: The parameters to begin with; `update_step` takes their memory.
      optimizer: An optax optimizer.

    >>> import optax
    >>> start(jnp.ones(()), optax.sgd(0.1)).step.item()
    0
    """
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def update_step(loss: Callable[[Params, Any], jax.Array], optimizer: Any) -> Update[TrainState]:
    """The update of a gradient descent, jitted.

    Args:
      loss: `loss(params, batch)`, a scalar, pure. A batch is any pytree of arrays: frames and what
        is wanted of them, or a random key that the loss draws them from.
      optimizer: An optax optimizer.

    Returns:
      `update(state, batch) -> (state, loss)`: the loss is that before the update. The old state is
      donated.

    Raises:
      ImportError: Where optax is missing (`pip install "dynvid[train]"`).

    >>> import optax
    >>> optimizer = optax.sgd(0.25)
    >>> update = update_step(lambda x, target: (x - target) ** 2, optimizer)
    >>> state, loss = update(start(jnp.float32(0), optimizer), 4.0)
    >>> state.params.item(), loss.item()
    (2.0, 16.0)
    """
    optax = require("optax")

    @jax.jit(donate_argnums=0)
    def update(state: TrainState, batch: Any) -> tuple[TrainState, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, batch)
        updates, kept = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, kept, state.step + 1), value

    return update


def fit[State: Steps](
    update: Update[State],
    state: State,
    batch_at: Callable[[int], Any],
    *,
    steps: int,
    checkpoints: Checkpoints | None = None,
    every: int = 500,
    name: str = "training",
    measure: str = "loss",
    console: Console | None = None,
) -> State:
    """Trains up to a number of steps, with a progress bar, going on from the latest checkpoint.

    Args:
      update: What `update_step` returns.
      state: What to begin with, where there is no checkpoint; its memory may be taken.
      batch_at: The batch of step i, counted from zero, whenever it is asked for: a function of a
        random key and i, or the `__getitem__` of a `grain.MapDataset`.
      steps: How many updates the whole training has, those before a resumption included.
      checkpoints: Where states are kept; None keeps none.
      every: How many steps lie between two checkpoints; there is one after the last step too.
      name: What the progress bar calls it.
      measure: What it calls the second thing that `update` returns.
      console: Where the progress goes; standard output where None.

    Returns:
      The state after `steps` updates, or that of the checkpoint where it has as many already.

    Raises:
      ValueError: For negative `steps` or an `every` below one; for a checkpoint of another
        structure than `state`.
      FloatingPointError: Where the loss is no longer finite, before a checkpoint is made.

    Exact: a training that was killed and resumed ends with the same parameters as one that was
    not, bit for bit, where `batch_at` gives the same batches, on the same device.

    >>> import optax
    >>> optimizer = optax.sgd(0.25)
    >>> update = update_step(lambda x, target: (x - target) ** 2, optimizer)
    >>> quiet = Console(quiet=True)
    >>> state = start(jnp.float32(0), optimizer)
    >>> fit(update, state, lambda i: 4.0, steps=3, console=quiet).params.item()
    3.5
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0; got {steps}")
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}")
    if checkpoints is not None and checkpoints.steps():
        state = checkpoints.restore(state)
    losses: deque[jax.Array] = deque(maxlen=_REPORT)
    columns = (
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    first = int(state.step)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=steps, completed=min(first, steps), loss="")
        for done in range(first + 1, steps + 1):
            state, loss = update(state, batch_at(done - 1))
            losses.append(loss)
            keep = done % every == 0 or done == steps
            if not (keep or done % _REPORT == 0):
                continue
            mean = float(np.mean(jax.device_get(list(losses))))
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"the {measure} must be finite; got {mean} up to step {done}"
                )
            progress.update(task, completed=done, loss=f"{measure} {mean:.3f}")
            if keep and checkpoints is not None:
                checkpoints.save(done, state)
    return state
