"""`dynvid run`: a network on a video, computing only what changed."""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import platform
import warnings
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import dynvid
from dynvid.cli.common import (
    FPS,
    HeadOption,
    LimitsOption,
    MaxFramesOption,
    ModelOption,
    NamesOption,
    PixelsOption,
    SourcesArgument,
    TaskOption,
    check_count,
    check_number,
    expand_sources,
    open_source,
    option,
    parse_limits,
    parse_network_size,
    progress,
    read_class_names,
    recorded_warnings,
    size_text,
    source_name,
    warn,
)
from dynvid.cli.interrupts import Interrupts
from dynvid.cli.settings import (
    choose_options,
    choose_system,
    choose_task,
    parse_options,
    read_settings,
)
from dynvid.cli.tune import FRAMES as TUNED_FRAMES
from dynvid.cli.tune import chosen_settings, promise, tune_model
from dynvid.errors import UsageError, one_line
from dynvid.files import output_folder
from dynvid.measures import RunMeasures
from dynvid.models.zoo import Model, load_model
from dynvid.runner import FrameResult, run_video
from dynvid.systems.registry import SYSTEMS, System
from dynvid.tasks import Detection, Segmentation
from dynvid.tasks.detection import IOU_THRESHOLD, SCORE_THRESHOLD, chosen_detection
from dynvid.tasks.task import Result, class_name
from dynvid.types import Output, Params, VideoFunction
from dynvid.video.clips import clip_frames
from dynvid.video.detections import FORMATS, DetectionWriter
from dynvid.video.draw import annotate_frame
from dynvid.video.report import plot_report
from dynvid.video.writer import VideoWriter

EVERY = 50
"""How many frames there are from one audit to the next, where only a target is given."""

TARGET = 0.9
"""What audits are held to where no target is given."""

_SHOWN_FRAMES = 1000  # in the running chart below a frame; more than any width has room for


