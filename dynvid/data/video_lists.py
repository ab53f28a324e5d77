"""The official list files of video data sets: which video is of which class."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class LabelledVideo(NamedTuple):
    """An entry of a list.

    Attributes:
      name: The video as the list has it: a relative path, or an identifier.
      label: Index into the class names; -1 where the list does not say.
    """

    name: str
    label: int


class VideoList(NamedTuple):
    """A split of a data set.

    Attributes:
      videos: Its entries, in the list's order.
      class_names: The name of each class index.
    """

    videos: tuple[LabelledVideo, ...]
    class_names: tuple[str, ...]


def read_ucf101(path: str | os.PathLike[str], *, classes: str | os.PathLike[str]) -> VideoList:
    """A split of UCF-101: `trainlist01.txt` or `testlist01.txt` with `classInd.txt`.

    Lines are "Class/v_Class_g08_c01.avi 1" for training, without the number for testing; the class
    is the folder. Numbers start at 1 in the files and at 0 here.

    Args:
      path: The list.
      classes: `classInd.txt`, lines such as "1 ApplyEyeMakeup".

    Raises:
      ValueError: A line is of another form, or names a class that there is not.
    """
    numbered = [_split(classes, i, line, 2) for i, line in _lines(classes)]
    names = tuple(name for _, name in sorted(numbered, key=lambda pair: _number(classes, pair[0])))
    index = {name: i for i, name in enumerate(names)}
    videos = []
    for i, line in _lines(path):
        video = line.split()[0]
        folder = video.partition("/")[0]
        videos.append(LabelledVideo(video, _class(path, i, folder, index)))
    return VideoList(tuple(videos), names)


def read_hmdb51(
    folder: str | os.PathLike[str], *, split: int = 1, part: str = "train"
) -> VideoList:
    """A split of HMDB-51: `CLASS_test_splitN.txt` of every class.

    Lines are "video.avi 1", where 1 is for training, 2 for testing and 0 for neither.

    Args:
      folder: With the lists.
      split: 1, 2 or 3.
      part: "train" or "test".

    Raises:
      ValueError: There is no list of the split, a line is of another form, or `part` is neither.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part must be 'train' or 'test'; got {part!r}")
    wanted = "1" if part == "train" else "2"
    ending = f"_test_split{split}.txt"
    paths = sorted(pathlib.Path(folder).glob(f"*{ending}"))
    if not paths:
        raise ValueError(f"{folder}: no list of split {split}, *{ending}")
    names = tuple(path.name.removesuffix(ending) for path in paths)
    videos = []
    for label, path in enumerate(paths):
        for i, line in _lines(path):
            video, use = _split(path, i, line, 2)
            if use not in ("0", "1", "2"):
                raise ValueError(f"{path}, line {i}: must end in 0, 1 or 2; got {line!r}")
            if use == wanted:
                videos.append(LabelledVideo(f"{names[label]}/{video}", label))
    return VideoList(tuple(videos), names)


