"""The ground truth of the MOT Challenge: boxes of persons, frame by frame."""

import numpy as np


def parse_mot(text: str) -> dict[int, np.ndarray]:
    """The boxes of a MOT Challenge ground truth, by frame.

    Args:
      text: lines `frame, id, left, top, width, height, confidence, ...`, frames counted from 1;
        a confidence of 0 marks what is not to be evaluated and is left out.

    Returns:
      `{frame: (n, 4)}` float64, `(x0, y0, x1, y1)` in pixels.

    Raises:
      ValueError: a line does not have at least six numbers; it is named.

    >>> parse_mot("1,1,10,20,5,6,1,-1,-1,-1")
    {1: array([[10., 20., 15., 26.]])}
    """
    boxes: dict[int, list[list[float]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(v) for v in line.split(",")]
            frame, _, left, top, width, height, *rest = values
        except ValueError as error:
            raise ValueError(
                f"line {number}: {line!r}, expected frame, id, left, top, width, height, ..."
            ) from error
        if not rest or rest[0] != 0:
            boxes.setdefault(int(frame), []).append([left, top, left + width, top + height])
    return {frame: np.array(found) for frame, found in boxes.items()}
