"""ImageNet VID and DET in their official layout (Russakovsky et al. 2015; development kit of 2015).

    Annotations/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000/000000.xml
    Annotations/VID/val/ILSVRC2015_val_00000000/000000.xml
    Data/VID/...                     the same names, .JPEG
    ImageSets/VID/train_1.txt, ...   a class each, `snippet label` a line
    ImageSets/VID/val.txt            `snippet/frame index` a line

and DET likewise, an image for a frame. Pictures and annotations are read when they are asked for.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from dynvid.errors import reason

_SYNSETS = {
    "n02691156": "airplane", "n02419796": "antelope", "n02131653": "bear",
    "n02834778": "bicycle", "n01503061": "bird", "n02924116": "bus", "n02958343": "car",
    "n02402425": "cattle", "n02084071": "dog", "n02121808": "domestic cat",
    "n02503517": "elephant", "n02118333": "fox", "n02510455": "giant panda",
    "n02342885": "hamster", "n02374451": "horse", "n02129165": "lion", "n01674464": "lizard",
    "n02484322": "monkey", "n03790512": "motorcycle", "n02324045": "rabbit",
    "n02509815": "red panda", "n02411705": "sheep", "n01726692": "snake",
    "n02355227": "squirrel", "n02129604": "tiger", "n04468005": "train", "n01662784": "turtle",
    "n04530566": "watercraft", "n02062744": "whale", "n02391049": "zebra",
}  # fmt: skip

SYNSETS = tuple(_SYNSETS)
"""The WordNet name of each of VID's classes, which annotations call them by."""

CLASS_NAMES = tuple(_SYNSETS.values())
"""The name of each class index."""

_LARGEST = 1 << 20  # bytes of an annotation; the largest there are have some thousands


class Annotation(NamedTuple):
    """What is in a frame or an image, M objects.

    Attributes:
      size: (height, width) of the picture.
      boxes: `(M, 4)` float32, `(x0, y0, x1, y1)` from edge to edge in pixels, in the picture: the
        files name the last pixel instead, x1 - 1 and y1 - 1.
      classes: `(M,)` int32.
      tracks: `(M,)` int32, the same for one object in all frames of a snippet; -1 of images.
      occluded: `(M,)` bool.
      generated: `(M,)` bool, whether a box was interpolated instead of drawn.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    tracks: np.ndarray
    occluded: np.ndarray
    generated: np.ndarray


class Example(NamedTuple):
    """A picture and what is in it.

    Attributes:
      name: As the lists have it, without an ending.
      frame: `(H, W, 3)` uint8, RGB.
      annotation: Its objects.
    """

    name: str
    frame: np.ndarray
    annotation: Annotation


class Snippet(NamedTuple):
    """A video of VID.

    Attributes:
      name: `ILSVRC2015_val_00000000`, with its folder in the training set.
      frames: The names of its frames in order, each beginning with that.
    """

    name: str
    frames: tuple[str, ...]


def parse_annotation(text: str, *, synsets: Sequence[str] = SYNSETS) -> Annotation:
    """Reads an annotation of VID or DET.

    Nothing that the text may define or point to is followed: one with a document type, which only
    a file made to do harm would have, is refused.

    Args:
      text: XML as of PASCAL VOC.
      synsets: The classes; objects of others, which DET has, are left out.

    Returns:
      Its objects.

    Raises:
      ValueError: The text is no XML or no annotation; the message names the field.

    >>> found = parse_annotation(
    ...     "<annotation><size><width>8</width><height>6</height></size><object>"
    ...     "<trackid>3</trackid><name>n02084071</name><bndbox><xmax>4</xmax><xmin>0</xmin>"
    ...     "<ymax>5</ymax><ymin>2</ymin></bndbox></object></annotation>"
    ... )
    >>> CLASS_NAMES[found.classes[0]], found.boxes.tolist(), found.tracks.tolist()
    ('dog', [[0.0, 2.0, 5.0, 6.0]], [3])
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("annotation must not have a document type")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"annotation must be XML; got {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"the outermost element must be annotation; got {root.tag}")
    width, height = (_whole(root, f"size/{side}", "") for side in ("width", "height"))
    if width < 1 or height < 1:
        raise ValueError(f"size must be of at least one pixel; got {width} x {height}")
    rows = []
    for number, item in enumerate(root.findall("object")):
        place = f"object {number}: "
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{place}name must be there; got nothing")
        if name not in synsets:
            continue
        low_x, low_y, high_x, high_y = (
            _number(item, f"bndbox/{edge}", place) for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        if low_x > high_x or low_y > high_y:
            raise ValueError(
                f"{place}bndbox must have xmin <= xmax and ymin <= ymax; got "
                f"{low_x, low_y, high_x, high_y}"
            )
        box = np.clip([low_x, low_y, high_x + 1, high_y + 1], 0, [width, height] * 2)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"{place}bndbox must lie in the {width} x {height} picture; got "
                f"{low_x, low_y, high_x, high_y}"
            )
        flags = [_whole(item, field, place, default=0) for field in ("occluded", "generated")]
        track = _whole(item, "trackid", place, default=-1)
        rows.append((box, synsets.index(name), track, *flags))
    boxes, classes, tracks, occluded, generated = zip(*rows, strict=True) if rows else ((),) * 5
    return Annotation(
        (height, width),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int32),
        np.array(tracks, np.int32),
        np.array(occluded, bool),
        np.array(generated, bool),
    )


def _number(element: ElementTree.Element, field: str, place: str) -> float:
    text = element.findtext(field)
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{place}{field} must be a number; got {text!r}")
    return value


