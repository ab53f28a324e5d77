"""Files that appear whole or not at all, whatever happens on the way."""

import os
import stat

import pytest

from dynvid.errors import UsageError
from dynvid.files import output_file, output_folder, part_file


def write(context, path, *, fail: bool):
    """Writes "new" by a context of `dynvid.files`, and fails after it where asked to."""
    with context(path) as place:
        if context is output_file:
            place.write(b"new")
        else:
            (place / "a.txt" if context is output_folder else place).write_text("new")
        if fail:
            raise KeyboardInterrupt


@pytest.mark.parametrize("context", [part_file, output_file])
def test_a_file_is_replaced_when_all_went_well(tmp_path, context):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(context, path, fail=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
    write(context, path, fail=False)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_may_be_read_by_whom_other_files_may_be(tmp_path):
    (tmp_path / "plain").write_text("")
    write(output_file, tmp_path / "a.txt", fail=False)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.txt")]
    assert modes[0] == modes[1]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with output_file(path) as one, output_file(path) as other:
        one.write(b"one" * 9)
        other.write(b"other")
    assert path.read_text() == "one" * 9
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_all_files_or_none(tmp_path):
    out = tmp_path / "deep" / "results"
    with pytest.raises(KeyboardInterrupt):
        write(output_folder, out, fail=True)
    assert not list(tmp_path.iterdir())
    write(output_folder, out, fail=False)
    assert [path.name for path in out.parent.rglob("*")] == ["results", "a.txt"]
    (out / "notes.txt").write_text("mine")
    (out / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(output_folder, out, fail=True)
    assert (out / "a.txt").read_text() == "old"
    write(output_folder, out, fail=False)
    assert (out / "a.txt").read_text() == "new"
    assert (out / "notes.txt").read_text() == "mine"


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: it is not a folder"):
        write(output_folder, tmp_path / "file", fail=False)
    with pytest.raises(UsageError, match=r"file/sub/folder: .*file is not a folder"):
        write(output_folder, tmp_path / "file" / "sub" / "folder", fail=False)
    with pytest.raises(UsageError, match="it is a folder"):
        write(output_file, tmp_path, fail=False)
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere"):
        write(output_file, tmp_path / "nowhere" / "a.txt", fail=False)
    assert os.listdir(tmp_path) == ["file"]
