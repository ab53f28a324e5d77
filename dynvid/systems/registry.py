"""The systems that go by a name: what `dynvid run --system NAME` takes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp

from dynvid.errors import one_line
from dynvid.incremental import explain, incremental
from dynvid.models.driving import MULTIPLE, load_driving_networks
from dynvid.models.flow_detection import FlowDetectionNetworks
from dynvid.ops.difference import camera_changes, trusted_flow
from dynvid.ops.early_exit import Measure
from dynvid.ops.labels import LabelMap
from dynvid.ops.letterbox import Letterbox
from dynvid.ops.progressive import ClipNetwork, Groups, Scheme, ShiftFn, frame_groups, make_route
from dynvid.ops.regions import divide_frame
from dynvid.ops.warp import Motion, resize_motion
from dynvid.systems.dense import dense
from dynvid.systems.dvsnet import DVSNetParams, DVSNetState, dvsnet
from dynvid.systems.dvsnet.system import THRESHOLDS as POLICY_THRESHOLDS
from dynvid.systems.dvsnet.system import Policy
from dynvid.systems.dynamic_inference import dynamic_inference_stream
from dynvid.systems.dynamic_inference.stream import Evidence
from dynvid.systems.dyncnn import dyncnn
from dynvid.systems.flow_detection import (
    FlowDetectionParams,
    FlowDetectionState,
    flow_detection,
    split_detector,
)
from dynvid.systems.flow_detection.system import THRESHOLDS as KEY_THRESHOLDS
from dynvid.systems.flow_detection.system import KeyRule, Propagated
from dynvid.systems.ifmdc import Settings, calibrated_settings, ifmdc_network
from dynvid.types import Frames, Output, Params, VideoFunction


class Network(Protocol):
    """What a system is built of: a network that takes a camera's frames, such as a `zoo.Model`.

    Attributes:
      params: Its weights.
      multiple: What the sides of the images that it takes should be multiples of.
    """

    @property
    def params(self) -> Params:
        """Its weights."""
        ...

    @property
    def multiple(self) -> int:
        """What the sides of the images that it takes should be multiples of."""
        ...

    def on_frames(self, params: Params, frames: Frames) -> Output:
        """Its raw outputs for a camera's uint8 frames, `(S, H, W, 3)`."""
        ...

    def geometry(self, frame_size: tuple[int, int]) -> Letterbox:
        """How frames of `(height, width)` lie in its input."""
        ...

    def resize(self, frames: Frames) -> jax.Array:
        """Frames laid into its input: RGB of 0..255, `(S, h, w, 3)`."""
        ...

    def on_images(self, params: Params, images: jax.Array) -> Output:
        """Its raw outputs for what `resize` returns, or parts of it."""
        ...

    def class_scores(self, params: Params, images: jax.Array) -> jax.Array:
        """Its scores for what `resize` returns, or parts of it: `(S, h', w', classes)`.

        Raises:
          ValueError: It does not score classes on a map.
        """
        ...


