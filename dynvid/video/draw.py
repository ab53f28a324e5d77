"""Drawing on frames: boxes, label maps, rankings, change masks and a running chart of the work."""

import colorsys
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dynvid.ops.regions import RegionPaths

Color = tuple[int, int, int]

_PALETTE: tuple[Color, ...] = (  # Okabe and Ito's, told apart by colour-blind eyes too
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_PANEL: Color = (24, 26, 30)
_GRID: Color = (62, 66, 74)
_TEXT: Color = (238, 240, 243)
_DIM_TEXT: Color = (168, 174, 184)
_WORK: Color = (86, 180, 233)
_MOTION: Color = (230, 159, 0)
_ARROW_DISTANCE = 32  # pixels between the lines of a motion field


def annotate_frame(
    frame: np.ndarray,
    *,
    boxes: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    classes: Sequence[int] | np.ndarray | None = None,
    changed: np.ndarray | None = None,
    motion: np.ndarray | None = None,
    key: bool = False,
    work: Sequence[float] | None = None,
) -> np.ndarray:
    """Draws all there is to show of a frame: boxes, motion, the change mask and the work so far.

    Frames less than 480 pixels high are enlarged by a whole factor first, or labels could not be
    read.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      boxes: `(N, 4)` as (x0, y0, x1, y1) in pixels of the frame.
      labels: A text for each box.
      classes: A class index for each box, which chooses its colour.
      changed: `(h, w)` bool, what changed; shown small in the upper right corner.
      motion: `(h, w, 2)`, the motion field, see `draw_motion`.
      key: Whether it is a key frame, which gets a frame around it.
      work: The work of each frame up to this one, as a fraction of dense; a chart below the frame.

    Returns:
      `(H', W', 3)` uint8, both even.

    >>> annotate_frame(np.zeros((256, 256, 3), np.uint8), work=[1.0, 0.2]).shape
    (568, 512, 3)
    """
    scale = _scale(frame)
    frame = _enlarge(frame)
    if motion is not None:
        frame = draw_motion(frame, motion)
    if boxes is not None:
        frame = draw_boxes(frame, np.asarray(boxes) * scale, labels=labels, classes=classes)
    if changed is not None:
        frame = draw_mask_inset(frame, changed, caption=f"changed {_percent(changed.mean())}")
    if key:
        frame = draw_key_frame(frame)
    if work is not None:
        frame = draw_work_bar(frame, work)
    return frame


def _scale(frame: np.ndarray) -> int:
    """By how much a frame is enlarged before anything is written on it."""
    return -(-480 // frame.shape[0]) if frame.shape[0] < 480 else 1


def _enlarge(picture: np.ndarray, *, scale: int | None = None) -> np.ndarray:
    """Repeats pixels for a picture that text can be read on; height and width become even."""
    scale = _scale(picture) if scale is None else scale
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    odd = [(0, side % 2) for side in picture.shape[:2]]
    return np.pad(picture, [*odd, *[(0, 0)] * (picture.ndim - 2)], "edge")


def draw_boxes(
    frame: np.ndarray,
    boxes: np.ndarray,
    *,
    labels: Sequence[str] | None = None,
    classes: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
    """Draws boxes and their labels; a label goes above its box, or inside where there is no room.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      boxes: `(N, 4)` as (x0, y0, x1, y1) in pixels; those out of sight or not finite are left out.
      labels: A text for each box.
      classes: A class index for each box, which chooses its colour.

    Returns:
      A new `(H, W, 3)` uint8 frame.

    Raises:
      ValueError: The arguments differ in length.

    >>> frame = np.zeros((60, 80, 3), np.uint8)
    >>> drawn = draw_boxes(frame, np.array([[10, 20, 50, 50]]), labels=["disc 0.97"])
    >>> int(frame.max()), drawn[40, 10].tolist()
    (0, [230, 159, 0])
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    for name, values in (("labels", labels), ("classes", classes)):
        if values is not None and len(values) != len(boxes):
            raise ValueError(f"{name} must have one entry a box; got {len(values)} of {len(boxes)}")
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    height, width = frame.shape[:2]
    line = max(2, round(height / 280))
    drawn = np.isfinite(boxes).all(axis=1)
    drawn &= (boxes < [width, height, np.inf, np.inf]).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    edges = np.clip(np.round(np.where(drawn[:, None], boxes, 0)), -line, max(height, width) + line)
    indices = [0] * len(boxes) if classes is None else [int(c) for c in classes]
    colors = [_PALETTE[index % len(_PALETTE)] for index in indices]
    for (x0, y0, x1, y1), color, finite in zip(edges.tolist(), colors, drawn, strict=True):
        if finite:
            box = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
            draw.rectangle(box, outline=color, width=line)
    taken: list[tuple[float, ...]] = []  # labels come last: on top of every box, not of each other
    for text, box, color, finite in zip(labels or (), edges.tolist(), colors, drawn, strict=False):
        if finite and text:
            _draw_label(draw, text, box, color, taken, frame.shape)
    return np.asarray(image)


def draw_instances(
    frame: np.ndarray,
    masks: np.ndarray,
    *,
    classes: Sequence[int] | np.ndarray,
    window: tuple[float, float, float, float],
    opacity: float = 0.45,
) -> np.ndarray:
    """Tints each object in the colour of its class, as `draw_boxes` has it.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      masks: `(N, h, w)` bool, where each object is, on a grid of its own.
      classes: A class index for each.
      window: Where in that grid the frame lies, (top, left, height, width).
      opacity: Of the tint.

    Returns:
      A new `(H, W, 3)` uint8 frame.

    >>> mask = np.array([[[True, False]]])
    >>> draw_instances(
    ...     np.zeros((1, 4, 3), np.uint8), mask, classes=[0], window=(0, 0, 1, 2), opacity=1.0
    ... )[0, :, 0].tolist()
    [230, 230, 0, 0]
    """
    height, width = frame.shape[:2]
    top, left, tall, wide = window
    rows = np.clip((top + (np.arange(height) + 0.5) * tall / height), 0, masks.shape[1] - 1)
    columns = np.clip((left + (np.arange(width) + 0.5) * wide / width), 0, masks.shape[2] - 1)
    rows, columns = rows.astype(int), columns.astype(int)
    drawn = frame.astype(np.float32)
    for mask, index in zip(masks, classes, strict=True):
        inside = mask[rows][:, columns]
        color = np.array(_PALETTE[int(index) % len(_PALETTE)], np.float32)
        drawn[inside] += opacity * (color - drawn[inside])
    return np.round(drawn).astype(np.uint8)


def _draw_label(draw, text, box, color, taken, shape) -> None:
    """Writes a label above, below or inside its box: the first place that is free and in sight."""
    height, width = shape[:2]
    font = _font(max(11, round(height / 38)))
    ascent, descent = font.getmetrics()
    pad = max(3, round(height / 240))
    label_width, label_height = font.getlength(text) + 2 * pad, ascent + descent
    x = min(max(0, box[0]), max(0, width - label_width))
    for y in (box[1] - label_height, box[3], box[1], box[3] - label_height):
        place = (x, y, x + label_width - 1, y + label_height - 1)
        if 0 <= y <= height - label_height and not any(_overlap(place, other) for other in taken):
            break
    else:
        y = min(max(0, box[1] - label_height), height - label_height)
        place = (x, y, x + label_width - 1, y + label_height - 1)
    taken.append(place)
    draw.rectangle(place, fill=color)
    ink = (0, 0, 0) if np.dot(color, (0.3, 0.59, 0.11)) > 105 else (255, 255, 255)
    draw.text((x + pad, y), text, fill=ink, font=font)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def overlay_mask(
    frame: np.ndarray, mask: np.ndarray, *, color: Color = (213, 94, 0), alpha: float = 0.5
) -> np.ndarray:
    """Tints the frame where a mask is set.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      mask: `(h, w)` bool; of another size than the frame, it is enlarged or reduced (nearest).
      color: The tint.
      alpha: How much of the tint, in [0, 1].

    Returns:
      A new `(H, W, 3)` uint8 frame.

    >>> frame = np.zeros((2, 2, 3), np.uint8)
    >>> overlay_mask(frame, np.eye(2, dtype=bool), color=(200, 0, 0))[..., 0].tolist()
    [[100, 0], [0, 100]]
    """
    rows, columns = (
        np.arange(size) * there // size
        for size, there in zip(frame.shape[:2], mask.shape, strict=True)
    )
    weight = alpha * np.asarray(mask, bool)[rows][:, columns, None]
    return np.round(frame + weight * (np.array(color) - frame.astype(float))).astype(np.uint8)


def draw_labels(
    frame: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str],
    alpha: float = 0.5,
    paths: RegionPaths | None = None,
    percent: bool = False,
) -> np.ndarray:
    """Tints each pixel in the colour of its class, with a legend of the classes that are there.

    Frames less than 480 pixels high are enlarged by a whole factor first, as by `annotate_frame`.
    A class called "background" keeps the frame's own colours. Regions get a border in the colour of
    the path they went, and their score in a corner that the legend leaves free; a region without
    room for it goes without.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      labels: `(H, W)` integer, the class of each pixel.
      names: The name of each class.
      alpha: How much of the tint, in [0, 1].
      paths: Which way each region went, NumPy arrays of one stream; boxes in pixels of the frame.
      percent: Whether their scores are percentages. A score that is not finite is not written.

    Returns:
      `(H', W', 3)` uint8, both even.

    Raises:
      ValueError: The labels are of another size than the frame.

    >>> labels = np.eye(480, dtype=np.uint8)
    >>> draw_labels(np.zeros((480, 480, 3), np.uint8), labels, names=["road", "car"]).shape
    (480, 480, 3)
    """
    if labels.shape != frame.shape[:2]:
        raise ValueError(f"labels must be {frame.shape[:2]} as the frame; got {labels.shape}")
    counts = np.bincount(labels.reshape(-1), minlength=len(names))
    colors = np.array([_class_color(index) for index in range(len(counts))], float)
    weights = np.full(len(counts), alpha)
    plain = [index for index, name in enumerate(names) if name.lower() == "background"]
    colors[plain], weights[plain] = _GRID, 0
    scale = _scale(frame)
    labels = _enlarge(labels, scale=scale)
    picture = _enlarge(frame).astype(float)
    picture += weights[labels][..., None] * (colors[labels] - picture)
    # Where one class ends and another begins, a line: tints alone are hard to tell on dark ground.
    edge = np.zeros(labels.shape, bool)
    edge[:, scale:] |= labels[:, scale:] != labels[:, :-scale]
    edge[scale:] |= labels[scale:] != labels[:-scale]
    picture[edge] = 0.45 * picture[edge]
    picture = np.round(picture).astype(np.uint8)
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    rows = [
        _Row(names[index], _percent(counts[index] / counts.sum()), tuple(colors[index].astype(int)))
        for index in order
    ]
    if paths is None:
        return _draw_rows(picture, _shortened(rows))[0]
    anew = np.asarray(paths.segmented, bool)
    path_rows = [
        _Row(name, f"{count} of {anew.size}", color, outlined=True)
        for name, count, color in (
            ("segmented", anew.sum(), _SEGMENTED), ("warped", (~anew).sum(), _WARPED),
        )
    ]  # fmt: skip
    boxes = np.round(np.asarray(paths.boxes, float) * scale).astype(int)
    picture, legend = _draw_rows(
        _draw_borders(picture, boxes, anew), [*path_rows, *_shortened(rows)]
    )
    return _draw_scores(picture, boxes, anew, np.asarray(paths.scores), percent, legend)


_SEGMENTED: Color = (255, 106, 0)
_WARPED: Color = (255, 255, 255)


def _line(height: int) -> int:
    """How thick the border of a region is in pictures of a height."""
    return max(2, round(height / 160))


def _draw_borders(picture: np.ndarray, boxes: np.ndarray, anew: np.ndarray) -> np.ndarray:
    """Regions' borders inside them, so that those of neighbours do not hide each other."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line = _line(len(picture))
    for (x0, y0, x1, y1), segmented in zip(boxes.tolist(), anew, strict=True):
        if min(x1 - x0, y1 - y0) > 2 * line:
            # A dark line around: light ones are lost on a light sky.
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=_PANEL, width=line + 2)
            inner = (x0 + 1, y0 + 1, x1 - 2, y1 - 2)
            draw.rectangle(inner, outline=_SEGMENTED if segmented else _WARPED, width=line)
    return np.asarray(image)


def _draw_scores(
    picture: np.ndarray,
    boxes: np.ndarray,
    anew: np.ndarray,
    scores: np.ndarray,
    percent: bool,
    legend: tuple[int, int, int, int],
) -> np.ndarray:
    """Each score in the first corner of its region that is free."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    height = len(picture)
    font = _font(max(11, round(height / 30)))
    pad, inset = max(3, round(height / 160)), _line(height) + 1
    ascent, descent = font.getmetrics()
    for box, segmented, score in zip(boxes.tolist(), anew, scores.tolist(), strict=True):
        if not math.isfinite(score):
            continue
        text = f"{round(score)}%" if percent else f"{score:.3g}"
        x0, y0, x1, y1 = box
        wide, tall = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent
        left, right, top, bottom = x0 + inset, x1 - inset - wide, y0 + inset, y1 - inset - tall
        for x, y in ((right, bottom), (left, bottom), (right, top), (left, top)):
            place = (x, y, x + wide - 1, y + tall - 1)
            if left <= x and top <= y and not _overlap(place, legend):
                color = _SEGMENTED if segmented else _WARPED
                draw.rectangle(place, fill=color)
                draw.text((x + pad, y), text, fill=_PANEL, font=font)
                break
    return np.asarray(image)


def draw_ranking(
    frame: np.ndarray, names: Sequence[str], probabilities: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Writes classes with their probabilities, as bars, in the upper left corner.

    Frames less than 480 pixels high are enlarged by a whole factor first, as by `annotate_frame`.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      names: Of the classes, best first.
      probabilities: Of each, in [0, 1].

    Returns:
      `(H', W', 3)` uint8, both even.

    >>> draw_ranking(np.zeros((480, 640, 3), np.uint8), ["walking", "running"], [0.9, 0.1]).shape
    (480, 640, 3)
    """
    rows = [
        _Row(name, _percent(p), _WORK if i == 0 else _DIM_TEXT)
        for i, (name, p) in enumerate(zip(names, probabilities, strict=True))
    ]
    bars = [float(p) for p in probabilities]
    return _draw_rows(_enlarge(frame), _shortened(rows), bars=bars)[0]


def draw_exits(
    frame: np.ndarray,
    names: Sequence[str],
    probabilities: Sequence[float] | np.ndarray,
    *,
    confidences: np.ndarray,
    macs: np.ndarray,
    stopped: int,
) -> np.ndarray:
    """Writes the running class, how sure each checkpoint was, where it stopped and what that saved.

    Frames less than 480 pixels high are enlarged by a whole factor first, as by `annotate_frame`.
    Of many checkpoints the last few that were reached are shown.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      names: Of the likeliest classes, best first.
      probabilities: Of each, in [0, 1].
      confidences: Of each checkpoint, in [0, 1]; NaN where it was not reached.
      macs: Multiply-accumulates up to each.
      stopped: The checkpoint that stopped, -1 where none has.

    Returns:
      `(H', W', 3)` uint8, both even.

    >>> draw_exits(
    ...     np.zeros((480, 640, 3), np.uint8), ["running"], [0.9],
    ...     confidences=np.array([0.9, np.nan]), macs=np.array([1.0, 4.0]), stopped=0,
    ... ).shape
    (480, 640, 3)
    """
    full = float(macs[-1])
    reached = np.flatnonzero(np.isfinite(confidences))
    rows, bars = [], []
    if len(reached):
        for i, (name, p) in enumerate(zip(names[:3], probabilities, strict=False)):
            rows.append(_Row(name, _percent(p), _WORK if i == 0 else _DIM_TEXT))
            bars.append(float(p))
    else:
        rows.append(_Row("no answer yet", "", _DIM_TEXT))
        bars.append(0.0)
    # What lies ahead is shown where there is room for all.
    last = len(confidences) if len(confidences) <= _MOST_CHECKPOINTS else len(reached)
    for k in range(max(0, last - _MOST_CHECKPOINTS), last):
        name = f"after {_percent(macs[k] / max(full, 1))} of the work"
        known = bool(np.isfinite(confidences[k]))
        figure = "" if not known else f"{100 * confidences[k]:.0f}% sure"
        rows.append(_Row(name, figure, _SEGMENTED if k == stopped else _DIM_TEXT))
        bars.append(float(confidences[k]) if known else 0.0)
    if stopped >= 0:
        part = 1 - float(macs[stopped]) / max(full, 1)
        rows.append(_Row("stopped: saved", _percent(part), _SEGMENTED))
        bars.append(part)
    return _draw_rows(_enlarge(frame), rows, bars=bars)[0]


_MOST_CHECKPOINTS = 6  # of a picture; more would hide it
_MOST_ROWS = 10  # of a legend; more would hide the picture


class _Row(NamedTuple):
    """A line of a legend."""

    name: str
    figure: str
    color: Color
    outlined: bool = False


def _shortened(rows: Sequence[_Row]) -> list[_Row]:
    """As many rows as a legend has, the last of which says how many more there are."""
    if len(rows) <= _MOST_ROWS:
        return list(rows)
    return [*rows[:_MOST_ROWS], _Row(f"and {len(rows) - _MOST_ROWS} more", "", _PANEL)]


def _draw_rows(
    picture: np.ndarray, rows: Sequence[_Row], *, bars: Sequence[float] | None = None
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Writes rows of a name and a figure in the upper left corner, each with a colour or a bar.

    Returns:
      The picture, and (x0, y0, x1, y1) of what is written on.
    """
    height, width = picture.shape[:2]
    font = _font(max(11, round(height / 36)))
    ascent, descent = font.getmetrics()
    line = ascent + descent + max(2, round(height / 240))
    pad = max(4, round(height / 90))
    figures = round(max((font.getlength(row.figure) for row in rows), default=0))
    mark = round(0.16 * width) if bars is not None else ascent
    room = round(0.62 * width) - mark - figures - 5 * pad  # the upper right corner has the mask
    texts = [_shorten(row.name, font, room) for row in rows]
    names = round(max((font.getlength(text) for text in texts), default=0))
    margin = max(4, round(height / 60))
    right = margin + names + mark + figures + 4 * pad
    bottom = margin + line * len(rows) + pad

    panel = picture[margin : bottom + 1, margin : right + 1]
    picture = picture.copy()
    picture[margin : bottom + 1, margin : right + 1] = np.round(
        0.2 * panel + 0.8 * np.array(_PANEL)
    ).astype(np.uint8)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
        y = margin + pad // 2 + i * line
        x = margin + pad
        if bars is None:
            square = (x, y + descent, x + mark, y + descent + ascent - 3)
            if row.outlined:
                draw.rectangle(square, outline=row.color, width=max(2, mark // 5))
            else:
                draw.rectangle(square, fill=row.color)
            draw.text((x + mark + pad, y), text, fill=_TEXT, font=font)
        else:
            draw.text((x, y), text, fill=_TEXT if i == 0 else _DIM_TEXT, font=font)
            x += names + pad
            top, end = y + descent, y + ascent
            draw.rectangle((x, top, x + mark, end), fill=_GRID)
            length = round(mark * min(max(bars[i], 0.0), 1.0)) if i < len(bars) else 0
            if length:
                draw.rectangle((x, top, x + length, end), fill=row.color)
        draw.text((right - pad, y), row.figure, fill=_TEXT, font=font, anchor="ra")
    return np.asarray(image), (margin, margin, right, bottom)


def _shorten(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """As much of a text as there is room for."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "...") > room:
        text = text[:-1]
    return text + "..."


def _class_color(index: int) -> Color:
    """A colour for each class: the palette, then hues a golden section apart, none repeated."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    hue = (index * 0.618034) % 1.0
    value = (0.95, 0.7, 0.85)[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.75, 0.9, 0.5)[index % 3], value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_mask_inset(frame: np.ndarray, mask: np.ndarray, *, caption: str = "") -> np.ndarray:
    """Shows a mask small, in the upper right corner, white on black with a caption below.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      mask: `(h, w)` bool, of any size.
      caption: A short text.

    Returns:
      A new `(H, W, 3)` uint8 frame.

    >>> frame = draw_mask_inset(np.zeros((200, 300, 3), np.uint8), np.ones((20, 30), bool))
    >>> frame[20, 280].tolist(), frame[150, 20].tolist()
    ([255, 255, 255], [0, 0, 0])
    """
    height, width = frame.shape[:2]
    font = _font(max(11, round(height / 40)))
    inner_width = max(8, round(0.27 * width))
    inner_height = max(8, round(inner_width * mask.shape[0] / mask.shape[1]))
    # Averaged, so that no change is lost on the way down, and brightened, so that it is seen.
    level = Image.fromarray(np.asarray(mask, bool).astype(np.uint8) * 255).resize(
        (inner_width, inner_height), Image.Resampling.BOX
    )
    level = Image.fromarray(np.round(255 * (np.asarray(level) / 255) ** 0.5).astype(np.uint8))
    ascent, descent = font.getmetrics()
    caption_height = ascent + descent + 4 if caption else 0
    margin = max(4, round(height / 60))
    left = width - margin - inner_width - 1
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    bottom = margin + inner_height + caption_height
    draw.rectangle((left - 1, margin - 1, left + inner_width, bottom), fill=_PANEL, outline=_TEXT)
    image.paste(level.convert("RGB"), (left, margin))
    draw.text((left + 4, margin + inner_height + 2), caption, fill=_TEXT, font=font)
    return np.asarray(image)


def draw_motion(frame: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Draws a motion field as lines from where things were in the key frame to where they are.

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      motion: `(h, w, 2)`, (dx, dy) in pixels of its own grid, from this frame to the key frame; of
        any grid over the whole frame. Lines shorter than two pixels of the frame are left out.

    Returns:
      A new `(H, W, 3)` uint8 frame.

    >>> frame, motion = np.zeros((64, 64, 3), np.uint8), np.zeros((4, 4, 2))
    >>> int(draw_motion(frame, motion).max()), int(draw_motion(frame, motion - 1).max())
    (0, 230)
    """
    height, width = frame.shape[:2]
    rows, columns = motion.shape[:2]
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    unit = np.array([width / columns, height / rows])
    apart = max(1, round(_ARROW_DISTANCE * rows / height))
    for row in range(apart // 2, rows, apart):
        for column in range(apart // 2, columns, apart):
            here = (np.array([column, row]) + 0.5) * unit
            there = here + motion[row, column] * unit
            if np.isfinite(there).all() and np.abs(there - here).max() >= 2:
                there = np.clip(there, [-width, -height], [2 * width, 2 * height])
                draw.line((*there, *here), fill=_MOTION, width=1)
                draw.ellipse((*(here - 2), *(here + 2)), fill=_MOTION)
    return np.asarray(image)


def draw_key_frame(frame: np.ndarray) -> np.ndarray:
    """Marks a key frame: a frame around it and the words in its lower left corner.

    Args:
      frame: `(H, W, 3)` uint8, RGB.

    Returns:
      A new `(H, W, 3)` uint8 frame.

    >>> draw_key_frame(np.zeros((200, 300, 3), np.uint8))[0, 150].tolist()
    [230, 159, 0]
    """
    height, width = frame.shape[:2]
    line = max(2, round(height / 120))
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width - 1, height - 1), outline=_MOTION, width=line)
    font = _font(max(11, round(height / 40)))
    at = (2 * line, height - 2 * line)
    draw.rectangle(draw.textbbox(at, "key frame", font=font, anchor="ld"), fill=_PANEL)
    draw.text(at, "key frame", fill=_TEXT, font=font, anchor="ld")
    return np.asarray(image)


def draw_work_bar(frame: np.ndarray, work: Sequence[float]) -> np.ndarray:
    """Adds a strip below the frame: the work of this frame and a running chart of those before.

    The chart's scale is linear, from nothing to the dense network's work (the line on top).

    Args:
      frame: `(H, W, 3)` uint8, RGB.
      work: The work of each frame up to this one, as a fraction of dense.

    Returns:
      A new `(H + strip, W, 3)` uint8 frame; the strip is of an even height.

    >>> draw_work_bar(np.zeros((480, 640, 3), np.uint8), [1.0, 0.3, 0.2]).shape
    (534, 640, 3)
    """
    if len(work) == 0:
        raise ValueError("work must have at least one entry, the frame's own; got none")
    height, width = frame.shape[:2]
    strip = max(40, 2 * round(height / 18))
    image = Image.new("RGB", (width, strip), _PANEL)
    draw = ImageDraw.Draw(image)
    number, caption = _font(round(strip * 0.40)), _font(max(10, round(strip * 0.24)))
    pad = max(4, strip // 9)
    panel = round(max(number.getlength("100%"), caption.getlength("of dense work"))) + 3 * pad
    draw.text((pad, pad), _percent(work[-1]), fill=_WORK, font=number)
    draw.text((pad, strip - pad), "of dense work", fill=_DIM_TEXT, font=caption, anchor="ls")

    top, bottom = pad, strip - pad
    for part in (0.0, 0.5, 1.0):
        y = round(bottom - part * (bottom - top))
        draw.line((panel, y, width - pad, y), fill=_GRID)
    pitch = max(3, round(width / 200))
    bars = max(1, (width - pad - panel) // pitch)
    for i, value in enumerate(work[-bars:]):
        x = panel + i * pitch
        y = round(bottom - min(max(float(value), 0.0), 1.0) * (bottom - top))
        if y < bottom:
            draw.rectangle((x, y, x + pitch - 2, bottom - 1), fill=_WORK)
    return np.concatenate([frame, np.asarray(image)])


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _percent(fraction: float) -> str:
    percent = 100 * float(fraction)
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"
