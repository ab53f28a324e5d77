"""The figures on disk: written whole after each row, so that a run can be taken up again."""

import pathlib
from typing import Any

from experiments.bench.results import machine, read_json, write_json


class Results:
    """What results.json holds, by subject.

    Args:
      path: the file; it need not exist.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path

    def read(self) -> dict[str, Any]:
        """All that was measured."""
        return {"subjects": {}} | read_json(self._path)

    def subject(self, name: str, *, frames: int) -> dict[str, Any]:
        """The entry of a sequence and a model; a new one where other frames were measured."""
        entry = self.read()["subjects"].get(name, {})
        return entry if entry.get("frames") == frames else {"frames": frames}

    def save(self, name: str, entry: dict[str, Any]) -> None:
        """Writes the file, whole or not at all; the other subjects as they are there by now."""
        data = self.read()
        data["subjects"][name] = entry
        data["machine"] = machine()
        write_json(self._path, data)
