"""What DVSNet is tried on: synthetic drives with our own networks, CamVid with published ones."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.progress import track

from dynvid.data.camvid import CLASS_NAMES, CamVid
from dynvid.data.driving import driving_scene, render_drive
from dynvid.models.decision_network import DecisionNetwork
from dynvid.models.driving import load_driving_networks
from dynvid.models.espnet import espnet
from dynvid.models.modules import from_nnx
from dynvid.models.spynet import spynet_motion
from dynvid.ops.labels import best_classes
from dynvid.ops.regions import Regions, divide_frame
from dynvid.ops.warp import Motion, resize_motion
from dynvid.systems.dvsnet import DVSNetParams
from dynvid.training.checkpoints import Checkpoints
from dynvid.training.dvsnet import (
    BestState,
    confidence_scores,
    draw_pairs,
    train_decision,
    warped_loss,
)
from dynvid.training.loop import TrainState, fit, start, update_step
from dynvid.weights.espnet import load_espnet
from dynvid.weights.spynet import load_spynet
from experiments.bench import DATA, console

CALIBRATION = 50
"""Frames of the CamVid drive that are trained on; the 51 that follow are for judging."""

SPEED = 0.3
"""Metres a frame at cruise, at most: 16 km/h at the 15 frames a second of the others' pace."""

RUNS = pathlib.Path("runs/dvsnet")
"""Where decision networks of CamVid are kept between runs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video and its truth.

    Attributes:
      frames: `(T, 1, H, W, 3)` uint8.
      labels: `(T, 1, H, W)`; what is no class of the subject is not judged.
    """

    frames: jax.Array
    labels: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """Networks, and the videos that they are judged on.

    Attributes:
      name: What the tables call it.
      clips: The videos, none of which anything was trained on but the segmentation of CamVid.
      segment: `segment(params, images)`, logits.
      flow: `flow(params, current, key)`, a `Motion` on their grid.
      decide: `decide(params, features)`, percent.
      params: Of the three.
      classes: How many there are to be judged.
      grid: How regions are divided by default, (rows, columns): what `decide` learned on.
      overlap: What they overlap by default, pixels.
    """

    name: str
    clips: tuple[Clip, ...]
    segment: Callable[..., Any]
    flow: Callable[..., Any]
    decide: Callable[..., Any] | None
    params: DVSNetParams
    classes: int
    grid: tuple[int, int]
    overlap: int


def drives(count: int = 12, frames: int = 20, *, speed: float = SPEED) -> Subject:
    """Synthetic drives of 240x320 and the networks that come with the package."""
    networks = load_driving_networks()

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scene_key, time_key = jax.random.split(key)
        drive = driving_scene(scene_key, noise=3.0, speed=speed)
        first = jax.random.randint(time_key, (), 0, 1 << 20)
        clip = jax.lax.map(lambda t: render_drive(drive, first + t), jnp.arange(frames))
        return clip.frame[:, None], clip.labels[:, None]

    # Other keys than train.py's: drives that no network has seen.
    keys = [jax.random.fold_in(jax.random.key(20261121), i) for i in range(count)]
    shown = track(keys, "drawing drives", console=console, transient=True)
    return Subject(
        name="synthetic drives",
        clips=tuple(Clip(*draw(key)) for key in shown),
        segment=networks.segment,
        flow=networks.flow,
        decide=networks.decide,
        params=DVSNetParams(*networks.params),
        classes=11,
        grid=(2, 2),
        overlap=16,
    )


@functools.cache
def read_camvid() -> tuple[jax.Array, jax.Array]:
    """The drive's frames `(101, 1, 360, 480, 3)` and labels `(101, 1, 360, 480)`."""
    drive = CamVid(DATA / "camvid")
    shown = track(drive, "reading CamVid", len(drive), console=console, transient=True)
    found = list(shown)
    frames = jnp.asarray(np.stack([frame.frame for frame in found])[:, None])
    return frames, jnp.asarray(np.stack([frame.labels for frame in found])[:, None])


