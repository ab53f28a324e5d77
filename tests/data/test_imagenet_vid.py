import numpy as np
import pytest
from PIL import Image

from dynvid.data.imagenet_vid import (
    CLASS_NAMES,
    SYNSETS,
    ImageNetDET,
    ImageNetVID,
    parse_annotation,
)

SNIPPET = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
OTHER = "ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000001"
VAL = "ILSVRC2015_val_00000000"


def annotation(*objects, width=12, height=8):
    items = "".join(
        f"<object>{f'<trackid>{track}</trackid>' if track is not None else ''}<name>{name}</name>"
        f"<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymax>{box[3]}</ymax>"
        f"<ymin>{box[1]}</ymin></bndbox><occluded>1</occluded><generated>0</generated></object>"
        for track, name, box in objects
    )
    return (
        "<annotation><folder>f</folder><filename>000000</filename>"
        "<source><database>ILSVRC_2015</database></source>"
        f"<size><width>{width}</width><height>{height}</height></size>{items}</annotation>"
    )


def write(root, part, split, name, text, *, size=(12, 8)):
    picture = root / "Data" / part / split / f"{name}.JPEG"
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 10, 10)).save(picture, "JPEG")
    path = root / "Annotations" / part / split / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        path.write_text(text)


@pytest.fixture
def folder(tmp_path):
    dog, cat = "n02084071", "n02121808"
    for snippet, split, frames in ((SNIPPET, "train", 3), (OTHER, "train", 2), (VAL, "val", 2)):
        for t in range(frames):
            text = annotation((4, dog, (t, 1, 5, 7)), (0, cat, (0, 0, 1, 1)))
            write(tmp_path, "VID", split, f"{snippet}/{t:06d}", text)
    write(tmp_path, "DET", "train", "ILSVRC2013_train/n02084071/n02084071_3", annotation(
        (None, dog, (0, 0, 11, 7)), (None, "n07753592", (0, 0, 1, 1))
    ))  # fmt: skip
    write(tmp_path, "DET", "train", "ILSVRC2014_train_0000/ILSVRC2014_train_00000001", None)
    lists = {
        "VID/train_1.txt": f"{SNIPPET} 1\n",
        "VID/train_2.txt": f"{OTHER} 1\n{SNIPPET} 1\n",
        "VID/train_10.txt": f"{SNIPPET} 1\n",
        "VID/val.txt": "".join(f"{VAL}/{t:06d} {t + 1}\n" for t in range(2)),
        "DET/train_1.txt": "ILSVRC2013_train/n02084071/n02084071_3 1\n"
        "ILSVRC2014_train_0000/ILSVRC2014_train_00000001 -1\n",
        "DET/ours.txt": "train/ILSVRC2014_train_0000/ILSVRC2014_train_00000001 1\n",
    }
    for name, text in lists.items():
        path = tmp_path / "ImageSets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_classes_are_thirty():
    assert len(SYNSETS) == len(set(SYNSETS)) == len(CLASS_NAMES) == 30
    assert CLASS_NAMES[SYNSETS.index("n02691156")] == "airplane"
    assert CLASS_NAMES[SYNSETS.index("n02391049")] == "zebra"


def test_snippets_of_the_training_set_come_once_each(folder):
    videos = ImageNetVID(folder, split="train")
    assert [s.name for s in videos.snippets] == [SNIPPET, OTHER]
    assert len(videos) == 2
    assert videos.snippets[0].frames == tuple(f"{SNIPPET}/{t:06d}" for t in range(3))
    found = videos.frame(0, 2)
    assert found.name == f"{SNIPPET}/000002"
    assert found.frame.shape == (8, 12, 3)
    assert abs(found.frame[0, 0].astype(int) - [200, 10, 10]).max() < 10  # JPEG's losses
    # Pixels 2 to 5 and 1 to 7 are the edges 2 to 6 and 1 to 8.
    assert found.annotation.boxes.tolist() == [[2, 1, 6, 8], [0, 0, 2, 2]]
    assert [CLASS_NAMES[c] for c in found.annotation.classes] == ["dog", "domestic cat"]
    assert found.annotation.tracks.tolist() == [4, 0]
    assert found.annotation.occluded.all()
    assert not found.annotation.generated.any()


