"""Flow-guided video object detection measured: Table 1 and Figures 2 to 7, and beyond them.

    uv run --extra test --extra train python -m experiments.flow_detection [CASE ...]
        [--weights SEED_0.npz SEED_1.npz SEED_2.npz]

Figures of a training that are there already stay, so that a run that was ended goes on where it
was; `--again` measures anew.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import track

import dynvid
from dynvid.ops.schedule import oracle as worth_it
from dynvid.systems.flow_detection import FlowDetectionParams
from experiments.bench import DATA, console
from experiments.bench.results import machine, read_json, write_json
from experiments.flow_detection import pictures, real
from experiments.flow_detection.evaluate import (
    Contestant,
    compete,
    figures,
    frame_precision,
    joined,
    judged,
    mean_average_precision,
    stepper,
)
from experiments.flow_detection.refreshing import refreshing
from experiments.flow_detection.subjects import (
    Clips,
    detect,
    load_params,
    moving_objects,
    networks,
    panning,
    system,
    varied,
)

Case = Callable[[FlowDetectionParams, "Options"], Any]

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results.json"
WEIGHTS = pathlib.Path("runs/flow_detection/networks.npz")

PERIODS = (2, 5, 10, 20)
GAMMAS = (0.02, 0.05, 0.1)
TAU, GAMMAS_OF_TAU = 0.9, (0.15, 0.25, 0.4)
"""Where Q calls a quarter of positions poor instead of a twentieth."""

TAUS = (-math.inf, 0.0, 0.6, 0.9, 1.2)
MARGINS = (0.0, 0.05, 0.15)
WINDOW = (5, 5)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, of which trainings."""

    cases: tyro.conf.Positional[tuple[str, ...]] = ()
    """The cases; all where none is named."""
    weights: tuple[pathlib.Path, ...] = (WEIGHTS,)
    """What `experiments.flow_detection.train` wrote, one for each seed."""
    clips: int | None = None
    """How many clips at most, to try something; all where left out."""
    again: bool = False
    """Measure what is there already, too."""


def _some(clips: Clips, options: Options) -> Clips:
    return clips if options.clips is None else clips.first(options.clips)


def _rows(params: FlowDetectionParams) -> dict[str, Contestant]:
    """The six methods, each at several speeds; names are those of the tables.

    C1 is c2 whose consistency is never too poor, and c2 is c3 whose key frames come at fixed
    distances (tests/systems/flow_detection has both bit for bit).
    """
    adaptive, never = system("c3"), {"consistency_threshold": -math.inf}
    rows = {
        "per-frame": Contestant(system("per-frame"), params),
        "FGFA": Contestant(system("FGFA", window=WINDOW), params, late=WINDOW[1]),
    }
    rows |= {f"DFF, l = {p}": Contestant(system("DFF"), params, {"threshold": p}) for p in PERIODS}
    rows |= {f"c1, l = {p}": Contestant(adaptive, params, never, period=p) for p in PERIODS}
    rows |= {f"c2, l = {p}": Contestant(adaptive, params, period=p) for p in PERIODS}
    rows |= {f"c3, gamma = {g:g}": Contestant(adaptive, params, {"threshold": g}) for g in GAMMAS}
    more = {"consistency_threshold": TAU}
    rows |= {
        f"c2 of tau {TAU:g}, l = {p}": Contestant(adaptive, params, more, period=p)
        for p in PERIODS[1:]
    }
    return rows | {
        f"c3 of tau {TAU:g}, gamma = {g:g}": Contestant(adaptive, params, more | {"threshold": g})
        for g in GAMMAS_OF_TAU
    }


def methods(params: FlowDetectionParams, options: Options) -> Any:
    """The six methods, speed against mAP (Table 1, Figures 3, 4, 6 and 7)."""
    clips = _some(moving_objects(), options)
    contestants = _rows(params)
    contestants |= {
        f"c1 without recursion, l = {p}": dataclasses.replace(
            contestants[f"c1, l = {p}"], recursive=False
        )
        for p in PERIODS[1:3]
    }
    return judged(compete(contestants, clips.frames), clips, base="per-frame")


def ambiguity(params: FlowDetectionParams, options: Options) -> Any:
    """What c1 and c2 propagate: as Algorithm 1 has it, or aggregated features (5.1 and 5.2)."""
    clips = _some(moving_objects(), options)
    rows = _rows(params)
    video = system("c3", propagate="aggregated")
    contestants = {"per-frame": rows["per-frame"]}
    for name in ("c1, l = 5", "c1, l = 10", "c2, l = 5", "c2, l = 10"):
        contestants |= {
            name: rows[name],
            f"{name}, aggregated features": dataclasses.replace(rows[name], video=video),
        }
    return judged(compete(contestants, clips.frames), clips, base="per-frame")