def spynet_flow(stride: int) -> Callable[[Any, jax.Array, jax.Array], Motion]:
    """SPyNet's coarsest levels on the grid of logits; features averaged down, for decisions.

    `params` are its `levels` and the `scale` field: a 3x3 convolution of what its last level knows.
    """

    def flow(params: Any, current: jax.Array, key: jax.Array) -> Motion:
        levels, scale = params["levels"], params["scale"]
        motion = spynet_motion(levels, current, key, levels=len(levels))
        assert motion.features is not None
        field = jax.lax.conv_general_dilated(
            motion.features, scale["kernel"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        motion = motion._replace(scale=field + scale["bias"])
        rows, columns = (max(1, side // 3) for side in motion.features.shape[1:3])
        shape = (len(current), rows, columns, motion.features.shape[3])
        features = jax.image.resize(motion.features, shape, "linear", antialias=True)
        size = (current.shape[1] // stride, current.shape[2] // stride)
        return resize_motion(motion._replace(features=features), size)

    return flow


def camvid(
    *, levels: int = 1, grid: tuple[int, int] = (1, 2), overlap: int = 8, decisions: bool = True
) -> Subject:
    """The second half of the CamVid drive with ESPNet and SPyNet, decisions learned on the first.

    Args:
      levels: Of SPyNet, from the coarsest; 1 makes a motion for every 8 pixels of a region.
      grid: Of regions: a left and a right one by default, as the paper divides for DeepLab-v2,
        since ESPNet needs to see more than a quarter of a frame.
      overlap: Of regions, pixels.
      decisions: Whether a decision network is learned too, which takes longest.
    """
    frames, labels = read_camvid()
    _, espnet_params = load_espnet(DATA / "weights/espnet/espnet_p_2_q_8_camvid.pth")
    _, spynet_params = load_spynet(DATA / "weights/spynet")
    scores = jax.eval_shape(functools.partial(espnet, stride=2), espnet_params, frames[0]).shape[3]
    scale = {"kernel": jnp.zeros((3, 3, 21, scores)), "bias": jnp.ones(scores)}
    subject = Subject(
        name="CamVid, ESPNet",
        clips=(Clip(frames[CALIBRATION:], labels[CALIBRATION:]),),
        segment=functools.partial(espnet, stride=2),
        flow=spynet_flow(2),
        decide=None,
        params=DVSNetParams(espnet_params, {"levels": spynet_params[:levels], "scale": scale}),
        classes=len(CLASS_NAMES) - 1,
        grid=grid,
        overlap=overlap,
    )
    flow = fine_tuned_flow(subject, frames[:CALIBRATION])
    subject = dataclasses.replace(subject, params=subject.params._replace(flow=flow))
    if not decisions:
        return subject
    decide, decision, _ = learned_decisions(subject, frames[:CALIBRATION])
    return dataclasses.replace(
        subject, decide=decide, params=subject.params._replace(decision=decision)
    )


def fine_tuned_flow(
    subject: Subject, frames: jax.Array, *, rounds: int = 6, updates: int = 40
) -> Any:
    """Flow and scale field trained further on a subject's frames, segmentation frozen (3.3).

    What warped logits are to say is what the segmentation network says of the current frame: that
    is what the confidence score counts, and it needs no labels. Little video is soon learned by
    heart: the parameters are kept that agree best on the last ten frames, over 1, 2, 4 and 8.

    Args:
      subject: Its networks.
      frames: `(T, 1, H, W, 3)`.
      rounds: How often the agreement is measured.
      updates: How many batches of two pairs there are in each.

    Returns:
      The flow network's parameters.
    """
    size = regions_of(subject).size
    video, held = frames[:-10, 0], frames[-10:]
    segmentation = subject.params.segmentation

    def loss(flow: Any, key: jax.Array) -> jax.Array:
        pairs = draw_pairs(key, video, video[..., 0], batch=2, size=size)
        expected = best_classes(subject.segment(segmentation, pairs.current), size)[0]
        logits = subject.segment(segmentation, pairs.key)
        return warped_loss(subject.flow(flow, pairs.current, pairs.key), logits, expected)

    @jax.jit
    def disagreement(flow: Any, current: jax.Array, key: jax.Array) -> jax.Array:
        networks = (subject.segment, subject.flow, (segmentation, flow))
        return 100 - confidence_scores(*networks, current, key)[1]

    def judged(flow: Any) -> jax.Array:
        pairs = [(held[i], held[i - gap]) for gap in (1, 2, 4, 8) for i in range(gap, len(held))]
        return jnp.mean(jnp.stack([disagreement(flow, *pair) for pair in pairs]))

    steps = rounds * updates
    rate = optax.warmup_cosine_decay_schedule(0.0, 1e-4, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    update = update_step(loss, optimizer)

    def one_round(state: BestState, key: jax.Array) -> tuple[BestState, jax.Array]:
        done = state.step + 1
        inner = TrainState(state.params, state.optimizer, state.step)  # whose memory goes
        for i in range(updates):
            inner, _ = update(inner, jax.random.fold_in(key, i))
        error = judged(inner.params)
        better = error < state.error
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), inner.params, state.best)
        least = jnp.minimum(error, state.error)
        return BestState(inner.params, inner.optimizer, done, best, least), least

    before = subject.params.flow
    first = start(jax.tree.map(jnp.copy, before), optimizer)
    seen = hashlib.sha256(np.asarray(video).tobytes() + bytes([rounds, updates])).hexdigest()[:12]
    root = jax.random.key(0)
    return fit(
        one_round,
        BestState(*first, best=before, error=judged(before)),
        lambda i: jax.random.fold_in(root, i),
        steps=rounds,
        checkpoints=Checkpoints(RUNS / f"{subject.name.replace(', ', '-')}-flow-{seen}", keep=1),
        every=1,
        name="flow and scale",
        measure="least disagreement",
        console=console,
    ).best


def regions_of(subject: Subject) -> Regions:
    """How a subject's frames are divided."""
    height, width = subject.clips[0].frames.shape[2:4]
    return divide_frame((height, width), grid=subject.grid, overlap=subject.overlap, multiple=8)


def pair_scores(
    subject: Subject, frames: jax.Array, regions: Regions, *, most: int = 9, both: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, confidence scores and gaps of all regions of pairs of a clip's frames.

    Args:
      subject: Its networks.
      frames: `(T, 1, H, W, 3)`.
      regions: How they are divided.
      most: Frames between both at most.
      both: Whether the key comes after the current frame too.
    """

    @jax.jit
    def score(params: Any, current: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = (regions.divide(x)[0] for x in (current, key))
        return confidence_scores(subject.segment, subject.flow, params, *parts)

    gaps = range(-most if both else 0, most + 1)
    pairs = [(i, i - g) for g in gaps for i in range(len(frames)) if 0 <= i - g < len(frames)]
    found = []
    for i, j in track(pairs, "scoring pairs", console=console, transient=True):
        features, scores = score(subject.params[:2], frames[i], frames[j])
        found.append((np.asarray(features), np.asarray(scores), np.full(len(scores), i - j)))
    features, scores, gap = (np.concatenate(part) for part in zip(*found, strict=True))
    return features, scores, gap


def decision_pairs(
    subject: Subject, frames: jax.Array
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Features and scores that decisions are learned from, and those of the last ten frames."""
    regions = regions_of(subject)
    # Farther apart than they are judged: a slow half of a drive is to teach what a fast one shows.
    videos = (frames[:-10], frames[:-10, :, :, ::-1])  # and mirrored
    drawn = [pair_scores(subject, video, regions, most=14, both=True)[:2] for video in videos]
    features, scores = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return (features, scores), pair_scores(subject, frames[-10:], regions)[:2]


def two_number_errors(
    training: tuple[np.ndarray, np.ndarray], judged: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """Mean absolute errors, percent, of lines in one number of SPyNet's last level.

    `score = a + b x` by least squares, or `log(100.5 - score) = a + b x` where named so: a score
    of 100 is finite then. x is the mean over a region of the motion's length, of the difference
    between the warped key image and the current one, or of that difference's root.

    Args:
      training: Features and scores, as of `pair_scores`, to find a and b.
      judged: Others to judge by, by name.

    Returns:
      For each line its error on each of `judged`.
    """

    def difference(features: np.ndarray) -> np.ndarray:
        return np.abs(features[..., -3:]).mean(-1)

    numbers = {
        "motion": lambda f: np.linalg.norm(f[..., -5:-3], axis=-1),
        "difference": difference,
        "root of the difference": lambda f: np.sqrt(difference(f)),
    }
    errors: dict[str, dict[str, float]] = {}
    for name, number in numbers.items():
        for logarithm in (False, True):
            x = number(training[0]).mean((1, 2))
            y = np.log(100.5 - training[1]) if logarithm else training[1]
            slope, offset = np.polyfit(x, y, 1)
            found = {}
            for part, (features, scores) in judged.items():
                line = offset + slope * number(features).mean((1, 2))
                expected = 100.5 - np.exp(line) if logarithm else line
                found[part] = float(np.abs(expected - scores).mean())
            errors[name + (", logarithm" if logarithm else "")] = found
    return errors


def learned_decisions(
    subject: Subject, frames: jax.Array, *, epochs: int = 60
) -> tuple[Callable[..., Any], Any, float]:
    """A decision network for a subject, its parameters and its error on the last ten frames."""
    training, validation = decision_pairs(subject, frames)
    network = DecisionNetwork(
        training[0].shape[3], grid=(6, 8), convolution=32, hidden=(64, 10), rngs=nnx.Rngs(0)
    )
    # Another network, division or training is another folder: nothing stale is read.
    digest = hashlib.sha256(training[0].tobytes() + training[1].tobytes()).hexdigest()[:12]
    folder = RUNS / f"{subject.name.replace(', ', '-')}-{epochs}-{digest}"
    state = train_decision(
        network, training, validation, epochs=epochs,
        checkpoints=Checkpoints(folder, keep=1), console=console,
    )  # fmt: skip
    decide, _ = from_nnx(network)
    return decide, state.best, float(state.error)