class Option(NamedTuple):
    """An option of a system, as a settings file may give it.

    Attributes:
      default: What it is where nothing is said.
      expected: What it must be, in words: "... must be EXPECTED; got ...".
      allows: Whether a value, as JSON has it, is that.
    """

    default: Any
    expected: str
    allows: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """An entry of `SYSTEMS`.

    Attributes:
      name: As the command line has it.
      summary: What it does, in one line.
      options: By name; those of `build`.
      own: For options that stand for what others imply where they are null: that, of all options.
      build: `build(network, frames, **options) -> VideoFunction`: of a `Network` and of the video's
        first frames, uint8 `(S, H, W, 3)`, for systems that calibrate themselves or depend on
        their size. The function takes the network's parameters. It raises ValueError for what it
        cannot be built of.
      calibration_frames: How many frames `build` wants to see, at least one.
      tasks: The names of the tasks it serves; all where None.
      kept: What `1 - work.changed` is the share of, for reports.
      score_unit: `score_unit(options)`, the unit of what it decides by, where it tells.
      clip: `clip(options)`, of systems that take a video as one clip: the frames, evenly spread
        over it, in the order in which they are to come; None where they come as they are.
      frame_by_frame: Whether its outputs can be compared with those of the network on each frame.
      flow_guided: Whether it is for the shipped flow-guided detector where no network is given.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    build: Callable[..., VideoFunction]
    own: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(default_factory=dict)
    calibration_frames: int = 1
    tasks: frozenset[str] | None = None
    kept: str = "pixels unchanged"
    score_unit: Callable[[Mapping[str, Any]], str] = lambda options: ""
    clip: Callable[[Mapping[str, Any]], tuple[int, ...] | None] = lambda options: None
    frame_by_frame: bool = True
    flow_guided: bool = False

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those that are given, and the defaults of the others.

        Where one is null that the others imply, it is what they imply.

        Raises:
          ValueError: An option is not known, or its value is not allowed.

        >>> SYSTEMS["incremental"].settings({"threshold": 20})["truncation"]
        0.5
        >>> SYSTEMS["dvsnet"].settings({"policy": "flow_magnitude"})["threshold"]
        2.0
        >>> SYSTEMS["incremental"].settings({"treshold": 20})
        Traceback (most recent call last):
        ...
        ValueError: incremental has no option treshold; it has threshold, truncation, reference, ...
        """
        if unknown := [name for name in given if name not in self.options]:
            have = ", ".join(self.options) or "none"
            raise ValueError(f"{self.name} has no option {', '.join(unknown)}; it has {have}")
        for name, value in given.items():
            if not self.options[name].allows(value):
                raise ValueError(f"{name} must be {self.options[name].expected}; got {value!r}")
        options = {name: option.default for name, option in self.options.items()} | dict(given)
        implied = {name: of(options) for name, of in self.own.items() if options[name] is None}
        return options | implied


def _number(value: Any, *, most: float = math.inf) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and 0 <= value <= most and value != math.inf


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def threshold_option(default: float) -> Option:
    """A threshold of the frame difference."""
    return Option(
        default, "a number between 0 and 255 grey levels", lambda value: _number(value, most=255)
    )


def choice_option(default: str, *others: str) -> Option:
    """One of a few words."""
    words = (default, *others)
    expected = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"
    return Option(default, expected, lambda value: value in words)


def _frames_option(default: int | None) -> Option:
    return Option(
        default,
        "a positive number of frames or null",
        lambda value: value is None or _positive(value),
    )


def _share_option(default: float | None) -> Option:
    return Option(
        default,
        "a share between 0 and 1 or null",
        lambda value: value is None or _number(value, most=1),
    )


def _truncation_option(default: float) -> Option:
    def allows(value: Any) -> bool:
        return all(map(_number, value.values() if isinstance(value, Mapping) else [value]))

    return Option(default, "a number of at least 0, or one for each layer by name", allows)


def _codec_options() -> dict[str, Option]:
    """The settings of IFMDC's codec; those of the clip range are calibrated where they are null."""
    options = {
        "low": Option(None, "a number or null", _finite_or_none),
        "high": Option(None, "a number or null", _finite_or_none),
    }
    for field in dataclasses.fields(Settings):
        if field.name == "scan":
            options[field.name] = choice_option("chw", "hwc")
        elif field.name == "key_levels":
            options[field.name] = Option(
                None, "a positive number or null", lambda value: value is None or _positive(value)
            )
        elif isinstance(field.default, int):
            options[field.name] = Option(field.default, "a positive number", _positive)
        elif isinstance(field.default, float):
            options[field.name] = Option(field.default, "a number of at least 0.5", _number)
    return options


def _finite_or_none(value: Any) -> bool:
    return value is None or (
        not isinstance(value, bool | str | list | dict) and _number(abs(value))
    )


_OVERLAP = 16  # pixels; the paper's 64 are for frames of 2048 x 1024
# As measured on PETS and TUD-Stadtmitte with YOLOv5n, experiments/flow_detection: grey levels that
# a motion may leave unexplained, positions around those that are updated too, and grey levels by
# which a motion must explain a place better than none does.
_UNEXPLAINED, _AROUND, _TRUST = 8.0, 1, 3.0
_REFERENCE = ("last_used", "previous")
_CHANNELS = choice_option("any", "gray", "mean")
_FLAG = "true or false"


