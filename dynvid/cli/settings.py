"""Settings files: a system's options for a model, as `dynvid tune` writes them."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import dynvid
from dynvid.cli.common import size_text
from dynvid.errors import UsageError, reason
from dynvid.models.zoo import TASKS, Model
from dynvid.systems.registry import SYSTEMS, System


class SettingsFile(NamedTuple):
    """What a settings file says; None where it says nothing.

    Attributes:
      path: The file.
      system: The name of the system.
      options: The system's.
      task: The name of the task.
      model: The name of the model that they are for.
      digest: SHA-256 of that model's files.
      frame_size: (height, width) of the frames that they were tuned on.
    """

    path: pathlib.Path
    system: str | None = None
    options: Mapping[str, Any] = {}
    task: str | None = None
    model: str | None = None
    digest: str | None = None
    frame_size: tuple[int, int] | None = None

    def check_model(self, model: Model) -> None:
        """Checks that these settings are for a model: one with the same weights.

        Raises:
          UsageError: They are for another.
        """
        if self.digest is not None and model.digest is not None:
            if self.digest != model.digest:
                same = "other weights" if self.model == model.name else f"{self.model}"
                raise UsageError(f"{self.path} was made for {same}; got {model.name}")
        elif self.model is not None and self.model != model.name:
            raise UsageError(f"{self.path} was made for {self.model}; got {model.name}")

    def doubt(self, frame_size: tuple[int, int]) -> str | None:
        """What makes it doubtful that the settings suit frames of a size, in one line."""
        if self.frame_size in (None, frame_size):
            return None
        return (
            f"{self.path} was tuned on frames of {size_text(self.frame_size)}, these are "
            f"{size_text(frame_size)}"
        )


_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "system": (
        "one of " + ", ".join(SYSTEMS),
        lambda value: isinstance(value, str) and value in SYSTEMS,
    ),
    "options": ("an object", lambda value: isinstance(value, dict)),
    "task": (
        "one of " + ", ".join(TASKS),
        lambda value: isinstance(value, str) and value in TASKS,
    ),
    "model": ("a file's name", lambda value: isinstance(value, str)),
    "model_sha256": ("text", lambda value: value is None or isinstance(value, str)),
    "frame_size": (
        "[height, width]",
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(isinstance(x, int) for x in value)
        ),
    ),
    "tuning": ("an object", lambda value: isinstance(value, dict)),
    "dynvid": ("a version", lambda value: isinstance(value, str)),
}


def read_settings(path: pathlib.Path) -> SettingsFile:
    """Reads a settings file.

    Raises:
      UsageError: It cannot be read, or is no settings file; one line says why.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the settings {path}: {reason(error)}") from error
    if not isinstance(data, dict):
        raise UsageError(f"cannot read the settings {path}: expected an object, {{...}}")
    if unknown := [key for key in data if key not in _KEYS]:
        raise UsageError(f"{path} has unknown keys {', '.join(unknown)}; it may have "
                         f"{', '.join(_KEYS)}")  # fmt: skip
    for key, value in data.items():
        expected, allows = _KEYS[key]
        if not allows(value):
            raise UsageError(f"{path}: {key} must be {expected}; got {json.dumps(value)}")
    size = data.get("frame_size")
    return SettingsFile(
        path=path,
        system=data.get("system"),
        options=data.get("options", {}),
        task=data.get("task"),
        model=data.get("model"),
        digest=data.get("model_sha256"),
        frame_size=None if size is None else (size[0], size[1]),
    )


def settings_text(
    *,
    system: str,
    options: Mapping[str, Any],
    model: Model,
    frame_size: tuple[int, int],
    tuning: Mapping[str, Any],
) -> str:
    """What stands in a settings file."""
    data = {
        "system": system,
        "options": dict(options),
        "task": model.task.name,
        "model": model.name,
        "model_sha256": model.digest,
        "frame_size": list(frame_size),
        "tuning": dict(tuning),
        "dynvid": dynvid.__version__,
    }
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options given as NAME=VALUE, values as JSON has them or plain words.

    Raises:
      UsageError: One of them is not of this form.

    >>> parse_options(["partition=pixel", "groups=[0, 1]", "cell=4"])
    {'partition': 'pixel', 'groups': [0, 1], 'cell': 4}
    """
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"--set must be NAME=VALUE; got {pair!r}")
        try:
            options[name] = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            options[name] = text
    return options


def choose_system(name: str | None, file: SettingsFile | None) -> System:
    """The system to run.

    Args:
      name: What `--system` says.
      file: What `--settings` says.

    Raises:
      UsageError: There is none of that name, or they contradict each other.
    """
    of_file = None if file is None else file.system
    if name is not None and name not in SYSTEMS:
        raise UsageError(f"--system must be one of {', '.join(SYSTEMS)}; got {name!r}")
    if file is not None and name is not None and of_file not in (None, name):
        raise UsageError(f"{file.path} has settings of {of_file}; got --system {name}")
    return SYSTEMS[name or of_file or "incremental"]


def choose_task(
    system: System, file: SettingsFile | None, *, task: str | None, head: str | None
) -> str | None:
    """The task that a model is asked for; None leaves it to the model.

    Args:
      system: The system to run.
      file: What `--settings` says.
      task: What `--task` says.
      head: What `--head` says.

    Raises:
      UsageError: The system does not serve it.
    """
    if task is None and head is None and file is not None:
        task = file.task
    served = system.tasks
    if served is not None and task is not None and task not in served:
        raise UsageError(f"--system {system.name} is for {_words(served)}; got --task {task}")
    if served is not None and head is not None:
        raise UsageError(f"--system {system.name} is for {_words(served)}; got --head {head}")
    return next(iter(served)) if task is None and served is not None and len(served) == 1 else task


def choose_options(
    system: System, file: SettingsFile | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of a system: those given one by one, then the file's, then defaults.

    Raises:
      UsageError: The system has no such option or value.
    """
    options = {} if file is None else dict(file.options)
    try:
        system.settings(options)
    except ValueError as error:
        raise UsageError(f"{'' if file is None else file.path}: {error}") from error
    try:
        return system.settings({**options, **given})
    except ValueError as error:
        raise UsageError(str(error)) from error


def _words(tasks: Iterable[str]) -> str:
    return ", ".join(sorted(tasks))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")