def run(
    sources: SourcesArgument = (),
    *,
    model: ModelOption = None,
    task: TaskOption = None,
    head: HeadOption = None,
    pixels: PixelsOption = None,
    names: NamesOption = None,
    conf: Annotated[
        float | None,
        option(
            "Of detectors: the least score of a box, 0..1.",
            metavar="SCORE",
            default=f"{SCORE_THRESHOLD:g}",
        ),
    ] = None,
    iou: Annotated[
        float | None,
        option(
            "Of detectors: the greatest overlap at which two boxes of a class both stay, 0..1.",
            metavar="SHARE",
            default=f"{IOU_THRESHOLD:g}",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        option(
            "Of detectors: names or numbers of the classes that are looked for, such as "
            "person,car.",
            metavar="NAME,...",
            default="all",
        ),
    ] = None,
    size: Annotated[
        str | None,
        option(
            "The size of the network's input, where the model leaves it open: WIDTHxHEIGHT, or "
            "one number for a square.",
            metavar="PIXELS",
            default="as the model was trained",
        ),
    ] = None,
    system: Annotated[
        str | None,
        option(
            "How work is saved. "
            + "; ".join(f"{name}: {entry.summary}" for name, entry in SYSTEMS.items())
            + ".",
            metavar="NAME",
            default="incremental",
        ),
    ] = None,
    settings: Annotated[
        pathlib.Path | None,
        option(
            "A settings file, such as dynvid tune writes. Options given one by one win over it.",
            metavar="FILE",
            default="none",
        ),
    ] = None,
    options: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            name="set",
            help="Options of the system, such as partition=pixel for dyncnn, at=model.4 for "
            "ifmdc, policy=flow_magnitude for dvsnet or clip=stream for dynamic-inference; a name "
            "that it does not know is answered with those that it does.",
            metavar="NAME=VALUE",
            help_behavior_hint="(default: what a settings file says, else the system's own)",
        ),
    ] = (),
    threshold: Annotated[
        float | None,
        option(
            "How much a pixel must differ from the one that the caches were computed from to count "
            "as changed, in grey levels of 0..255. A camera's noise raises it up to three times. 0 "
            "recomputes all that differs at all. For "
            "dvsnet: the expected confidence below which a region is segmented anew, in percent, "
            "or what its other policies compare, in their units. For flow-detection: the share of "
            "inconsistent features above which a frame becomes a key frame, or with --set "
            "key=every the frames between two. For dynamic-inference: how sure a checkpoint must "
            "be to stop, of 0..1.",
            metavar="NUMBER",
            default="8; dyncnn: 20; ifmdc: 0; dvsnet: 92; flow-detection: 0.2; dynamic-inference: "
            "0.9",
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        option(
            "A value that was computed again replaces the kept one only where it moved by at least "
            "this much, in units of its layer's root mean square on the first frame. 0 is exact; "
            "more saves more.",
            metavar="RMS",
            default="0.5; ifmdc: 0; dvsnet: only with --set incremental=true; flow-detection: none",
        ),
    ] = None,
    target: Annotated[
        float | None,
        option(
            "What is promised: how far results are to agree with those of the whole network, of "
            "0..1, as for dynvid tune. The settings are tuned for it on the first "
            f"{TUNED_FRAMES} frames, which takes a minute or more, and audited from there.",
            metavar="SHARE",
            default=f"no promise; {TARGET:g} where --audit is given",
        ),
    ] = None,
    audit: Annotated[
        int | None,
        option(
            "Compute every so many frames as a whole too, log how far the results agree, and move "
            "the settings: tighter below the target, looser when safely above. Costs one whole "
            "frame each time.",
            metavar="N",
            default=f"no audits; {EVERY} where --target is given",
        ),
    ] = None,
    max_frames: MaxFramesOption = None,
    stride: Annotated[int, option("Take every so many frames only.", metavar="N", default="1")] = 1,
    limits: LimitsOption = 1.0,
    compare_dense: Annotated[
        bool,
        option(
            "Also run the whole network on every frame, in turns, and report the speed-up, the "
            "difference in the outputs and how far the results agree. Takes longer.",
            default="off",
        ),
    ] = False,
    out: Annotated[
        pathlib.Path | None,
        option(
            "The folder to write into; made if missing. Results of an earlier run are replaced.",
            metavar="DIR",
            default="runs/ and the source's name",
        ),
    ] = None,
    save: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Of detectors: what else to write beside detections.jsonl: "
            + ", ".join(FORMATS)
            + ".",
            metavar="FORMAT",
            help_behavior_hint="(default: nothing)",
        ),
    ] = (),
    no_video: Annotated[bool, option("Write no annotated.mp4.", default="off")] = False,
    no_inset: Annotated[
        bool, option("Draw no mask of changed pixels over the frame.", default="off")
    ] = False,
    quiet: Annotated[bool, option("Print nothing but warnings and errors.", default="off")] = False,
) -> int:
    """Run a network on a video, computing only what changed: detect objects, label pixels, ...

    Writes annotated.mp4 (results, the mask of changed pixels or the paths of regions, the work of
    every frame), detections.jsonl (what a detector found, a line a frame), report.png (work, time
    and similarity of every frame) and report.json (the same in numbers).

    Try:

    dynvid run

    dynvid run street.mp4 --model yolox_nano.onnx --compare-dense

    dynvid run street.mp4 --model yolo11n.onnx --classes person,car --conf 0.4 --save mot

    dynvid run street.mp4 --model yolov5n.pt --settings tuned.json

    dynvid run street.mp4 --model yolov5n.pt --target 0.9

    dynvid run street.mp4 --model yolov5n.pt --settings tuned.json --audit 50

    dynvid run drive.mp4 --model deeplab.onnx --task segmentation --names cityscapes.txt

    dynvid run street.mp4 --model yolov5n.pt --system ifmdc --set at=model.4 levels=33

    dynvid run drive.mp4 --system dvsnet --threshold 90

    dynvid run street.mp4 --model yolov5n.pt --system flow-detection

    dynvid run clip.mp4 --system dynamic-inference --threshold 0.8

    dynvid run rtsp://camera/1 --model yolov5n.pt --max-frames 500 --out runs/door
    """
    options_of: dict[str, Any] = {
        name: value for name, value in locals().items() if name != "sources"
    }
    sources = expand_sources(sources)
    if len(sources) > 1:
        root = pathlib.Path("runs") if out is None else out
        folders = _folders(root, sources)
        for one, folder in zip(sources, folders, strict=True):
            given: dict[str, Any] = {**options_of, "out": folder}
            if code := run((one,), **given):
                return code
        return 0
    source = sources[0] if sources else None
    if threshold is not None:
        check_number("--threshold", threshold)
    if truncation is not None:
        check_number("--truncation", truncation)
    check_count("--max-frames", max_frames)
    if target is not None:
        check_number("--target", target, most=0.99)
    check_count("--audit", audit)
    file = None if settings is None else read_settings(settings)
    check_count("--stride", stride)
    if unknown := sorted(set(save) - set(FORMATS)):
        raise UsageError(f"--save must be of {', '.join(FORMATS)}; got {unknown[0]!r}")
    class_names = read_class_names(names)
    chosen = choose_system(system, file)
    asked = choose_task(chosen, file, task=task, head=head)
    asked_for = parse_options(options) | _given(threshold=threshold, truncation=truncation)
    given = choose_options(chosen, file, asked_for)
    if chosen.name != "incremental" and not (target is None and audit is None):
        raise UsageError(
            f"--target and --audit are for --system incremental; got --system {chosen.name}"
        )
    if target is not None and (named := [n for n in ("threshold", "truncation") if n in asked_for]):
        raise UsageError(
            f"--target chooses threshold and truncation itself; got --{named[0]} beside it"
        )
    if compare_dense and not chosen.frame_by_frame:
        raise UsageError(
            f"--compare-dense is for systems with a result a frame; got --system {chosen.name}, "
            "whose report compares with full inference anyway"
        )
    flow_guided = chosen.flow_guided and model is None
    video = open_source(source, max_frames=max_frames, task=asked, flow_guided=flow_guided)
    loaded = load_model(
        model,
        frame_size=video.size,
        task=asked,
        head=head,
        pixels=pixels,
        class_names=class_names,
        size=None if size is None else parse_network_size(size),
        limits=parse_limits(limits),
        flow_guided=flow_guided,
    )
    loaded = _of_interest(loaded, conf=conf, iou=iou, classes=classes, save=save)
    if file is not None:
        file.check_model(loaded)
    if isinstance(loaded.task, Segmentation):
        percent = chosen.score_unit(given) == "%"
        loaded = dataclasses.replace(loaded, task=dataclasses.replace(loaded.task, percent=percent))
    out = pathlib.Path("runs", source_name(video.name)) if out is None else out

    console = Console(highlight=False, quiet=quiet)
    by = "" if chosen.name == "incremental" else f" by {chosen.name}"
    console.print(
        f"{video.name}, {size_text(video.size)}; {loaded.name} ({loaded.kind}){by} at "
        f"{size_text(loaded.network_size(video.size))}; compiling ...",
        soft_wrap=True,
    )
    measures = RunMeasures()
    work: collections.deque[float] = collections.deque(maxlen=_SHOWN_FRAMES)
    last: Any = None
    interrupted = False
    with (
        Interrupts() as interrupts,
        output_folder(out) as folder,
        recorded_warnings() as messages,
    ):
        if file is not None and (doubt := file.doubt(video.size)):
            warn(doubt)
            messages.append(doubt)
        with contextlib.closing(iter(video)) as frames:  # type: ignore[type-var]
            if stride > 1:
                frames = itertools.islice(frames, 0, None, stride)
            if (order := _order(chosen, given)) is not None:
                frames = iter(clip_frames(frames, order, name=video.name))
            most = TUNED_FRAMES if target is not None and file is None else 0
            first = list(itertools.islice(frames, max(most, chosen.calibration_frames)))
            promised: dict[str, Any] = {}
            if most:
                tuning = tune_model(loaded, first, target=target or TARGET, options=given)
                promised = {"tuning": promise(tuning, target=target or TARGET, frames=len(first))}
                given |= chosen_settings(tuning)
            video_function = _build(chosen, given, loaded, first)
            if target is not None or audit is not None:
                video_function = _audited(
                    video_function, loaded, video.size, target=target, every=audit
                )
            results = run_video(
                loaded.task,
                video_function,
                itertools.chain(first, frames),
                params=loaded.params,
                dense=loaded.on_frames if compare_dense else None,
            )
            fps = None if video.fps is None else video.fps / stride
            length = None if video.length is None else -(-video.length // stride)
            with contextlib.ExitStack() as writers:
                writer = found = None
                detection = loaded.task if isinstance(loaded.task, Detection) else None
                if not no_video:
                    path = folder / "annotated.mp4"
                    writer = writers.enter_context(VideoWriter(path, fps=fps or FPS))
                if detection is not None:
                    found = writers.enter_context(
                        DetectionWriter(
                            folder,
                            class_names=detection.class_names,
                            fps=video.fps,
                            formats=save,
                        )
                    )
                try:
                    with (
                        contextlib.closing(results),  # type: ignore[type-var]
                        progress(length, quiet=quiet) as advance,
                    ):
                        for result in results:
                            work.append(result.measures.mac_fraction)
                            picture = None
                            if writer is not None:
                                picture = _picture(loaded, result, list(work), inset=not no_inset)
                            with interrupts.held():  # a frame is kept whole or not at all
                                if writer is not None and picture is not None:
                                    writer.write(picture)
                                if found is not None and detection is not None:
                                    rows = detection.rows(result.result)
                                    found.write(stride * measures.frames, rows)
                                measures.add(result.measures)
                                last = result.result
                            advance(result.measures)
                except KeyboardInterrupt:
                    if not measures.frames:
                        raise
                    interrupted = True
                interrupts.hold()
        report = measures.summary(agreement=_agreement_key(loaded)) | {
            "source": video.name,
            "frame_size": list(video.size),
            "model": loaded.name,
            "task": loaded.task.name,
            "head": loaded.head,
            "network_size": list(loaded.network_size(video.size)),
            "system": chosen.name,
            "options": given,
            **{name: given[name] for name in ("threshold", "truncation") if name in given},
            "device": f"{jax.devices()[0].device_kind}, {platform.machine()}",
            "jax": jax.__version__,
            "dynvid": dynvid.__version__,
            "interrupted": interrupted,
            "warnings": messages,
            "medians_of": measures.median_of,
            "frames_per_point": measures.frames_per_point,
            "per_frame": _per_frame(measures),
        }
        report |= promised | _of_exits(last, loaded)
        if kept := measures.audits.summary():
            report["audit"] = {"every": audit or EVERY, "target": target or TARGET} | kept
        (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        title = f"{video.name}: {loaded.name}"
        _plot(folder / "report.png", measures, chosen, title=title, target=target or TARGET)
    console.print(_summary(report, loaded, chosen, unit=chosen.score_unit(given)))
    written = [] if no_video else ["annotated.mp4"]
    written += ["detections.jsonl"] if isinstance(loaded.task, Detection) else []
    names_of = ", ".join([*written, "report.png"])
    console.print(f"{names_of} and report.json are in {out}", soft_wrap=True)
    return 130 if interrupted else 0


def _folders(root: pathlib.Path, sources: Sequence[str]) -> list[pathlib.Path]:
    """A folder for each source, numbered where two are called alike."""
    names = [source_name(source) for source in sources]
    return [
        root / (name if names.count(name) == 1 else f"{name}_{1 + names[:k].count(name)}")
        for k, name in enumerate(names)
    ]


def _of_interest(
    model: Model,
    *,
    conf: float | None,
    iou: float | None,
    classes: str | None,
    save: tuple[str, ...],
) -> Model:
    """The model, with what is wanted of its detections.

    Raises:
      UsageError: It is no detector.
    """
    asked = {"--conf": conf, "--iou": iou, "--classes": classes, "--save": save or None}
    given = [name for name, value in asked.items() if value is not None]
    if not isinstance(model.task, Detection):
        if given:
            raise UsageError(f"{given[0]} is for detectors; {model.name} is for {model.task.name}")
        return model
    wanted = None if classes is None else [name for name in classes.split(",") if name.strip()]
    task = chosen_detection(model.task, conf=conf, iou=iou, classes=wanted)
    return dataclasses.replace(model, task=task)


def _picture(
    model: Model, result: FrameResult, work: list[float], *, inset: bool = True
) -> np.ndarray:
    """Everything there is to show of a frame."""
    picture = model.task.draw(result.frame, result.result)
    carried = result.propagation
    if carried is None:
        return annotate_frame(picture, changed=result.changed if inset else None, work=work)
    return annotate_frame(
        picture,
        changed=carried.update_mask if inset else None,
        motion=None if carried.key else carried.motion,
        key=carried.key,
        work=work,
    )


def _given(**flags: float | None) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _build(
    system: System, options: dict[str, Any], model: Model, first: Iterable[np.ndarray]
) -> VideoFunction:
    """The system on a model, traced on the first frame: misfits are reported before any work.

    Raises:
      UsageError: They do not fit.
    """
    frames = [jnp.asarray(frame)[None] for frame in first]
    try:
        video_function = system.build(model, frames, **options)
        state, _ = jax.eval_shape(video_function.init, model.params, frames[0])
        jax.eval_shape(video_function.step, model.params, state, frames[0])
    except (ValueError, TypeError) as error:
        raise UsageError(f"--system {system.name}: {one_line(error)}") from error
    return video_function


def _audited(
    video_function: VideoFunction,
    model: Model,
    frame_size: tuple[int, int],
    *,
    target: float | None,
    every: int | None,
) -> VideoFunction:
    """The system with an audit by its task's own results."""

    def decode(params: Params, outputs: Output) -> Result:
        return model.task.decode(params, outputs, frame_size=frame_size)

    return dynvid.audited(
        video_function,
        every=every or EVERY,
        decode=decode,
        metric=model.task.compare,
        target=target or TARGET,
    )


def _order(system: System, options: dict[str, Any]) -> tuple[int, ...] | None:
    """The frames of a clip in the order in which a system wants them.

    Raises:
      UsageError: There is none for these options.
    """
    try:
        return system.clip(options)
    except ValueError as error:
        raise UsageError(f"--system {system.name}: {one_line(error)}") from error


def _of_exits(result: Any, model: Model) -> dict[str, Any]:
    """Where a system with checkpoints stopped, and what that saved; nothing of others."""
    exits = getattr(result, "exits", None)
    if exits is None:
        return {}
    confidences, macs = np.asarray(exits.confidences), np.asarray(exits.macs)
    reached = int(np.isfinite(confidences).sum())
    at = int(exits.exit) if exits.exit >= 0 else reached - 1
    spent = float(macs[at]) if reached else 0.0
    best = int(result.classes[0])
    return {
        "class": class_name(getattr(model.task, "class_names", ()), best) if reached else None,
        "checkpoint": int(exits.exit) + 1 if exits.exit >= 0 else None,
        "checkpoints": len(macs),
        "confidences": [round(float(c), 4) if np.isfinite(c) else None for c in confidences],
        "macs": spent,
        "full_macs": float(macs[-1]),
        "saved": 1 - spent / max(float(macs[-1]), 1.0),
    }


def _agreement_key(model: Model) -> str:
    return f"{model.task.name.replace('-', '_')}_agreement"


def _per_frame(measures: RunMeasures) -> dict[str, list[float | None]]:
    """Every series that was measured, by name, with None for what is missing in it."""
    series = {
        name: [None if math.isnan(value) else value for value in values]
        for name, values in measures.series().items()
    }
    return {name: values for name, values in series.items() if any(v is not None for v in values)}


def _plot(
    path: pathlib.Path, measures: RunMeasures, system: System, *, title: str, target: float
) -> None:
    series = measures.series()
    audited = bool(measures.audits.summary())
    compared = not all(math.isnan(value) for value in series["dense_seconds"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a single frame has no times at all
        plot_report(
            path,
            mac_fraction=[float("nan"), *series["mac_fraction"][1:]],  # the first frame is dense
            seconds=series["seconds"],
            similarity=series["similarity"],
            dense_seconds=series["dense_seconds"] if compared else None,
            agreement=series["agreement" if compared else "audit"] if compared or audited else None,
            factor=series["factor"] if audited else None,
            target=target if audited else None,
            frames_per_point=measures.frames_per_point,
            title=title,
            name=system.name,
            kept=system.kept,
        )


def _summary(report: dict[str, Any], model: Model, system: System, *, unit: str) -> Table:
    """What the report says, for people."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))

    def row(key: str, text: str, note: str = "") -> None:
        if report.get(key) is not None:
            table.add_row(text.format(report[key]), note)

    row("frames", "{} frames")
    if report.get("checkpoints"):
        row("class", "{}", "the answer")
        row("checkpoint", "stopped at checkpoint {} of " + str(report["checkpoints"]))
        row(
            "saved", "{:.1%} of the multiply-accumulates saved", "against full inference, last clip"
        )
    else:
        note = "mean over all but the first frame"
        row("mac_fraction", "{:.1%} of the multiply-accumulates", note)
    row("scene_similarity", "{:.2%} of the " + system.kept)
    row("score", "{:.3g}" + unit + " mean score", "what was decided by")
    if report["seconds_per_frame"] is not None:
        table.add_row(f"{1e3 * report['seconds_per_frame']:.1f} ms a frame", "median, network only")
    if kept := report.get("audit"):
        said = f"{model.task.agreement}; asked for {kept['target']:g}"
        if kept["agreement"] is None:
            table.add_row("no agreement", f"{kept['audits']} audits without any results")
        else:
            table.add_row(f"{kept['agreement']:.3f} agreement of {model.task.results}", said)
            worst = f"of {kept['window']} audits in a row; {kept['audits']} in all"
            table.add_row(f"{kept['worst_window']:.3f} at worst", worst)
        table.add_row(f"settings times {kept['factor']['last']:.3g}", "in the end")
        cost = f"{kept['mac_fraction']:.1%} of the multiply-accumulates"
        table.add_row(cost, "for the audits, of those above")
    if report.get("speedup") is not None:
        table.add_row(f"{1e3 * report['dense_seconds_per_frame']:.1f} ms a frame densely", "median")
        row("speedup", "{:.2f} times as fast")
        row("fraction_of_ideal", "{:.0%} of the ideal", "speed-up times share of work")
        row(
            _agreement_key(model),
            "{:.3f} agreement of " + model.task.results,
            model.task.agreement,
        )
        if (largest := report["max_abs_output_at_reference"]) is not None:
            note = f"from dense on the reference frames, largest output {largest:.3g}"
            if system.name == "incremental":  # others differ from dense for other reasons
                exact = report["truncation"] == 0
                note += "; rounding only" if exact else "; what --truncation allows"
            row("max_abs_difference_at_reference", "{:.2g} largest difference in raw outputs", note)
    return table
