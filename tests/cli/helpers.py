"""What tests of commands share."""

import numpy as np

from dynvid.cli import main

SIDE = 96
FILES = ["annotated.mp4", "report.json", "report.png"]
DETECTED = ["annotated.mp4", "detections.jsonl", "report.json", "report.png"]


def moving_square(count: int, *, side: int = SIDE) -> list[np.ndarray]:
    """Still grey frames over which a striped square moves two pixels a frame."""
    frames = []
    for t in range(count):
        frame = np.full((side, side, 3), 120, np.uint8)
        frame[30:54, 20 + 2 * t : 44 + 2 * t] = (200, 80, 60)
        frame[30:54:6, 20 + 2 * t : 44 + 2 * t] = (170, 60, 50)
        frames.append(frame)
    return frames


def refused(capsys, arguments, *words):
    """Asserts that a command says in one line why it cannot run."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("dynvid: error: ")
    for word in words:
        assert word in printed.err
    assert "Traceback" not in printed.err + printed.out