def test_validation_has_the_frames_of_its_list(folder):
    videos = ImageNetVID(folder)
    assert [(s.name, len(s.frames)) for s in videos.snippets] == [(VAL, 2)]
    assert videos.frame(0, -1).annotation.boxes[0].tolist() == [1, 1, 6, 8]


def test_images_of_det(folder):
    images = ImageNetDET(folder)
    assert images.names == ("ILSVRC2013_train/n02084071/n02084071_3",)
    found = images[0].annotation
    assert found.boxes.tolist() == [[0, 0, 12, 8]]  # the other one is a banana
    assert found.tracks.tolist() == [-1]
    ours = ImageNetDET(folder, lists=["ours.txt"])
    assert len(ours) == 1
    assert ours[0].annotation.boxes.shape == (0, 4)
    assert ours[0].annotation.size == (8, 12)


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match="Annotations/VID/test"):
        ImageNetVID(folder, split="test")
    (folder / "ImageSets/VID/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        ImageNetVID(folder)
    (folder / "ImageSets/VID/train_2.txt").write_text("ILSVRC2015_VID_train_0000/none 1\n")
    with pytest.raises(ValueError, match="none must have frames"):
        ImageNetVID(folder, split="train")
    videos = ImageNetDET(folder, lists=["ours.txt"])
    (folder / "Data/DET/train" / f"{videos.names[0]}.JPEG").write_bytes(b"JPEG?")
    with pytest.raises(ValueError, match=r"ILSVRC2014_train_00000001\.JPEG: not a picture"):
        videos[0]


@pytest.mark.parametrize("line", ["alone", "../../etc/passwd 1", "/etc/passwd 1", "a//b 1"])
def test_lines_that_name_no_frame(folder, line):
    path = folder / "ImageSets/VID/val.txt"
    path.write_text(f"{VAL}/000000 1\n{line}\n")
    with pytest.raises(ValueError, match=r"val\.txt, line 2: must be a name and a number"):
        ImageNetVID(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<width>12", "<width>x", r"size/width must be a number; got 'x'"),
        ("<width>12", "<width>13", r"size must be that of the picture, \(8, 12\); got \(8, 13\)"),
        ("<width>12", "<width>0", "size must be of at least one pixel"),
        ("<xmax>5</xmax>", "", "object 0: bndbox/xmax must be a number; got None"),
        ("<xmax>5", "<xmax>nan", "object 0: bndbox/xmax must be a number"),
        ("<xmin>0</xmin><ymax>7", "<xmin>9</xmin><ymax>7", "object 0: bndbox must have xmin"),
        ("<xmin>0</xmin><ymax>7</ymax><ymin>1", "<xmin>0</xmin><ymax>30</ymax><ymin>20",
         "object 0: bndbox must lie in the 12 x 8 picture"),
        ("<name>n02084071", "<name>", "object 0: name must be there"),
        ("<trackid>4", "<trackid>4.5", "object 0: trackid must be a whole number; got 4.5"),
        ("</annotation>", "", "annotation must be XML"),
        ("annotation>", "notes>", "the outermost element must be annotation; got notes"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>', "document type"),
    ],
)  # fmt: skip
def test_damaged_annotations(folder, old, new, message):
    path = folder / "Annotations/VID/val" / VAL / "000000.xml"
    text = path.read_text().replace(old, new)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(ValueError, match=f"000000.xml: .*{message}"):
        ImageNetVID(folder).frame(0, 0)


def test_annotations_that_are_no_text(folder):
    path = folder / "Annotations/VID/val" / VAL / "000000.xml"
    path.write_bytes("<annotation/>".encode("utf-16"))
    with pytest.raises(ValueError, match=r"000000\.xml: must be UTF-8"):
        ImageNetVID(folder).frame(0, 0)
    path.write_bytes(b" " * (1 << 21))
    with pytest.raises(ValueError, match="at most 1048576 bytes; got 2097152"):
        ImageNetVID(folder).frame(0, 0)


def test_boxes_are_cut_to_the_picture():
    found = parse_annotation(annotation((0, SYNSETS[0], (-3, 2, 40, 7))))
    np.testing.assert_array_equal(found.boxes, [[0, 2, 12, 8]])
