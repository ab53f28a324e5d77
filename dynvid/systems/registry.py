"""The systems that go by a name: what `dynvid run --system NAME` takes."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dynvid.incremental import explain, incremental
from dynvid.systems.dense import dense
from dynvid.systems.dyncnn import dyncnn
from dynvid.systems.ifmdc import Settings, calibrated_settings, ifmdc_network
from dynvid.types import Frames, Output, Params, VideoFunction

FrameFunction = Callable[[Params, jax.Array], Output]


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
      build: `build(fn, params, frames, **options) -> VideoFunction`: of a function of a camera's
        uint8 frames `(S, H, W, 3)`, its parameters, and the video's first frames for systems that
        calibrate themselves. It raises ValueError for what it cannot be built of.
      calibration_frames: How many frames `build` wants to see, at least one.
      tasks: The names of the tasks it serves; all where None.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    build: Callable[..., VideoFunction]
    calibration_frames: int = 1
    tasks: frozenset[str] | None = None

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: those that are given, and the defaults of the others.

        Raises:
          ValueError: An option is not known, or its value is not allowed.

        >>> SYSTEMS["incremental"].settings({"threshold": 20})["truncation"]
        0.5
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
        return {name: option.default for name, option in self.options.items()} | dict(given)


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


_REFERENCE = ("last_used", "previous")
_CHANNELS = choice_option("any", "gray", "mean")
_FLAG = "true or false"


def _incremental(
    fn: FrameFunction, params: Params, frames: Sequence[Frames], **options: Any
) -> VideoFunction:
    truncation = options["truncation"]
    if isinstance(truncation, Mapping):
        layers = explain(fn, params, frames[0]).layers
        if unknown := [name for name in truncation if name not in layers]:
            raise ValueError(
                "truncation must name layers of the network, which dynvid explain lists; got "
                f"{', '.join(unknown)}"
            )
    return incremental(fn, **options)


def _dense(fn: FrameFunction, params: Params, frames: Sequence[Frames]) -> VideoFunction:
    del params, frames
    return dense(fn)


def _ifmdc(
    fn: FrameFunction,
    params: Params,
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
        seen = calibrated_settings(fn, params, frames, at=at)
        low, high = (seen.low if low is None else low), (seen.high if high is None else high)
    settings = Settings(low=low, high=high, **codec)
    return ifmdc_network(
        fn, at=at, settings=settings, front=front, back=back, threshold=threshold,
        truncation=truncation,
    )  # fmt: skip


def _dyncnn(
    fn: FrameFunction, params: Params, frames: Sequence[Frames], **options: Any
) -> VideoFunction:
    del params, frames
    return dyncnn(fn, **options)


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            name="incremental",
            summary="recompute what a changed pixel reaches, in any network",
            build=_incremental,
            options={
                "threshold": threshold_option(15),
                "truncation": _truncation_option(0.5),
                "reference": choice_option(*_REFERENCE),
                "channels": _CHANNELS,
                "cell": Option(
                    None,
                    "a positive number of pixels or null",
                    lambda value: value is None or _positive(value),
                ),
                "break_even": Option(
                    None,
                    "a share between 0 and 1 or null",
                    lambda value: value is None or _number(value, most=1),
                ),
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
            name="dense",
            summary="the whole network on every frame, to compare with",
            build=_dense,
            options={},
        ),
    )
}
"""The systems by name. To add one, add its entry here."""
