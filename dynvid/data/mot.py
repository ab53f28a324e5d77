"""The ground truth of the MOT Challenge: boxes of persons, frame by frame."""

import numpy as np


def parse_mot(text: str) -> dict[int, np.ndarray]:
    """The boxes of a MOT Challenge ground truth, by frame.

    Args:
      text: Lines `frame, id, left, top, width, height, confidence, ...`, frames counted from 1;
        a confidence of 0 marks what is not to be evaluated and is left out.

    Returns:
      `{frame: (n, 4)}` float64, `(x0, y0, x1, y1)` in pixels.

    Raises:
      ValueError: Where a line does not have at least six finite numbers; it is named.

    >>> parse_mot("1,1,10,20,5,6,1,-1,-1,-1")
    {1: array([[10., 20., 15., 26.]])}
    """
    boxes: dict[int, list[list[float]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            frame, _, left, top, width, height, *rest = map(float, line.split(","))
            if not np.isfinite([frame, left, top, width, height]).all():
                raise ValueError("not a finite number")
        except ValueError as error:
            raise ValueError(
                f"line {number}: must be frame, id, left, top, width, height, ...; got {line!r}"
            ) from error
        if not rest or rest[0] != 0:
            boxes.setdefault(int(frame), []).append([left, top, left + width, top + height])
    return {frame: np.array(found) for frame, found in boxes.items()}