def read_kinetics(
    path: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> VideoList:
    """A split of Kinetics: its .csv with columns label, youtube_id, time_start and time_end.

    Names are those under which its downloaders keep the clips, `ID_000012_000022.mp4`.

    Args:
      path: The list; test lists have no labels.
      class_names: In their order; those in the list, sorted, where None.

    Raises:
      ValueError: A column is missing, or a class is not among the names.
    """
    rows = _table(path, ("youtube_id", "time_start", "time_end"))
    labels = [row.get("label") or "" for row in rows]
    names = tuple(sorted(set(labels) - {""})) if class_names is None else tuple(class_names)
    index = {name: i for i, name in enumerate(names)}
    videos = []
    for i, (row, label) in enumerate(zip(rows, labels, strict=True), start=2):
        start, end = (
            _number(f"{path}, line {i}", row[column]) for column in ("time_start", "time_end")
        )
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
        videos.append(LabelledVideo(name, _class(path, i, label, index) if label else -1))
    return VideoList(tuple(videos), names)


def read_something_something(
    path: str | os.PathLike[str], *, classes: str | os.PathLike[str]
) -> VideoList:
    """A split of Something-Something, version 1 (.csv) or 2 (.json), with its list of classes.

    Version 1: lines "ID;class" and a .csv with a class a line. Version 2: objects with "id" and
    "template", and an object from classes to numbers; brackets in templates are left out. Test
    lists have no classes.

    Args:
      path: The list.
      classes: Of the same version.

    Raises:
      ValueError: A file is of another form, or names a class that there is not.
    """
    if pathlib.Path(path).suffix == ".json":
        numbers = _json(classes, dict)
        names = tuple(sorted(numbers, key=lambda name: _number(classes, numbers[name])))
        entries = []
        for entry in _json(path, list):
            if not isinstance(entry, dict) or "id" not in entry:
                raise ValueError(f'{path}: entries must be objects with "id"; got {entry!r}')
            template = str(entry.get("template", ""))
            entries.append((str(entry["id"]), template.replace("[", "").replace("]", "")))
    else:
        names = tuple(line for _, line in _lines(classes))
        entries = []
        for _, line in _lines(path):
            name, _, label = line.partition(";")
            entries.append((name, label))
    index = {name: i for i, name in enumerate(names)}
    videos = tuple(
        LabelledVideo(name, _class(path, i, label, index) if label else -1)
        for i, (name, label) in enumerate(entries, start=1)
    )
    return VideoList(videos, names)


def segment_frames(count: int, frames: int, *, key: int | None = None) -> np.ndarray:
    """Which frames of a video make its clip (Temporal Segment Networks, Wang et al. 2016).

    T segments of equal length; of each its middle frame, or one at random.

    Args:
      count: How many frames the video has.
      frames: T.
      key: A seed: at random, for training. None: the middle, for testing.

    Returns:
      `int[T]`, ascending.

    Raises:
      ValueError: There are fewer frames than T.

    >>> segment_frames(32, 4).tolist()
    [4, 12, 20, 28]
    """
    if count < frames:
        raise ValueError(f"a clip must have at least {frames} frames; got {count}")
    if key is None:
        return (2 * np.arange(frames) + 1) * count // (2 * frames)
    edges = np.arange(frames + 1) * count // frames
    return np.random.default_rng(key).integers(edges[:-1], edges[1:])


def centre_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """The square in the middle of frames, enlarged or reduced to `size` by the nearest pixel.

    Args:
      frames: `(T, H, W, C)`.
      size: Its side, pixels. The shorter side of the frames becomes 8 / 7 of it first (256 to 224).

    >>> centre_crop(np.zeros((2, 256, 340, 3), np.uint8), 224).shape
    (2, 224, 224, 3)
    """
    height, width = frames.shape[1:3]
    side = min(height, width) * 7 / 8
    steps = (np.arange(size) + 0.5) * side / size - side / 2
    rows = np.floor(height / 2 + steps).astype(int)
    columns = np.floor(width / 2 + steps).astype(int)
    return frames[:, rows][:, :, columns]


def clips_of(
    videos: VideoList,
    read: Callable[[str], np.ndarray],
    *,
    frames: int = 16,
    size: int = 224,
    seed: int | None = None,
) -> "VideoClips":
    """The videos of a list as clips: for a loop, or as the source of a `grain.MapDataset`.

    Args:
      videos: The list.
      read: `read(name) -> frames`, `(N, H, W, 3)` uint8.
      frames: T.
      size: Side of the centre crop, pixels.
      seed: Of the frames drawn, for training; None takes the middle of each segment.

    Returns:
      A sequence of `(clip, label)`, `(T, size, size, 3)` uint8 and an integer; it is read when it
      is asked for.

    >>> listed = VideoList((LabelledVideo("a", 1),), ("x", "y"))
    >>> clips = clips_of(listed, lambda name: np.zeros((20, 8, 10, 3), np.uint8), size=4)
    >>> clips[0][0].shape, clips[0][1]
    ((16, 4, 4, 3), 1)
    """
    return VideoClips(videos, read, frames, size, seed)


@dataclasses.dataclass(frozen=True)
class VideoClips:
    """What `clips_of` returns: a sequence in all that grain needs of one."""

    listed: VideoList
    read: Callable[[str], np.ndarray]
    frames: int
    size: int
    seed: int | None

    def __len__(self) -> int:
        return len(self.listed.videos)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        video = self.listed.videos[index]
        frames = self.read(video.name)
        key = None if self.seed is None else self.seed + int(index)
        chosen = frames[segment_frames(len(frames), self.frames, key=key)]
        return centre_crop(chosen, self.size), video.label


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be a text file ({error})") from error
    for i, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield i, line.strip()


def _split(path: object, number: int, line: str, count: int) -> list[str]:
    parts = line.split()
    if len(parts) != count:
        raise ValueError(f"{path}, line {number}: must be {count} words; got {line!r}")
    return parts


def _number(path: object, text: object) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise ValueError(f"{path}: must be a whole number; got {text!r}") from None


def _class(path: object, number: int, name: str, index: dict[str, int]) -> int:
    if name not in index:
        raise ValueError(f"{path}, entry {number}: class must be one of {len(index)}; got {name!r}")
    return index[name]


def _table(path: str | os.PathLike[str], columns: Sequence[str]) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path}: must have the columns {', '.join(columns)}; got no {missing[0]}"
            )
        return list(reader)


def _json(path: str | os.PathLike[str], kind: type) -> list | dict:
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON ({error})") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path}: must be a JSON {kind.__name__}; got {type(found).__name__}")
    return found
