"""A video as one clip: a few frames spread over all of it, in any order."""

from collections.abc import Iterable, Sequence

import numpy as np

from dynvid.video.reader import VideoError

_KEPT = 8  # frames kept for each one that is wanted, at most


def clip_frames(
    frames: Iterable[np.ndarray], order: Sequence[int], *, name: str
) -> list[np.ndarray]:
    """Frames evenly spread over a video, in a given order.

    The middle of each of T parts of equal length (Temporal Segment Networks, Wang et al. 2016, at
    test time). How long the video is need not be known: of long ones every second, fourth, ...
    frame is kept on the way, at most 8 T at a time.

    Args:
      frames: All of the video, `(H, W, 3)` each.
      order: Each of 0 .. T - 1 once: which frame comes first, second, ...
      name: What errors call the video.

    Returns:
      T frames.

    Raises:
      VideoError: The video has fewer than T frames.

    Exact up to 8 T frames; of longer videos each frame is off by at most a quarter of its part.

    >>> [int(x) for x in clip_frames(np.arange(8), (0, 2, 1, 3), name="clip")]
    [1, 5, 3, 7]
    """
    wanted = len(order)
    kept: list[np.ndarray] = []
    step, count = 1, 0
    for frame in frames:
        if count % step == 0:
            kept.append(frame)
            if len(kept) == _KEPT * wanted:
                kept, step = kept[::2], 2 * step
        count += 1
    if count < wanted:
        raise VideoError(f"{name}: a clip must have at least {wanted} frames; got {count}")
    places = [(2 * i + 1) * count // (2 * wanted) // step for i in order]
    return [kept[min(place, len(kept) - 1)] for place in places]