def _whole(
    element: ElementTree.Element, field: str, place: str, *, default: int | None = None
) -> int:
    if default is not None and element.find(field) is None:
        return default
    value = _number(element, field, place)
    if value != int(value) or abs(value) >= 1 << 31:
        raise ValueError(f"{place}{field} must be a whole number; got {value}")
    return int(value)


class _Folder:
    """A data set's three folders."""

    def __init__(self, folder: str | os.PathLike[str], part: str, split: str):
        root = pathlib.Path(folder)
        self.lists = root / "ImageSets" / part
        self._annotations = root / "Annotations" / part / split
        self._data = root / "Data" / part / split
        self._split = split
        for place in (self.lists, self._annotations, self._data):
            if not place.is_dir():
                raise FileNotFoundError(f"{place}: no such folder")

    def lines(self, names: Iterable[str]) -> list[tuple[str, list[str]]]:
        """What the lists say, name and the words after it; a name may begin with the split."""
        found = []
        for name in names:
            path = self.lists / name
            for number, line in enumerate(_text(path).splitlines(), 1):
                if not line.strip():
                    continue
                first, *rest = line.split()
                first = first.removeprefix(f"{self._split}/")
                if not rest or not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", first) or ".." in first:
                    raise ValueError(
                        f"{path}, line {number}: must be a name and a number; got {line!r}"
                    )
                found.append((first, rest))
        return found

    def training_lists(self) -> list[str]:
        """`train_1.txt` and so on, by number."""
        names = [path.name for path in self.lists.glob("train_*.txt")]
        names = [name for name in names if re.fullmatch(r"train_\d+\.txt", name)]
        if not names:
            raise FileNotFoundError(f"{self.lists}: no train_1.txt or others of the kind")
        return sorted(names, key=lambda name: int(name[len("train_") : -len(".txt")]))

    def frames(self, snippet: str) -> tuple[str, ...]:
        """The frames of which there are pictures, in order."""
        place = self._data / snippet
        found = sorted(path.stem for path in place.glob("*.JPEG"))
        if not found:
            raise ValueError(f"{place} must have frames (.JPEG); got none")
        return tuple(f"{snippet}/{name}" for name in found)

    def example(self, name: str, *, needed: bool = True) -> Example:
        """Reads a picture and its annotation."""
        picture = self._data / f"{name}.JPEG"
        try:
            with Image.open(picture) as image:
                frame = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{picture}: not a picture ({reason(error)})") from error
        path = self._annotations / f"{name}.xml"
        if not needed and not path.exists():
            empty = np.zeros(0, np.int32)
            none = Annotation(
                frame.shape[:2], np.zeros((0, 4), np.float32), empty, empty,
                empty.astype(bool), empty.astype(bool),
            )  # fmt: skip
            return Example(name, frame, none)
        text = _text(path)
        try:
            annotation = parse_annotation(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if annotation.size != frame.shape[:2]:
            raise ValueError(
                f"{path}: size must be that of the picture, {frame.shape[:2]}; got "
                f"{annotation.size}"
            )
        return Example(name, frame, annotation)


def _text(path: pathlib.Path) -> str:
    if path.suffix == ".xml" and path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: must have at most {_LARGEST} bytes; got {path.stat().st_size}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8 ({reason(error)})") from error


class ImageNetVID:
    """The snippets of ImageNet VID.

    Args:
      folder: Where Annotations, Data and ImageSets are.
      split: "train", whose snippets come from the lists of all classes, each once and in the order
        in which they are first named; or "val", in the order of its list.

    Attributes:
      snippets: The videos, `Snippet`.

    Raises:
      FileNotFoundError: A folder or a list is missing.
      ValueError: A line of a list cannot be read, or a snippet has no frames. When a frame is asked
        for: its picture or annotation cannot be read; file and field are named.
    """

    snippets: tuple[Snippet, ...]

    def __init__(self, folder: str | os.PathLike[str], *, split: str = "val"):
        self._folder = _Folder(folder, "VID", split)
        if split == "train":
            lines = self._folder.lines(self._folder.training_lists())
            names = dict.fromkeys(name for name, _ in lines)
            self.snippets = tuple(Snippet(name, self._folder.frames(name)) for name in names)
        else:
            frames: dict[str, list[str]] = {}
            for name, _ in self._folder.lines([f"{split}.txt"]):
                frames.setdefault(name.rpartition("/")[0], []).append(name)
            self.snippets = tuple(Snippet(name, tuple(own)) for name, own in frames.items())

    def __len__(self) -> int:
        return len(self.snippets)

    def frame(self, snippet: int, index: int) -> Example:
        """Reads a frame.

        Args:
          snippet: Which of `snippets`.
          index: Which of its frames.
        """
        return self._folder.example(self.snippets[snippet].frames[index])


class ImageNetDET:
    """The images of ImageNet DET that show VID's classes, which training takes as still videos.

    Args:
      folder: Where Annotations, Data and ImageSets are.
      split: "train" or "val".
      lists: Files in ImageSets/DET; by default `train_1.txt` and so on, or `val.txt`. Of training
        lists only what is said to show the list's class (label 1) counts. They are of DET's 200
        classes: whoever wants VID's alone names their lists, such as that of DFF's authors.

    Attributes:
      names: Of the images, each once.

    Raises:
      FileNotFoundError: A folder or a list is missing.
      ValueError: As of `ImageNetVID`.
    """

    names: tuple[str, ...]

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        split: str = "train",
        lists: Sequence[str] | None = None,
    ):
        self._folder = _Folder(folder, "DET", split)
        if lists is None:
            lists = self._folder.training_lists() if split == "train" else [f"{split}.txt"]
        lines = self._folder.lines(lists)
        self.names = tuple(
            dict.fromkeys(name for name, rest in lines if split != "train" or rest[0] == "1")
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        # Images without objects need not have an annotation.
        return self._folder.example(self.names[index], needed=False)
