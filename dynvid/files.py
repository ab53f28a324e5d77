"""Files that appear whole or not at all."""

import contextlib
import hashlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from dynvid.errors import UsageError


@contextlib.contextmanager
def part_file(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write to, `<path>.part`; what is there becomes `path` when all went well.

    On any error it is removed, and `path` stays as it was. Where nothing was written, nothing is
    replaced.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with part_file(f"{folder}/report.txt") as part:
    ...         _ = part.write_text("done")
    ...     [path.name for path in pathlib.Path(folder).iterdir()]
    ['report.txt']
    """
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if part.exists():
            part.replace(path)
    finally:
        if not part.is_dir():  # somebody else's
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into; it appears as `path`, whole, when all went well.

    Several processes may write the same file: the last one to end has it.

    Raises:
      UsageError: `path` is a folder, or its folder is not there.
      OSError: It cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with output_file(f"{folder}/features.npy") as file:
    ...         _ = file.write(b"...")
    ...     [path.name for path in pathlib.Path(folder).iterdir()]
    ['features.npy']
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}")
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = pathlib.Path(folder, path.name)
        with open(temporary, "wb") as file:
            yield file
        temporary.replace(path)


def cached_bytes(path: str | pathlib.Path, make: Callable[[], bytes]) -> bytes:
    """What `make` gave when it was first asked for `path`, kept there with a checksum.

    It is made again where the file is broken, and not kept where it cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "code", "a.o")
    ...     first, again = (cached_bytes(path, lambda: made) for made in (b"1", b"2"))
    ...     _ = path.write_bytes(path.read_bytes()[:-1])
    ...     first, again, cached_bytes(path, lambda: b"3")
    (b'1', b'1', b'3')
    """
    path = pathlib.Path(path)
    size = hashlib.sha256().digest_size
    with contextlib.suppress(OSError):
        kept = path.read_bytes()
        if hashlib.sha256(kept[size:]).digest() == kept[:size]:
            return kept[size:]
    made = make()
    with contextlib.suppress(OSError, UsageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with output_file(path) as file:
            file.write(hashlib.sha256(made).digest() + made)
    return made


@contextlib.contextmanager
def output_folder(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into; its files appear in `path`, all of them, when all went well.

    Other files that are there stay. On any error nothing is left, nor any folder made for it.

    Raises:
      UsageError: `path` is a file.
      OSError: `path` cannot be made or written to.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with output_folder(f"{folder}/runs/door") as results:
    ...         _ = (results / "report.json").write_text("{}")
    ...     [str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.json")]
    ['runs/door/report.json']
    """
    path = pathlib.Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise UsageError(f"cannot write into {path}: it is not a folder")
    made = [folder for folder in path.parents if not folder.exists()]  # the deepest first
    if not (there := path.parents[len(made)]).is_dir():
        raise UsageError(f"cannot write into {path}: {there} is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        path.mkdir(exist_ok=True)
        for file in temporary.iterdir():
            file.replace(path / file.name)
    except BaseException:
        shutil.rmtree(temporary)
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
        raise
    temporary.rmdir()