def incremental_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the system "incremental", as `dynvid.incremental` takes them.

    >>> incremental_options({"changes": "pixels", "settle": 4})
    {'changes': None, 'settle': 4}
    """
    rule = camera_changes() if options["changes"] == "camera" else None
    return {**options, "changes": rule}


def _incremental(network: Network, frames: Sequence[Frames], **options: Any) -> VideoFunction:
    truncation = options["truncation"]
    if isinstance(truncation, Mapping):
        layers = explain(network.on_frames, network.params, frames[0]).layers
        if unknown := [name for name in truncation if name not in layers]:
            raise ValueError(
                "truncation must name layers of the network, which dynvid explain lists; got "
                f"{', '.join(unknown)}"
            )
    return incremental(network.on_frames, **incremental_options(options))


def _dense(network: Network, frames: Sequence[Frames]) -> VideoFunction:
    del frames
    return dense(network.on_frames)


def _ifmdc(
    network: Network,
    frames: Sequence[Frames],
    *,
    at: str | None,
    front: Any,
    back: Any,
    threshold: float,
    truncation: float | Mapping[str, float],
    low: Any,
    high: Any,
    **codec: Any,
) -> VideoFunction:
    if at is None:
        raise ValueError(
            "at must be the name of a feature map, such as model.4 or layer_12; got None"
        )
    if low is None or high is None:
        seen = calibrated_settings(network.on_frames, network.params, frames, at=at)
        low, high = (seen.low if low is None else low), (seen.high if high is None else high)
    settings = Settings(low=low, high=high, **codec)
    return ifmdc_network(
        network.on_frames, at=at, settings=settings, front=front, back=back, threshold=threshold,
        truncation=truncation,
    )  # fmt: skip


def _dyncnn(network: Network, frames: Sequence[Frames], **options: Any) -> VideoFunction:
    del frames
    return dyncnn(network.on_frames, **options)


def _dvsnet(
    network: Network,
    frames: Sequence[Frames],
    *,
    rows: int,
    columns: int,
    overlap: int | None,
    incremental: bool,
    pixel_threshold: float | None,
    truncation: float | None,
    **options: Any,
) -> VideoFunction:
    """DVSNet around a segmentation network, with the shipped flow and decision networks.

    The regions are parts of the network's input: the resized frame. The motion is brought to the
    grid of the network's scores. The scale field is learned for the classes of the shipped
    segmentation network and left out where another has more or fewer; the confidence scores are
    learned on that network too, and for another a guess.
    """
    for name, value in (("pixel_threshold", pixel_threshold), ("truncation", truncation)):
        if value is not None and not incremental:
            raise ValueError(f"{name} is for incremental=true; got {value} with incremental=false")
    frame_size = (frames[0].shape[1], frames[0].shape[2])
    geometry = network.geometry(frame_size)
    multiple = math.lcm(MULTIPLE, network.multiple)
    overlap = -(-_OVERLAP // multiple) * multiple if overlap is None else overlap
    regions = divide_frame(
        geometry.network_size, grid=(rows, columns), overlap=overlap, multiple=multiple
    )
    image = jax.ShapeDtypeStruct((1, *regions.size, 3), jnp.float32)
    try:
        scores = jax.eval_shape(network.class_scores, network.params, image)
    except (ValueError, TypeError) as error:
        if len(regions) == 1:
            raise
        height, width = regions.size
        raise ValueError(
            f"the network cannot run on regions of {width}x{height} ({one_line(error)}); rows=1 "
            "columns=1 runs it on whole frames"
        ) from error
    networks = load_driving_networks()

    def flow(params: Params, current: jax.Array, key: jax.Array) -> Motion:
        motion = networks.flow(params, _unit(current), _unit(key))
        if motion.scale is not None and motion.scale.shape[3] != scores.shape[3]:
            motion = motion._replace(scale=None)
        return resize_motion(motion, scores.shape[1:3])

    inner = {
        "threshold": 15 if pixel_threshold is None else pixel_threshold,
        "truncation": 0.5 if truncation is None else truncation,
    }
    video = dvsnet(
        network.class_scores,
        flow,
        decide=networks.decide,
        grid=(rows, columns),
        overlap=overlap,
        multiple=multiple,
        incremental=inner if incremental else None,
        **options,
    )

    def together(params: Params) -> DVSNetParams:
        return DVSNetParams(params, *networks.params[1:])

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[DVSNetState, LabelMap]:
        return video.init(together(params), _resized(network, frames, frame_size))

    @jax.jit
    def step(
        params: Params, state: DVSNetState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[DVSNetState, LabelMap]:
        moved = None if mask is None else geometry.mask_to_network(mask)
        images = _resized(network, frames, frame_size)
        return video.step(together(params), state, images, moved)

    return VideoFunction(init, step)


def _resized(network: Network, frames: Frames, frame_size: tuple[int, int]) -> jax.Array:
    """A camera's frames as the network's input.

    Raises:
      ValueError: They are of another size than the first ones.
    """
    expected = (*frame_size, 3)
    if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != jnp.uint8:
        raise ValueError(
            f"frames must be uint8(S, {', '.join(map(str, expected))}) as the first ones were; "
            f"got {frames.dtype}{list(frames.shape)}"
        )
    return network.resize(frames)


def _flow_detection(
    network: Network,
    frames: Sequence[Frames],
    *,
    at: str | Sequence[str] | None,
    motion: str,
    **options: Any,
) -> VideoFunction:
    """Flow-guided detection with any detector, cut in two, and nothing trained for it.

    The motion is that of the shipped flow network where it explains more than none does, or none at
    all; what it leaves unexplained says what is updated and when there is a key frame; features are
    compared as they are. The shipped flow-guided detector has networks of its own for all that.
    """
    parts: FlowDetectionNetworks | None = getattr(network, "flow_guided", None)
    if parts is not None and at is None and motion == "network":
        own = _filled(options, aggregate="recursive", margin=0)
        return _as_trained(network, frames, parts, **own)
    frame_size = (frames[0].shape[1], frames[0].shape[2])
    multiple = math.lcm(MULTIPLE, network.multiple)
    image = jax.eval_shape(network.resize, frames[0][:1])
    size = [-(-side // multiple) * multiple for side in image.shape[1:3]]
    image = jax.ShapeDtypeStruct((1, *size, 3), image.dtype)
    cut = split_detector(network.on_images, network.params, image, at=at)
    shapes = jax.tree.leaves(jax.eval_shape(cut.features, network.params, image))
    finest = max(shapes, key=lambda x: x.shape[1] * x.shape[2]).shape
    # Pixels that are compared, four at most a side: no larger than a position of the features.
    blocks = (n for n in (4, 2) if n * finest[1] <= size[0] and n * finest[2] <= size[1])
    block = next(blocks, 1)
    driving = load_driving_networks()

    def flow(params: Params, current: jax.Array, key: jax.Array) -> Motion:
        if motion == "none":
            return Motion(jnp.zeros((len(current), 1, 1, 2)))
        found = driving.flow(params, _unit(current), _unit(key)).flow
        return Motion(trusted_flow(current, key, found, margin=_TRUST, block=block))

    video = flow_detection(
        cut.features,
        cut.detect,
        flow=flow,
        embed=lambda params, features: features,
        consistency="residual",
        consistency_block=block,
        multiple=multiple,
        **_filled(
            options,
            aggregate="none",
            margin=_AROUND,
            consistency_threshold=_UNEXPLAINED,
        ),
    )
    return _of_camera(
        network, frame_size, video, lambda p: FlowDetectionParams(p, p, driving.params[1])
    )


def _filled(options: Mapping[str, Any], **usual: Any) -> dict[str, Any]:
    """Options with what stands for null."""
    return {**options} | {name: x for name, x in usual.items() if options[name] is None}


def _as_trained(
    network: Network, frames: Sequence[Frames], parts: FlowDetectionNetworks, **options: Any
) -> VideoFunction:
    """Flow-guided detection with all four networks, trained together."""
    frame_size = (frames[0].shape[1], frames[0].shape[2])
    image = jax.eval_shape(network.resize, frames[0][:1])
    size = tuple(-(-side // network.multiple) * network.multiple for side in image.shape[1:3])
    video = flow_detection(
        lambda params, images: parts.features(params, _unit(images)),
        lambda params, features: parts.detect(params, features, size),
        flow=lambda params, *pair: parts.flow(params, *map(_unit, pair)),
        embed=parts.embed,
        multiple=network.multiple,
        **options,
    )
    return _of_camera(
        network, frame_size, video, lambda p: FlowDetectionParams(p[0], p[3], p[1], p[2])
    )


def _of_camera(
    network: Network,
    frame_size: tuple[int, int],
    video: VideoFunction,
    together: Callable[[Params], FlowDetectionParams],
) -> VideoFunction:
    """A flow-guided detector of a network's images as one of a camera's frames."""
    geometry = network.geometry(frame_size)

    @jax.jit
    def init(params: Params, frames: Frames) -> tuple[FlowDetectionState, Output]:
        return video.init(together(params), _resized(network, frames, frame_size))

    @jax.jit
    def step(
        params: Params, state: FlowDetectionState, frames: Frames, mask: jax.Array | None = None
    ) -> tuple[FlowDetectionState, Output]:
        moved = None if mask is None else geometry.mask_to_network(mask)
        images = _resized(network, frames, frame_size)
        return video.step(together(params), state, images, moved)

    return VideoFunction(init, step)


def _unit(images: jax.Array) -> jax.Array:
    """What the shipped networks take: uint8, or floating in [0, 1]."""
    return images / 255 if jnp.issubdtype(images.dtype, jnp.floating) else images


class _FrameScores:
    """A network that scores single frames as one of a single stage: scores are averaged."""

    depth = 1

    def __init__(self, network: Network):
        self._network = network

    def stage(self, params: Params, depth: int, x: Any, shift: ShiftFn) -> Any:
        return self._network.on_frames(params, x)

    def features(self, params: Params, depth: int, maps: Any) -> jax.Array:
        leaves = jax.tree.leaves(maps)
        if len(leaves) != 1 or leaves[0].ndim != 2 or leaves[0].shape[1] < 2:
            raise ValueError(
                "the network must score classes, (S, classes); got outputs "
                f"{[list(leaf.shape) for leaf in leaves]}"
            )
        return leaves[0]

    def head(self, params: Params, depth: int, features: jax.Array) -> jax.Array:
        return features


class _Resized:
    """A network of clips that takes frames of any size."""

    def __init__(self, network: Network, clips: ClipNetwork):
        self._network, self._clips, self.depth = network, clips, clips.depth
        self.features, self.head = clips.features, clips.head

    def stage(self, params: Params, depth: int, x: Any, shift: ShiftFn) -> Any:
        return self._clips.stage(
            params, depth, _unit(self._network.resize(x)) if depth == 1 else x, shift
        )


def _frame_groups(options: Mapping[str, Any]) -> Groups:
    length, groups = options["length"], options["groups"]
    permutation = options["permutation"]
    key = jax.random.key(options["seed"]) if permutation == "stratified" else None
    if options["clip"] == "stream":
        return frame_groups(length, length)  # in their order, each by itself
    return frame_groups(length, groups, permutation=permutation, key=key)


def _dynamic_inference(
    network: Network, frames: Sequence[Frames], *, scheme: Scheme, threshold: Any, **options: Any
) -> VideoFunction:
    """Dynamic Inference: of a network with checkpoints, or of one that scores single frames."""
    del frames
    clips: ClipNetwork | None = getattr(network, "clips", None)
    staged: Any = _FrameScores(network) if clips is None else _Resized(network, clips)
    groups = _frame_groups(options)
    of_stream = options["clip"] == "stream"
    decay = of_stream and options["evidence"] == "decay"
    route = make_route(((0,),) if decay else groups, depth=staged.depth, scheme=scheme)
    return dynamic_inference_stream(
        staged,
        groups=route.groups,
        checkpoints=route.checkpoints,
        threshold=jnp.asarray(threshold, jnp.float32),
        measure=options["measure"],
        evidence="decay" if decay else "reset",
        decay=options["decay"],
        repeat=of_stream,
    )


def _clip_order(options: Mapping[str, Any]) -> tuple[int, ...] | None:
    if options["clip"] == "stream":
        return None
    groups = make_route(_frame_groups(options), depth=1, scheme=options["scheme"]).groups
    return tuple(frame for group in groups for frame in group)


_SCORE_UNITS: Mapping[Policy, str] = {
    "decision_network": "%",
    "frame_difference": " grey levels",
    "flow_magnitude": " pixels",
    "fixed_period": " frames",
}

_KEY_UNITS: Mapping[KeyRule, str] = {
    "feature_consistency": " of all features inconsistent",
    "every": " frames",
    "all": "",
}

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            name="incremental",
            summary="recompute what a changed pixel reaches, in any network",
            build=_incremental,
            options={
                "threshold": threshold_option(8),
                "truncation": _truncation_option(0.5),
                "reference": choice_option(*_REFERENCE),
                "channels": _CHANNELS,
                "changes": choice_option("camera", "pixels"),
                "cell": Option(
                    None,
                    "a positive number of pixels or null",
                    lambda value: value is None or _positive(value),
                ),
                "break_even": _share_option(None),
                "settle": _frames_option(4),
                "rotation": _frames_option(250),
                "dense_above": _share_option(0.5),
            },
        ),
        System(
            name="dyncnn",
            summary="DynCNN as its paper has it: by pixels, by cells or by groups of layers",
            build=_dyncnn,
            options={
                "partition": choice_option("cell", "pixel"),
                "continuous": Option(True, _FLAG, lambda value: isinstance(value, bool)),
                "threshold": threshold_option(20),
                "reference": choice_option(*reversed(_REFERENCE)),
                "inputs": choice_option("raw", "composite"),
                "border": choice_option("exact", "paper"),
                "groups": Option(
                    None,
                    "a list of group numbers or null",
                    lambda value: (
                        value is None
                        or (isinstance(value, list) and all(x == 0 or _positive(x) for x in value))
                    ),
                ),
                "cell": Option(
                    None,
                    "a positive number of pixels, a list of them or null",
                    lambda value: (
                        value is None
                        or _positive(value)
                        or (isinstance(value, list) and value != [] and all(map(_positive, value)))
                    ),
                ),
                "layout": choice_option("batch", "strip"),
                "channels": _CHANNELS,
            },
        ),
        System(
            name="ifmdc",
            summary="an edge and a cloud that send differences of one feature map (option at)",
            build=_ifmdc,
            calibration_frames=8,
            options={
                "at": Option(
                    None,
                    "the name of a feature map, such as model.4 or layer_12; got None",
                    lambda value: isinstance(value, str) and value != "",
                ),
                "front": choice_option("incremental", "dense"),
                "back": choice_option("dense", "incremental"),
                "threshold": threshold_option(0),
                "truncation": _truncation_option(0),
                **_codec_options(),
            },
        ),
        System(
            name="dvsnet",
            summary="segment a region anew where warping it would not do",
            build=_dvsnet,
            tasks=frozenset({"segmentation"}),
            kept="regions warped",
            score_unit=lambda options: _SCORE_UNITS[options["policy"]],
            own={"threshold": lambda options: POLICY_THRESHOLDS[options["policy"]]},
            options={
                "policy": choice_option(*get_args(Policy)),
                "threshold": Option(
                    None,
                    "a number of at least 0 in the unit of the policy (percent for "
                    "decision_network) or null for its own",
                    lambda value: value is None or _number(value),
                ),
                "rows": Option(2, "a positive number", _positive),
                "columns": Option(2, "a positive number", _positive),
                "overlap": Option(
                    None,
                    "a number of pixels of at least 0, or null for 16 rounded up to the network's "
                    "stride",
                    lambda value: value is None or value == 0 or _positive(value),
                ),
                "adaptive": Option(False, _FLAG, lambda value: isinstance(value, bool)),
                "incremental": Option(False, _FLAG, lambda value: isinstance(value, bool)),
                "pixel_threshold": Option(
                    None,
                    "a number between 0 and 255 grey levels or null",
                    lambda value: value is None or _number(value, most=255),
                ),
                "truncation": Option(
                    None,
                    "a number of at least 0 or null",
                    lambda value: value is None or _number(value),
                ),
                "chunk": Option(1, "a positive number", _positive),
            },
        ),
        System(
            name="flow-detection",
            flow_guided=True,
            summary="carry features along the motion, and renew them where it explains too little",
            build=_flow_detection,
            tasks=frozenset({"detection"}),
            kept="features carried",
            score_unit=lambda options: _KEY_UNITS[options["key"]],
            own={"threshold": lambda options: KEY_THRESHOLDS[options["key"]]},
            options={
                "at": Option(
                    None,
                    "the name of a feature map, such as model.17, a list of them, or null",
                    lambda value: (
                        value is None
                        or (isinstance(value, str) and value != "")
                        or (
                            isinstance(value, list)
                            and value != []
                            and all(isinstance(name, str) for name in value)
                        )
                    ),
                ),
                "motion": choice_option("network", "none"),
                "key": choice_option("feature_consistency", "every", "all"),
                "threshold": Option(
                    None,
                    "a number, a share for key=feature_consistency and frames for key=every, or "
                    "null for its own",
                    lambda value: value is None or _number(value) or _number(-value, most=1),
                ),
                "aggregate": Option(
                    None,
                    "'none', 'recursive' or null for its own",
                    lambda value: value in (None, "none", "recursive"),
                ),
                "spatial": Option(True, _FLAG, lambda value: isinstance(value, bool)),
                "propagate": choice_option(*get_args(Propagated)),
                "consistency_threshold": Option(
                    None,
                    "a number between -255 and 255, of grey levels or of the network's quality, or "
                    "null for its own",
                    lambda value: (
                        value is None or _number(value, most=255) or _number(-value, most=255)
                    ),
                ),
                "cut_threshold": Option(
                    None,
                    "a number between 0 and 255 grey levels or null",
                    lambda value: value is None or _number(value, most=255),
                ),
                "margin": Option(
                    None,
                    "a number of positions of at least 0 or null for its own",
                    lambda value: value is None or value == 0 or _positive(value),
                ),
                "reach": choice_option("cover", "mask", "geometry"),
            },
        ),
        System(
            name="dynamic-inference",
            summary="stop looking at a clip, further and deeper, once sure of what it shows",
            build=_dynamic_inference,
            tasks=frozenset({"action-recognition"}),
            kept="frames passed over",
            clip=_clip_order,
            frame_by_frame=False,
            options={
                "threshold": Option(
                    0.9,
                    "a number between 0 and 1, or a list of them, one a checkpoint",
                    lambda value: all(
                        _number(x, most=1) for x in (value if isinstance(value, list) else [value])
                    ),
                ),
                "clip": choice_option("whole", "stream"),
                "scheme": choice_option("joint", "depth", "input"),
                "length": Option(16, "a positive number of frames", _positive),
                "groups": Option(2, "a positive number", _positive),
                "permutation": choice_option("strided", "stratified", "identity"),
                "seed": Option(0, "a whole number of at least 0", lambda v: v == 0 or _positive(v)),
                "measure": choice_option(*get_args(Measure)),
                "evidence": choice_option(*get_args(Evidence)),
                "decay": Option(
                    0.8, "a share between 0 and 1", lambda value: _number(value, most=1)
                ),
            },
        ),
        System(
            name="dense",
            summary="the whole network on every frame, to compare with",
            build=_dense,
            options={},
        ),
    )
}
"""The systems by name. To add one, add its entry here."""
