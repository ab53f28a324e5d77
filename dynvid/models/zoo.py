"""What `--model` takes: files of weights and the shipped detector, and what they are run for."""

import ast
import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynvid.errors import UsageError, one_line
from dynvid.graph import estimate
from dynvid.models import actions, driving, flow_detection, ssd, synthetic_detector
from dynvid.models.flow_detection import FlowDetectionNetworks, load_flow_detection_networks
from dynvid.models.ssd import VOC_CLASSES, decode_ssd
from dynvid.models.synthetic_detector import (
    CLASS_NAMES,
    SyntheticOutputs,
    decode_synthetic,
    load_synthetic_detector,
)
from dynvid.models.yolo_heads import (
    COCO_CLASSES,
    decode_ultralytics,
    decode_yolov3,
    decode_yolov5,
    decode_yolox,
)
from dynvid.ops.boxes import Detections
from dynvid.ops.letterbox import Letterbox
from dynvid.ops.progressive import ClipNetwork, checkpoint_logits, make_route
from dynvid.tasks import (
    ActionRecognition,
    Classification,
    Detection,
    InstanceSegmentation,
    Measuring,
    Segmentation,
    Task,
)
from dynvid.tasks.preprocessing import Preprocessing
from dynvid.types import Frames, Limits, Output, Params
from dynvid.weights.caffe import load_ssd512
from dynvid.weights.darknet import load_darknet
from dynvid.weights.espnet import load_espnet
from dynvid.weights.onnx import load_onnx
from dynvid.weights.yolov5 import load_yolov5

TASKS = (
    Detection.name,
    InstanceSegmentation.name,
    Segmentation.name,
    Classification.name,
    ActionRecognition.name,
    Measuring.name,
)
"""The tasks by name."""


class Head(NamedTuple):
    """What there is to know about a family of detectors.

    Attributes:
      class_names: The name of each class index.
      decode: `decode(params, outputs, *, size, score_threshold, iou_threshold) -> Detections`, in
        pixels of the network's input of (height, width) `size`.
      preprocessing: How frames become the network's input.
    """

    class_names: tuple[str, ...]
    decode: Callable[..., Detections]
    preprocessing: Preprocessing


