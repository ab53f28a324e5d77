"""Any detector as a feature network and a detection network: flow-guided with nothing trained."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from dynvid.graph.split import Features, split
from dynvid.graph.trace import trace
from dynvid.types import Output, Params


class SplitDetector(NamedTuple):
    """A detector cut in two.

    Attributes:
      features: N_feat, `features(params, images) -> maps`, a mapping by name.
      detect: N_det, `detect(params, maps)`: the detector's raw outputs.
      at: Where it was cut; empty where its outputs are the features.
    """

    features: Callable[[Params, jax.Array], dict[str, jax.Array]]
    detect: Callable[[Params, dict[str, jax.Array]], Output]
    at: tuple[str, ...]


def split_detector(
    fn: Callable[[Params, jax.Array], Output],
    params: Params,
    image: jax.Array | jax.ShapeDtypeStruct,
    *,
    at: str | Sequence[str] | None = None,
) -> SplitDetector:
    """Cuts a detector in two at feature maps that it names, for `flow_detection`.

    As High Performance Video Object Detection (2018, section 3) cuts R-FCN: features are carried
    from frame to frame, and the detection network runs on every frame. All maps that cross the cut
    are carried (`dynvid.split`).

    Args:
      fn: `fn(params, images)` with images `(S, H, W, C)`, any outputs.
      params: Its parameters, or their shapes.
      image: What it takes, `(S, H, W, C)`, or its shape and dtype; of any number of streams.
      at: A name, or several; the last one that `fn` gives where None. A detector that names nothing
        has its outputs carried.

    Returns:
      `SplitDetector`, for images of this size and dtype.

    Raises:
      ValueError: `fn` has no such name.

    >>> import jax.numpy as jnp
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def fn(gain, x):
    ...     return checkpoint_name(x * gain, "scaled").sum((1, 2))
    >>> parts = split_detector(fn, jnp.float32(3), jnp.ones((1, 4, 4, 2)))
    >>> features = parts.features(jnp.float32(3), jnp.ones((1, 4, 4, 2)))
    >>> parts.at, {name: x.shape for name, x in features.items()}
    (('scaled',), {'scaled': (1, 4, 4, 2)})
    >>> parts.detect(jnp.float32(3), features)
    Array([[48., 48.]], dtype=float32)
    """
    if at is None:
        shapes = jax.eval_shape(lambda x: x, (params, image))
        nodes = [node for node in trace(fn, *shapes).nodes if node.primitive.name == "name"]
        names = [n.params["name"] for n in nodes if n.outputs[0].frame_dependent]
        at = tuple(names[-1:])
    at = (at,) if isinstance(at, str) else tuple(at)
    if not at:
        return _uncut(fn, params, image)
    front, back = split(fn, at=at)

    def features(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        found = front(params, images)
        maps = dict(found.others)
        for name, value in found.named.items():
            if isinstance(value, tuple):
                maps |= {f"{name}:{i}": x for i, x in enumerate(value)}
            else:
                maps[name] = value
        return maps

    def detect(params: Params, maps: dict[str, jax.Array]) -> Output:
        streams = next(iter(maps.values())).shape[0]
        images = jax.ShapeDtypeStruct((streams, *image.shape[1:]), image.dtype)
        crossing = jax.eval_shape(front, params, images)
        named = {
            name: tuple(maps[f"{name}:{i}"] for i in range(len(value)))
            if isinstance(value, tuple)
            else maps[name]
            for name, value in crossing.named.items()
        }
        others = {name: maps[name] for name in crossing.others}
        return back(params, Features(named, others, images))

    return SplitDetector(features, detect, at)


def _uncut(
    fn: Callable[[Params, jax.Array], Output],
    params: Params,
    image: jax.Array | jax.ShapeDtypeStruct,
) -> SplitDetector:
    """A detector whose outputs are what is carried."""
    structure = jax.tree.structure(jax.eval_shape(fn, params, image))

    def features(params: Params, images: jax.Array) -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(fn(params, images))
        return {f"output_{i:03}": x for i, x in enumerate(leaves)}

    def detect(params: Params, maps: dict[str, jax.Array]) -> Output:
        del params
        return jax.tree.unflatten(structure, [maps[name] for name in sorted(maps)])

    return SplitDetector(features, detect, ())
