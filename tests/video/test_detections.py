"""Detections as the files that other tools read."""

import csv
import json

import numpy as np

from dynvid.ops.boxes import Detections
from dynvid.video.detections import FORMATS, DetectionWriter

FRAMES = [
    Detections(
        np.array([[1, 2, 5, 8.126], [0, 0, 3, 4]], np.float32),
        np.array([0.91, 0.5], np.float32),
        np.array([1, 7]),
        np.ones(2, bool),
    ),
    Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, bool)),
    Detections(np.array([[4.0, 4, 6, 6]]), np.array([0.25]), np.array([0]), np.ones(1, bool)),
]


def test_every_format(tmp_path):
    with DetectionWriter(tmp_path, class_names=("car", "bus"), fps=10, formats=FORMATS) as writer:
        for number, found in enumerate(FRAMES):
            writer.write(2 * number, found)
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time"]) for line in lines] == [(0, 0.0), (2, 0.2), (4, 0.4)]
    assert lines[0]["boxes"] == [[1, 2, 5, 8.13], [0, 0, 3, 4]]
    assert [line["classes"] for line in lines] == [["bus", "class 7"], [], ["car"]]
    mot = (tmp_path / "mot.txt").read_text().splitlines()
    assert mot == [
        "1,-1,1,2,4,6.13,0.91,-1,-1,-1", "1,-1,0,0,3,4,0.5,-1,-1,-1", "5,-1,4,4,2,2,0.25,-1,-1,-1",
    ]  # fmt: skip
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco[0] == {"image_id": 0, "category_id": 1, "bbox": [1, 2, 4, 6.13], "score": 0.91}
    assert [entry["image_id"] for entry in coco] == [0, 0, 4]
    rows = list(csv.DictReader((tmp_path / "detections.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == ["bus", "class 7", "car"]
    assert rows[2]["x1"] == "6"


def test_nothing_found_is_valid_too(tmp_path):
    with DetectionWriter(tmp_path, class_names=(), fps=None, formats=FORMATS) as writer:
        writer.write(0, FRAMES[1])
    assert json.loads((tmp_path / "coco.json").read_text()) == []
    assert json.loads((tmp_path / "detections.jsonl").read_text())["time"] is None
    assert (tmp_path / "mot.txt").read_text() == ""