def _yolox(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolox(outputs, **options)


def _ultralytics(params: Params, outputs: Output, **options) -> Any:
    return decode_ultralytics(outputs, **options)


def _yolov5(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov5(outputs, params["anchors"], **options)


def _yolov3(params: Params, outputs: Output, **options) -> Detections:
    return decode_yolov3(outputs, params["anchors"], scale_x_y=params["scale_x_y"], **options)


def _ssd(params: Params, outputs: Output, **options) -> Detections:
    return decode_ssd(*outputs, **options)


def _synthetic(
    params: Params,
    outputs: SyntheticOutputs,
    *,
    size: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
) -> Detections:
    return decode_synthetic(outputs, score_threshold=score_threshold, iou_threshold=iou_threshold)


def _rfcn(
    params: Params,
    outputs: Detections,
    *,
    size: tuple[int, int],
    score_threshold: float,
    iou_threshold: float,
) -> Detections:
    # It has thinned them itself, as the papers do, to an overlap below any that is asked for.
    return outputs._replace(valid=outputs.valid & (outputs.scores >= score_threshold))


HEADS: dict[str, Head] = {
    "yolox": Head(
        COCO_CLASSES,
        _yolox,
        Preprocessing(
            placement="top_left", channel_order="bgr", white=255, longest_side=416, square=True
        ),
    ),
    "ultralytics": Head(COCO_CLASSES, _ultralytics, Preprocessing(placement="centre", white=1)),
    "yolov5": Head(COCO_CLASSES, _yolov5, Preprocessing(placement="centre", white=1)),
    "yolov3": Head(
        COCO_CLASSES,
        _yolov3,
        Preprocessing(
            placement="centre",
            white=1,
            fill=127.5,  # Darknet pads with 0.5 of 1
            longest_side=416,
            square=True,
        ),
    ),
    "ssd": Head(
        VOC_CLASSES,
        _ssd,
        Preprocessing(
            placement="stretch",
            channel_order="bgr",
            white=255,
            mean=ssd.MEAN,
            longest_side=ssd.SIZE,
            square=True,
        ),
    ),
    "synthetic": Head(
        CLASS_NAMES,
        _synthetic,
        Preprocessing(
            placement="top_left",
            white=1,
            longest_side=256,
            multiple=synthetic_detector.STRIDE,
        ),
    ),
    "rfcn": Head(
        flow_detection.CLASS_NAMES,
        _rfcn,
        Preprocessing(
            placement="top_left", white=1, longest_side=256, multiple=flow_detection.STRIDE
        ),
    ),
}
"""The detector families by name."""

PIXELS: dict[str, Preprocessing] = {
    "imagenet": Preprocessing(
        placement="stretch",
        white=1,
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
    ),
    "unit": Preprocessing(placement="stretch", white=1),
    "bytes": Preprocessing(placement="stretch", white=255),
}
"""What networks without a head of their own may take for pixels (RGB), by name.

"imagenet": 0 to 1, less the mean of ImageNet and in its standard deviations; "unit": 0 to 1;
"bytes": 0 to 255.
"""

_OF_FRAMES = {task.name: task for task in (Classification, ActionRecognition)}
_MOST_NAMES = 1 << 20  # characters of metadata

_LONGEST_SIDE = 640  # of what networks of street scenes get, unless frames are smaller

_HEAD_OF_SUFFIX = {".pt": "yolov5", ".caffemodel": "ssd", ".cfg": "yolov3"}


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A network with all that it takes to run it on frames of any size.

    Attributes:
      name: For reports.
      network: `network(params, images)`, what `load_onnx` or `load_yolov5` gives.
      params: Its weights.
      task: What it is run for: how frames go in and results come out.
      head: The name of its head where it is a detector, for reports.
      digest: SHA-256 of its files, None of what comes with the package.
      clips: The network stage by stage, where it has checkpoints; None of others.
      flow_guided: The network in parts, where it comes with those that carry features from frame to
        frame; None of others.
    """

    name: str
    network: Callable[[Params, jax.Array], Output]
    params: Params
    task: Task
    head: str | None = None
    digest: str | None = None
    clips: ClipNetwork | None = None
    flow_guided: FlowDetectionNetworks | None = None

    @property
    def kind(self) -> str:
        """What it is, in two words."""
        return self.task.name if self.head is None else f"{self.head} head"

    def on_frames(self, params: Params, frames: Frames) -> Output:
        """The network's raw outputs for a camera's frames, `(S, H, W, 3)` uint8 RGB."""
        return self.task.preprocess(self.network)(params, frames)

    def network_size(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) of the network's input for frames of a size."""
        return self.task.preprocessing.network_size(frame_size)

    @property
    def multiple(self) -> int:
        """What the sides of the network's input should be multiples of."""
        return self.task.preprocessing.multiple

    def geometry(self, frame_size: tuple[int, int]) -> Letterbox:
        """How frames of (height, width) lie in the network's input."""
        return self.task.geometry(frame_size)

    def resize(self, frames: Frames) -> jax.Array:
        """A camera's frames laid into the network's input: RGB of 0..255, `(S, h, w, 3)`."""
        return self.task.preprocessing.resize(frames)

    def on_images(self, params: Params, images: jax.Array) -> Output:
        """The network's raw outputs for what `resize` returns, or for parts of it."""
        return self.network(params, self.task.preprocessing.normalise(images))

    def class_scores(self, params: Params, images: jax.Array) -> jax.Array:
        """The network's scores for what `resize` returns, or for parts of it.

        Raises:
          ValueError: The model is not one of segmentation, or takes no images of this size.
        """
        if not isinstance(self.task, Segmentation):
            raise ValueError(f"{self.name} must be for segmentation; got one for {self.task.name}")
        outputs = self.on_images(params, images)
        return self.task.class_scores(outputs, size=(images.shape[1], images.shape[2]))

    def check(self, frame_size: tuple[int, int]) -> None:
        """Traces the network and its task on frames of a size, without computing anything.

        Raises:
          UsageError: They do not fit each other, or not the frames.
        """
        outputs = self._traced(jax.eval_shape, frame_size)
        try:
            jax.eval_shape(
                lambda params, outputs: self.task.decode(params, outputs, frame_size=frame_size),
                self.params,
                outputs,
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = f"the {self.head} head" if self.head else self.task.name
            raise UsageError(
                f"{what} does not fit {self.name}, whose outputs have shape {_shapes(outputs)}"
            ) from error

    def check_cost(self, frame_size: tuple[int, int], limits: Limits) -> None:
        """Estimates what a frame of a size would take, without computing anything.

        Raises:
          UsageError: It is beyond the limits; the message has the number.
        """
        try:
            self._traced(estimate, frame_size).check(limits)
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(
                f"{self.name} on frames of {frame_size[1]}x{frame_size[0]}: {error}; "
                "--limits raises it"
            ) from error

    def _traced(self, by: Callable[..., Any], frame_size: tuple[int, int]) -> Any:
        """What a transformation of JAX says of the network on frames of a size."""
        frames = jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.uint8)
        try:
            return by(self.on_frames, self.params, frames)
        except Exception as error:  # a file may make anything of a network
            raise UsageError(
                f"{self.name} cannot run on frames of {frame_size[1]}x{frame_size[0]}: "
                f"{one_line(error)}"
            ) from error


def load_model(
    path: pathlib.Path | None,
    *,
    frame_size: tuple[int, int],
    task: str | None = None,
    head: str | None = None,
    pixels: str | None = None,
    class_names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    limits: Limits | None = None,
    flow_guided: bool = False,
) -> Model:
    """Loads a network, and tells from it what it is for unless that is given.

    Files of YOLOv5 (.pt), Darknet (.cfg, its .weights beside it) and SSD512 (.caffemodel) are
    detectors, those of ESPNet (.pth) segment street scenes. An .onnx file is what its metadata say
    where Ultralytics exported it, names of classes among them. Else it is a detector where its
    outputs are those of YOLOX or of such an export, one of segmentation where it has outputs of
    four axes and of one shape, and one of classification where it has one of two.

    Args:
      path: The file; None takes what comes with the package: the segmentation network of street
        scenes and that of short actions for these tasks, else the detector.
      frame_size: (height, width) of the frames it is to run on.
      task: One of `TASKS`; told from the model where None.
      head: One of `HEADS`, for detectors; told from the model where None.
      pixels: One of `PIXELS`, for the other tasks; "imagenet" where None.
      class_names: The name of each class index, in place of the head's.
      size: (height, width) of the network's input, where the file leaves it open; as the network
        was trained where None.
      limits: What a file may ask for; the usual ones where None.
      flow_guided: Whether the detector that comes with the package is to be the one whose features
        can be carried from frame to frame.

    Returns:
      The model, which fits the frames.

    Raises:
      UsageError: The file cannot be read, or what is asked for does not fit it; one line says why.

    >>> load_model(None, frame_size=(480, 640)).kind
    'synthetic head'
    >>> load_model(None, frame_size=(480, 640), task="segmentation").kind
    'segmentation'
    >>> load_model(None, frame_size=(256, 256), flow_guided=True).kind
    'rfcn head'
    """
    _check_names(task, head, pixels)
    clips = parts = None
    if path is None and task == ActionRecognition.name:
        clips, params = actions.load_action_network()
        file = _File(
            "shipped action network", _frame_by_frame(clips), params, None, None, task=_ACTIONS
        )
    elif path is None and task == Segmentation.name:
        networks = driving.load_driving_networks()
        file = _File(
            "shipped segmenter", networks.segment, networks.params[0], None, None,
            task=_street(driving.CLASS_NAMES, frame_size),
        )  # fmt: skip
    elif path is None and flow_guided:
        parts = load_flow_detection_networks()
        multiple = flow_detection.STRIDE
        height, width = (-(-side // multiple) * multiple for side in frame_size)
        file = _File(
            "shipped flow-guided detector", _whole(parts), parts.params, (height, width), "rfcn"
        )
    elif path is None:
        network, params = load_synthetic_detector()
        # It knows objects by their size in pixels: frames keep theirs, rounded up to whole cells.
        multiple = synthetic_detector.STRIDE
        height, width = (-(-side // multiple) * multiple for side in frame_size)
        file = _File("shipped detector", network, params, (height, width), "synthetic")
    else:
        file = _read(path, frame_size, limits or Limits())
    if size is not None:
        if (
            file.size is not None
            and file.size != size
            and path is not None
            and (path.suffix in (".onnx", ".caffemodel"))
        ):
            raise UsageError(
                f"--size must be {file.size[1]}x{file.size[0]}, which {file.name} was made for; "
                f"got {size[1]}x{size[0]}"
            )
        file = dataclasses.replace(file, size=size)
    model = dataclasses.replace(
        _fit(file, frame_size, task, head, pixels), clips=clips, flow_guided=parts
    )
    model.check_cost(frame_size, limits or Limits())
    if class_names is not None:
        named: Any = model.task
        model = dataclasses.replace(
            model, task=dataclasses.replace(named, class_names=tuple(class_names))
        )
    return model


@dataclasses.dataclass(frozen=True)
class _File:
    """What was read: a network, its weights, and what the file itself says of them."""

    name: str
    network: Any
    params: Params
    size: tuple[int, int] | None
    head: str | None  # where there is only one that it can have
    digest: str | None = None
    task: Task | None = None  # likewise


def _street(class_names: Sequence[str], frame_size: tuple[int, int]) -> Segmentation:
    """The task of a segmentation network of street scenes: frames keep their size, up to a limit.

    The networks take images in [0, 1] and do themselves what they were trained with.
    """
    return Segmentation(
        preprocessing=Preprocessing(
            placement="stretch",
            white=1,
            longest_side=min(_LONGEST_SIDE, max(frame_size)),
            multiple=driving.MULTIPLE,
        ),
        class_names=tuple(class_names),
    )


_ACTIONS = ActionRecognition(
    preprocessing=Preprocessing(placement="stretch", white=1, size=actions.SIZE),
    class_names=actions.CLASS_NAMES,
)


def _frame_by_frame(network: ClipNetwork) -> Callable[[Params, jax.Array], jax.Array]:
    """A network of clips on frames by themselves: clips of one frame, in full."""
    route = make_route(((0,),), depth=network.depth, scheme="input")
    return lambda params, images: checkpoint_logits(network, params, images[:, None], route)[:, -1]


def _whole(parts: FlowDetectionNetworks) -> Callable[[Params, jax.Array], Detections]:
    """Feature and detection network in one, frame by frame."""

    def network(params: Params, images: jax.Array) -> Detections:
        size = (images.shape[1], images.shape[2])
        return parts.detect(params[3], parts.features(params[0], images), size)

    return network


def _check_names(task: str | None, head: str | None, pixels: str | None) -> None:
    for name, value, known in (
        ("--task", task, TASKS),
        ("--head", head, HEADS),
        ("--pixels", pixels, PIXELS),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{name} must be one of {', '.join(sorted(known))}; got {value!r}")
    if head is not None and task not in (None, Detection.name, InstanceSegmentation.name):
        raise UsageError(f"--head is for detectors; got it with --task {task}")
    if pixels is not None and (head is not None or task == Detection.name):
        raise UsageError("--pixels is for models that are no detectors: a head knows its own")


def _read(path: pathlib.Path, frame_size: tuple[int, int], limits: Limits) -> _File:
    if not path.is_file():
        raise UsageError(f"cannot read the model {path}: no such file")
    size, files, task = None, [path], None
    try:
        if path.suffix == ".onnx":
            network, params = load_onnx(path, limits=limits)
            if len(network.shape) != 4:
                raise UsageError(
                    f"{path.name} takes no images (N, C, H, W): the shape of its input is "
                    f"{list(network.shape)}"
                )
            height, width = network.frame_shape[:2]
            if height is not None and width is not None:
                size = (height, width)
        elif path.suffix == ".pt":
            network, params = load_yolov5(path)
        elif path.suffix == ".caffemodel":
            network, params = load_ssd512(path)
            size = (ssd.SIZE, ssd.SIZE)
        elif path.suffix == ".cfg":
            files.append(path.with_suffix(".weights"))
            network, params = load_darknet(path, weights=files[1], limits=limits)
            size = network.size
        elif path.suffix == ".pth":
            network, params = load_espnet(path)
            classes = params["classifier"]["kernel"].shape[3]
            street = (*driving.CLASS_NAMES, "void")
            task = _street(street if classes == len(street) else (), frame_size)
        else:
            raise UsageError(
                f"cannot read the model {path}: expected a .onnx, .pt, .pth, .cfg or .caffemodel "
                "file"
            )
        digest = hashlib.sha256()
        for name in files:
            digest.update(name.read_bytes())
    except UsageError:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"cannot read the model: {one_line(error)}") from error
    head = _HEAD_OF_SUFFIX.get(path.suffix)
    return _File(path.name, network, params, size, head, digest.hexdigest(), task)


def _fit(
    file: _File,
    frame_size: tuple[int, int],
    task: str | None,
    head: str | None,
    pixels: str | None,
) -> Model:
    """The model that a file is, checked against frames of a size."""
    if task == Measuring.name and head is None:
        own = file.task.preprocessing if file.task is not None else None
        if own is None:
            own = HEADS[file.head].preprocessing if file.head else PIXELS[pixels or "unit"]
        measuring = Measuring(preprocessing=dataclasses.replace(own, size=file.size or own.size))
        model = Model(file.name, file.network, file.params, measuring, digest=file.digest)
        model.check(frame_size)
        return model
    if file.head is not None and task not in (None, Detection.name):
        raise UsageError(f"{file.name} is a detector, not a network of {task}")
    if file.task is not None:
        if head is not None or task not in (None, file.task.name):
            asked = f"--head {head}" if task is None else f"--task {task}"
            raise UsageError(f"{file.name} is a network of {file.task.name}; got {asked}")
        if pixels is not None:
            raise UsageError(f"--pixels is for other models: {file.name} knows its own")
        model = Model(file.name, file.network, file.params, file.task, digest=file.digest)
        model.check(frame_size)
        return model
    if file.head is not None or head is not None:
        if pixels is not None:
            raise UsageError(f"--pixels is for models that are no detectors; {file.name} is one")
        outlines = task == InstanceSegmentation.name
        model = _detector(file, head or file.head or "", outlines=outlines)
        model.check(frame_size)
        return model
    exported = _exported(file)
    if exported is not None and task in (None, exported.name) and pixels is None:
        head = "ultralytics" if isinstance(exported, Detection) else None
        model = Model(file.name, file.network, file.params, exported, head, file.digest)
        model.check(frame_size)
        return model
    if task in (Detection.name, InstanceSegmentation.name) or (task is None and pixels is None):
        failures = []
        for name in ("yolox", "ultralytics"):
            model = _detector(file, name, outlines=task == InstanceSegmentation.name)
            try:
                model.check(frame_size)
            except UsageError as error:
                failures.append(error)
            else:
                return model
        if task is not None:
            raise UsageError(
                f"cannot tell the head of {file.name}, give --head "
                f"({', '.join(sorted(HEADS))}): {failures[0]}"
            ) from None
    return _of_outputs(file, frame_size, task, pixels or "imagenet")


_ULTRALYTICS_TASKS = {"detect": Detection, "segment": InstanceSegmentation}


def _exported(file: _File) -> Detection | Classification | None:
    """The task of a file that Ultralytics exported, as its metadata say; None of others.

    Raises:
      UsageError: It is a task that is not known here.
    """
    metadata = getattr(file.network, "metadata", {})
    if not {"names", "stride"} <= metadata.keys():
        return None
    names = _class_names(metadata["names"])
    sides = [int(side) for side in re.findall(r"\d{1,5}", metadata.get("imgsz", ""))]
    stride = re.fullmatch(r"\d{1,3}", metadata["stride"])
    given = metadata.get("task", "detect")
    preprocessing = dataclasses.replace(
        HEADS["ultralytics"].preprocessing,
        size=file.size,
        longest_side=max(sides, default=640),
        multiple=max(int(stride[0]) if stride else 32, 32),
    )
    if given == "classify":
        square = dataclasses.replace(preprocessing, placement="stretch", square=True)
        return Classification(preprocessing=square, class_names=names)
    if given not in _ULTRALYTICS_TASKS:
        raise UsageError(
            f"{file.name} is for {one_line(ValueError(given))[:40]!r}, which dynvid does not know: "
            f"--task {Measuring.name} measures it"
        )
    return _ULTRALYTICS_TASKS[given](
        decode_boxes=functools.partial(_ultralytics, classes=len(names) or None),
        preprocessing=preprocessing,
        class_names=names,
    )


def _class_names(text: str) -> tuple[str, ...]:
    """The names of classes of a dict that is written as Python does; none where it is not one.

    >>> _class_names("{0: 'person', 1: 'car'}"), _class_names("[1]")
    (('person', 'car'), ())
    """
    if len(text) > _MOST_NAMES:
        return ()
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    if not isinstance(found, dict) or found.keys() != set(range(len(found))):
        return ()
    return tuple(str(found[index]) for index in range(len(found)))


def _detector(file: _File, name: str, *, outlines: bool = False) -> Model:
    head = HEADS[name]
    task = (InstanceSegmentation if outlines else Detection)(
        decode_boxes=head.decode,
        preprocessing=dataclasses.replace(head.preprocessing, size=file.size),
        class_names=head.class_names,
    )
    return Model(file.name, file.network, file.params, task, name, file.digest)


def _of_outputs(file: _File, frame_size: tuple[int, int], task: str | None, pixels: str) -> Model:
    """A model of segmentation or action recognition, as its outputs are or as it is asked for."""
    preprocessing = dataclasses.replace(PIXELS[pixels], size=file.size)
    of_maps = dataclasses.replace(preprocessing, longest_side=512)
    of_frames = dataclasses.replace(preprocessing, longest_side=224, square=True)
    first = getattr(file.network, "channels_first", False)
    tasks: dict[int, Task] = {
        4: Segmentation(preprocessing=of_maps, channels_first=first),
        2: _OF_FRAMES.get(task or "", Classification)(preprocessing=of_frames),
    }
    found = {}
    for rank, candidate in tasks.items():
        frames = jax.ShapeDtypeStruct((1, *frame_size, 3), jnp.uint8)
        try:
            outputs = jax.eval_shape(candidate.preprocess(file.network), file.params, frames)
        except Exception as error:  # a file may make anything of a network
            failure = one_line(error)
            continue
        found[candidate.name] = _select(file, outputs, rank), candidate, outputs
    if not found:
        raise UsageError(
            f"{file.name} cannot run on frames of {frame_size[1]}x{frame_size[0]}: {failure}"
        )
    for name, (network, candidate, outputs) in found.items():
        # Auxiliary outputs of the same kind may be beside the one that counts.
        only = len({leaf.shape for leaf in jax.tree.leaves(outputs)}) == 1
        if network is not None and (name == task or (task is None and only)):
            model = Model(file.name, network, file.params, candidate, None, file.digest)
            model.check(frame_size)
            return model
    _, _, outputs = found.get(task or "", next(iter(found.values())))
    if task is not None:
        raise UsageError(
            f"{task} does not fit {file.name}, whose outputs have shape {_shapes(outputs)}"
        )
    raise UsageError(
        f"cannot tell the task of {file.name}, whose outputs have shape {_shapes(outputs)}: give "
        f"--task ({', '.join(TASKS)}), or --head ({', '.join(sorted(HEADS))}) for a detector"
    )


def _select(
    file: _File, outputs: Output, rank: int
) -> Callable[[Params, jax.Array], Output] | None:
    """The network with its first output of so many axes alone; None where it has none.

    Exported networks often come with auxiliary outputs beside the one that counts.
    """
    network = file.network
    if not isinstance(outputs, dict):
        return network if _ranks(outputs) == [rank] else None
    for name in getattr(network, "outputs", tuple(outputs)):
        if _ranks(outputs[name]) == [rank]:
            return lambda params, images: network(params, images)[name]
    return None


def _ranks(outputs: Output) -> list[int]:
    return [len(leaf.shape) for leaf in jax.tree.leaves(outputs)]


def _shapes(outputs: Output) -> str:
    return ", ".join(str(list(leaf.shape)) for leaf in jax.tree.leaves(outputs))