def oracle(params: FlowDetectionParams, options: Options) -> Any:
    """An oracle's key frames (Figure 7): both are tried, and what detects better is taken."""
    clips = _some(moving_objects(), options).first(6)
    one = Contestant(system("c3"), params)
    step = stepper(one.video)

    def tried(state: Any, frame: jax.Array, gamma: float) -> Any:
        state = jax.tree.map(jnp.copy, state).with_settings(threshold=gamma)
        return step(params, state, frame)

    results = {}
    for margin in MARGINS:
        found, work = [], []
        for i in track(range(clips.frames.shape[1]), "oracle", console=console, transient=True):
            state, _ = one.start(jnp.asarray(clips.frames[:1, i]))
            found.append([])
            for t, frame in enumerate(clips.frames[1:, i], 1):
                ways = [tried(state, jnp.asarray(frame)[None], gamma) for gamma in (-1.0, 1.0)]
                truth = (x[t, i][None] for x in (clips.boxes, clips.classes, clips.present))
                truth = tuple(map(jnp.asarray, truth))
                computed, kept = (frame_precision(way[1], *truth) for way in ways)
                state, said = ways[0 if worth_it(computed, kept, margin) else 1]
                found[-1].append(jax.tree.map(np.asarray, said))
                work.append(figures(state))
        results[f"oracle, margin {margin:g}"] = mean_average_precision(joined(found), clips) | {
            "keys": round(float(np.mean([w["key"] for w in work])), 4),
            "macs": round(float(np.mean([w["macs"] for w in work])), 4),
        }
    contestants = {
        name: c for name, c in _rows(params).items() if name.startswith(("per-frame", "c3"))
    }
    return results | judged(compete(contestants, clips.frames), clips, base="per-frame")


def adaptive(params: FlowDetectionParams, options: Options) -> Any:
    """Key frames where they are needed: clips with cuts, still lives and fast motion."""
    clips = _some(varied(), options)
    contestants = {
        name: c for name, c in _rows(params).items() if name.startswith(("per-frame", "c2", "c3"))
    }
    return judged(compete(contestants, clips.frames), clips, base="per-frame")


def pan(params: FlowDetectionParams, options: Options) -> Any:
    """Beyond the paper: a camera that pans, where the difference of frames says nothing."""
    clips = _some(panning(), options)
    parts = networks()

    def whole(params: FlowDetectionParams, frames: jax.Array) -> Any:
        return detect(params.detection, parts.features(params.features, frames))

    plain = dynvid.incremental(whole, threshold=15, truncation=0.5)
    residual = system("c3", consistency="residual")
    video = refreshing(parts.features, detect, parts.flow, reach="cover")
    contestants = {
        "per-frame": Contestant(system("per-frame"), params),
        "c3": Contestant(system("c3"), params),
        "dynvid.incremental": Contestant(plain, params),
    }
    contestants |= {
        f"c3 by residual {t:g}": Contestant(residual, params, {"consistency_threshold": t})
        for t in (8.0, 15.0)
    }
    contestants |= {
        f"refreshing, {t:g}": Contestant(video, params, {"threshold": t}) for t in (5.0, 8.0, 15.0)
    }
    return judged(compete(contestants, clips.frames), clips, base="per-frame")


def area(params: FlowDetectionParams, options: Options) -> Any:
    """The update area on frames (Figure 2)."""
    clips = moving_objects().first(2)
    return pictures.draw_areas(Contestant(system("c3"), params), clips, FOLDER / "figure2.png")


def share(params: FlowDetectionParams, options: Options) -> Any:
    """How much is updated (Figure 5), by tau; the paper trains with one lambda after another."""
    clips = _some(moving_objects(), options)
    contestants = {"per-frame": Contestant(system("per-frame"), params)}
    contestants |= {
        f"c2, tau = {tau:g}": Contestant(
            system("c3"), params, {"consistency_threshold": tau}, period=10
        )
        for tau in TAUS
    }
    return judged(compete(contestants, clips.frames), clips, base="per-frame")


def motion(params: FlowDetectionParams, options: Options) -> Any:
    """What motions leave unexplained on real frames."""
    del params, options
    return real.motions()


def agreement(params: FlowDetectionParams, options: Options) -> Any:
    """Real frames, nothing trained: YOLOv5n and SPyNet, agreement with per-frame detection."""
    del params, options
    return real.agreement()


SEEDED: dict[str, Case] = {
    case.__name__: case for case in (methods, share, oracle, adaptive, pan, ambiguity)
}
OF_ONE: dict[str, Case] = {case.__name__: case for case in (area,)}
UNTRAINED: dict[str, Case] = {case.__name__: case for case in (motion, agreement)}


def main(options: Options) -> None:
    """Runs cases and keeps their figures, those of others as they are."""
    cases = SEEDED | OF_ONE | UNTRAINED
    if unknown := [name for name in options.cases if name not in cases]:
        raise SystemExit(f"cases must be of {', '.join(cases)}; got {', '.join(unknown)}")
    chosen = options.cases or tuple(cases)
    if not (DATA / "weights").is_dir() and not UNTRAINED.keys().isdisjoint(chosen):
        console.print(f"[yellow]no videos and weights in {DATA}: synthetic clips only")
        chosen = tuple(name for name in chosen if name not in UNTRAINED)
    missing = [str(path) for path in options.weights if not path.is_file()]
    if missing and not UNTRAINED.keys() >= set(chosen):
        raise SystemExit(
            "weights must be files that experiments.flow_detection.train wrote; there is no "
            f"{', '.join(missing)}"
        )
    for name in chosen:
        weights = options.weights if name in SEEDED else options.weights[:1]
        for seed, path in enumerate(weights):
            if str(seed) in read_json(RESULTS).get(name, {}).get("seeds", {}) and not options.again:
                console.print(f"{name}, seed {seed}: there already")
                continue
            console.rule(f"{cases[name].__doc__} Seed {seed}.")
            found = cases[name](load_params(None if name in UNTRAINED else path), options)
            results = read_json(RESULTS)
            case = results.setdefault(name, {"seeds": {}})
            case["machine"] = machine()
            case["seeds"][str(seed)] = found
            write_json(RESULTS, results)
            console.print_json(data=found)
    pictures.main(FOLDER)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
