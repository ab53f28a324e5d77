"""Small networks of every kind, with integer-valued or real parameters, and clips to run them on.

Integer-valued networks keep every intermediate sum far below 2**22, so that float32 arithmetic is
exact in any order and "equal" can mean bit for bit. Real ones have kernels whose absolute sum is 2
for each output, so that rounding errors do not grow from layer to layer.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from dynvid.models.modules import from_nnx

Draw = Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class Network:
    """A frame function and how to make parameters for it.

    Attributes:
      name: What test reports call it.
      fn: `fn(params, frames) -> outputs`.
      shapes: The shapes of its parameters, a pytree of tuples.
      frame: `(H, W, C)`.
      dtype: Of the frames.
      integer: Whether it is exact on integers.
    """

    name: str
    fn: Callable[[Any, jax.Array], Any]
    shapes: Any = ()
    frame: tuple[int, int, int] = (21, 27, 3)
    dtype: Any = np.float32
    integer: bool = True

    def params(self, *, integer: bool) -> Any:
        """Parameters from a fixed seed."""
        rng = np.random.default_rng(7)
        is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
        draw = _integer if integer else _real
        return jax.tree.map(lambda s: draw(rng, s), self.shapes, is_leaf=is_shape)


def _integer(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice(np.array([-1, 0, 0, 1], np.float32), shape)


def _real(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    w = rng.normal(size=shape)
    if len(shape) > 1:
        w = 2 * w / np.abs(w).sum(tuple(range(len(shape) - 1)), keepdims=True)
    return w.astype(np.float32)


def clip(network: Network, *, integer: bool, streams: int = 2, seed: int = 0) -> list[np.ndarray]:
    """Frames `(streams, H, W, C)` that show still scenes, pixels, borders, blobs, noise and cuts.

    Integer-valued frames hold 0 to 7 (uint8: any byte), real ones numbers in [0, 1]. The streams
    show different things at the same time.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = network.frame
    shape = (height, width, channels)

    def texture(*size: int) -> np.ndarray:
        if network.dtype == np.uint8:
            return rng.integers(0, 256, size).astype(np.uint8)
        noise = rng.integers(0, 8, size) if integer else rng.random(size)
        return noise.astype(network.dtype)

    def blob(frame: np.ndarray, row: int, column: int, size: int = 4) -> np.ndarray:
        frame = frame.copy()
        part = frame[row : row + size, column : column + size]
        part[...] = texture(*part.shape)
        return frame

    def noise(frame: np.ndarray) -> np.ndarray:
        moved = texture(*shape)
        few = rng.random((height, width, 1)) < 0.05
        return np.where(few, moved, frame).astype(frame.dtype)

    def flicker(frame: np.ndarray) -> np.ndarray:
        change = rng.integers(0, 2, shape) if integer or frame.dtype == np.uint8 else 0.01
        top = 255 if frame.dtype == np.uint8 else 7 if integer else 1
        return np.minimum(frame.astype(np.float32) + change, top).astype(frame.dtype)

    def lines(frame: np.ndarray) -> np.ndarray:
        frame = frame.copy()
        frame[-1], frame[:, 0] = texture(width, channels), texture(height, channels)
        return frame

    def still(frame: np.ndarray) -> np.ndarray:
        return frame

    def cut(frame: np.ndarray) -> np.ndarray:
        return texture(*frame.shape)

    events = [
        (still, still),
        (lambda f: blob(f, height // 2, width // 2, 1), still),
        (still, lambda f: blob(blob(f, 0, 0, 1), height - 1, width - 1, 1)),
        (lambda f: blob(f, 2, 3), lambda f: blob(f, height - 3, width - 5)),
        (lambda f: blob(f, 3, 5), still),
        (lambda f: blob(f, 0, width - 2, 1), lines),
        (noise, lambda f: blob(f, height // 3, 1)),
        (cut, still),
        (still, still),
        (flicker, flicker),
        (lambda f: blob(flicker(f), 5, 5), cut),
        (cut, cut),
        (still, lambda f: blob(f, height - 1, 0, 1)),
    ]
    frames = [texture(streams, *shape)]
    for event in events:
        # Further streams see the events in turn, each in its own order.
        frames.append(np.stack([event[s % 2](frames[-1][s]) for s in range(streams)]))
    return frames


# Building blocks.


def conv(x, w, stride: Any = 1, *, padding: Any = "SAME", dilation: Any = 1, groups=1, base=1):
    pair = lambda n: (n, n) if isinstance(n, int) else n  # noqa: E731
    return lax.conv_general_dilated(
        x,
        w,
        pair(stride),
        padding,
        rhs_dilation=pair(dilation),
        lhs_dilation=pair(base),
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def act(x):
    """A ReLU that keeps integers small."""
    return jnp.clip(x, 0, 7)


def pool(x, window=2, stride=2, padding: Any = "VALID", *, combine=lax.max, start=-jnp.inf):
    return lax.reduce_window(
        x, start, combine, (1, window, window, 1), (1, stride, stride, 1), padding
    )


def upsample(x, factor=2):
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


# The networks.


def chain(p, x):
    for w, b in p:
        x = act(conv(x, w) + b)
    return x


def vgg(p, x):
    x = act(conv(x, p[0]))
    x = pool(act(conv(x, p[1])))
    x = act(conv(x, p[2]))
    return pool(act(conv(x, p[3])))


def residual(p, x):
    x = act(conv(x, p["stem"], 2, padding=((3, 3), (3, 3))))
    x = pool(x, 3, 2, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = conv(act(conv(x, p["a"])), p["b"])
    x = act(x + y)
    y = conv(act(conv(x, p["c"], 2)), p["d"])
    return act(conv(x, p["skip"], 2) + y)


def inverted_residual(p, x):
    x = act(conv(x, p["stem"]))
    y = act(conv(x, p["expand"]))
    y = act(conv(y, p["depthwise"], groups=y.shape[-1]))
    # A mean over a power of two, so that integers stay exact.
    gate = jnp.clip(y.sum((1, 2)) * 2.0**-10 @ p["squeeze"], 0, 7)
    y = y * jnp.clip(gate @ p["excite"], 0, 1)[:, None, None, :]
    return x + conv(y, p["project"])


def dilated(p, x):
    x = act(conv(x, p[0], dilation=2))
    x = act(conv(x, p[1], dilation=(1, 3), padding=((0, 2), (5, 1))))
    return conv(x, p[2], (2, 1), dilation=(2, 1), padding="VALID")


def inception(p, x):
    a = act(conv(x, p[0]))
    b = act(conv(act(conv(x, p[1])), p[2]))
    c = act(conv(x, p[3]))
    d = act(conv(pool(x, 3, 1, "SAME"), p[4]))
    return conv(jnp.concatenate([a, b, c, d], -1), p[5])


def _unet(resize):
    def fn(p, x):
        first = act(conv(x, p[0]))
        second = act(conv(pool(first), p[1]))
        third = act(conv(pool(second), p[2]))
        y = jnp.concatenate([resize(third), second], -1)
        y = jnp.concatenate([resize(act(conv(y, p[3]))), first], -1)
        return conv(y, p[4])

    return fn


def _image_resize(method):
    def resize(x):
        n, h, w, c = x.shape
        return jax.image.resize(x, (n, 2 * h, 2 * w, c), method)

    return resize


def pyramid(p, x):
    c2 = act(conv(x, p["c2"], 2))
    c3 = act(conv(c2, p["c3"], 2))
    p3 = conv(c3, p["l3"])
    p2 = conv(c2, p["l2"]) + upsample(p3)
    heads = [conv(act(conv(level, p["smooth"])), p["head"]) for level in (p2, p3)]
    flat = jnp.concatenate([h.reshape(h.shape[0], -1, h.shape[-1]) for h in heads], 1)
    return {"levels": heads, "all": flat}


def nchw(p, x):
    x = jnp.transpose(x, (0, 3, 1, 2))
    numbers = ("NCHW", "OIHW", "NCHW")
    for w, b in p[:-1]:
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
        x = act(y + b[:, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    w, b = p[-1]
    x = lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (0, 2)), dimension_numbers=numbers)
    return x + b[:, None, None]


def transposed(p, x):
    x = act(conv(x, p[0], 2))
    x = act(lax.conv_transpose(x, p[1], (2, 2), "SAME"))
    x = act(conv(x, p[2], 2))
    x = act(conv(x, p[3], base=2, padding=((2, 1), (2, 1))))
    return conv(x, p[4], base=3, padding=((1, 1), (1, 1)))  # fewer taps than the stride: holes


def dense_head(p, x):
    x = pool(act(conv(x, p[0], 2)))
    logits = x.reshape(x.shape[0], -1) @ p[1]
    return {"logits": logits, "label": jnp.argmax(logits, -1)}


def focus(p, x):
    x = jnp.concatenate([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
    return conv(act(conv(x, p[0])), p[1])


def space_to_depth(p, x):
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = act(conv(x.reshape(n, h // 2, w // 2, 4 * c), p[0]))
    y = conv(x, p[1])
    n, h, w, c = y.shape
    y = y.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return conv(act(y.reshape(n, 2 * h, 2 * w, c // 4)), p[2])


def shuffle(p, x):
    x = act(conv(x, p[0]))
    x = act(conv(x, p[1], groups=4))
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 4, c // 4).swapaxes(3, 4).reshape(n, h, w, c)
    left, right = jnp.split(x, 2, -1)
    right = act(conv(right, p[2], 2, groups=c // 2))  # two outputs a channel
    return jnp.concatenate([left[:, ::2, ::2], right], -1)


def sums(p, x):
    x = pool(act(conv(x, p[0])), 3, 2, "SAME", combine=lax.add, start=0.0)
    x = pool(x, 2, 1, ((0, 0), (1, 0), (0, 1), (0, 0)), combine=lax.add, start=0.0)
    return conv(pool(-x, 5, 3, "SAME", combine=lax.min, start=jnp.inf), p[1])


def even_kernels(p, x):
    x = act(conv(x, p[0], 2, padding="VALID"))
    x = act(conv(x, p[1], padding=((1, 2), (2, 1))))
    return conv(x, p[2], 3)


def crops(p, x):
    x = jnp.pad(x, ((0, 0), (2, 1), (0, 3), (0, 0)), constant_values=5)
    x = act(conv(x, p[0], padding="VALID"))[:, 3:-2, 1:]
    x = lax.pad(x, jnp.float32(2), ((0, 0, 0), (-1, 3, 0), (2, -4, 0), (1, 0, 0)))
    return conv(x, p[1])


def positions(p, x):
    _, h, w, _ = x.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(w), jnp.arange(h)), -1).astype(x.dtype)
    x = act(conv(x, p[0]))
    column = jnp.arange(w, dtype=x.dtype)[:, None] * p[1]
    y = conv(jnp.where(x > 3, x + column, -x), p[2])
    best = jnp.max(y, -1)
    return grid * best[..., None], jnp.argmax(y, -1), jnp.cumsum(y, -1), jnp.sort(y, -1)


def camera(p, x):
    """What a camera gives: bytes, scaled, letterboxed into a square by powers of two."""
    x = (x.astype(jnp.float32) - 128) * 2.0**-4
    n, h, w, c = x.shape
    x = jax.image.resize(x, (n, h // 2, w // 2, c), "bilinear", antialias=False)
    x = jnp.pad(x, ((0, 0), (3, 2), (0, 0), (0, 0)), constant_values=-2)
    return conv(act(conv(x, p[0])), p[1])


def letterbox(p, x):
    x = x.astype(jnp.float32) / 255
    x = (x - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])
    n, _, _, c = x.shape
    x = jax.image.resize(x, (n, 17, 32, c), "bilinear")
    x = jnp.pad(x, ((0, 0), (7, 8), (0, 0), (0, 0)), constant_values=0.5)
    return conv(act(conv(x, p[0], 2)), p[1])


def boundaries(p, x):
    """Dense operations between convolutions: sorting, loops, flips, sums over space."""
    x = act(conv(x, p[0]))
    ranked = jnp.sort(x, axis=1)
    y = act(conv(ranked + x, p[1]))
    count = lax.while_loop(lambda c: c[0].sum() > 100, lambda c: (c[0] // 2, c[1] + 1), (y, 0))[1]
    total = y.sum()  # over the streams too
    flipped = conv(y[:, ::-1] + y.mean((1, 2), keepdims=True).round(), p[2])
    return flipped, count, total, lax.top_k(y.reshape(y.shape[0], -1), 3)


def nested(p, x):
    y = act(conv(x, p["w"]))
    return {
        "frames": x,
        "scaled": 2 * x + 1,
        "features": (y, [y.swapaxes(1, 2), y[..., 0]]),
        "kernel": p["w"] * 2,
        "constant": jnp.arange(3),
        "number": 4.0,
        "moved": jnp.moveaxis(y, 0, -1),
        "nothing": None,
    }


def wrapped(p, x):
    block = jax.checkpoint(lambda w, x: jax.nn.relu6(conv(x, w)))
    x = jax.jit(block)(p[0], x)

    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    scale = jax.vmap(jax.vmap(lambda w, x: x * w, (None, 0)), (None, 0))
    return conv(scale(p[1], jax.nn.relu(double(x))), p[2])


def bytes_network(p, x):
    """Integer arithmetic, as quantised networks do it."""
    w = p.astype(jnp.int8)
    x = lax.conv_general_dilated(
        (x >> 2).astype(jnp.int8),
        w,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )
    x = jnp.clip(x >> 3, 0, 127)
    return lax.reduce_window(x, np.int32(-(2**31)), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def activations(p, x):
    x = jax.nn.silu(conv(x, p[0]))
    x = jax.nn.gelu(conv(x, p[1]), approximate=False)
    mean = x.mean(-1, keepdims=True)
    x = (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1.0)
    return jax.nn.softmax(jnp.einsum("nhwc,cd->nhwd", jax.nn.hard_swish(x), p[2]), -1)


def attention(p, x):
    x = act(conv(x, p[0], 4))
    n, h, w, c = x.shape
    tokens = x.reshape(n, h * w, c)
    scores = jnp.einsum("nic,njc->nij", tokens @ p[1], tokens @ p[2])
    mixed = jnp.einsum("nij,njc->nic", jax.nn.softmax(scores, -1), tokens)
    x = conv(x + mixed.reshape(x.shape), p[3])
    return jax.nn.softmax(x.reshape(n, h * w, -1), 1).reshape(x.shape)


def averages(p, x):
    x = nnx.avg_pool(act(conv(x, p[0])), (3, 3), (2, 2), "SAME", count_include_pad=False)
    x = nnx.avg_pool(x, (2, 2), (2, 2))
    return conv(x, p[1]).mean((1, 2))


class _Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.max_pool(self.second(x), (2, 2), (2, 2))
        return self.head(self.drop(nnx.relu(self.up(x))))


def flax_network() -> Network:
    """A `flax.nnx` model, whose parameters are its state."""
    fn, params = from_nnx(_Model(nnx.Rngs(0)))
    network = Network("flax", fn, integer=False)
    object.__setattr__(network, "params", lambda *, integer: params)
    return network


_C = (3, 3, 8, 8)

ZOO = [
    Network("chain", chain, [((3, 3, 3, 8), (8,)), (_C, (8,)), ((1, 1, 8, 4), (4,))]),
    Network(
        "vgg",
        vgg,
        [(3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 16, 32), (3, 3, 32, 16)],
        frame=(37, 53, 3),
    ),
    Network(
        "residual",
        residual,
        {
            "stem": (7, 7, 3, 16),
            "a": (3, 3, 16, 16),
            "b": (3, 3, 16, 16),
            "c": (3, 3, 16, 16),
            "d": (3, 3, 16, 16),
            "skip": (1, 1, 16, 16),
        },
        frame=(61, 75, 3),
    ),
    Network(
        "inverted_residual",
        inverted_residual,
        {
            "stem": (3, 3, 3, 4),
            "expand": (1, 1, 4, 8),
            "depthwise": (3, 3, 1, 8),
            "squeeze": (8, 2),
            "excite": (2, 8),
            "project": (1, 1, 8, 4),
        },
    ),
    Network("dilated", dilated, [(3, 3, 3, 8), (3, 3, 8, 8), (5, 2, 8, 4)]),
    Network(
        "inception",
        inception,
        [(1, 1, 3, 4), (1, 1, 3, 4), (3, 3, 4, 4), (5, 5, 3, 4), (1, 1, 3, 4), (3, 3, 16, 16)],
    ),
    *(
        Network(
            f"unet_{name}",
            _unet(resize),
            [(3, 3, 3, 8), _C, _C, (3, 3, 16, 8), (3, 3, 16, 4)],
            frame=(28, 36, 3),
        )
        for name, resize in (
            ("repeat", upsample),
            ("nearest", _image_resize("nearest")),
            ("bilinear", _image_resize("bilinear")),
        )
    ),
    Network(
        "pyramid",
        pyramid,
        {
            "c2": (3, 3, 3, 8),
            "c3": (3, 3, 8, 8),
            "l2": (1, 1, 8, 8),
            "l3": (1, 1, 8, 8),
            "smooth": _C,
            "head": (1, 1, 8, 5),
        },
        frame=(36, 44, 3),
    ),
    Network("nchw", nchw, [((16, 3, 3, 3), (16,)), ((16, 16, 3, 3), (16,)), ((8, 16, 3, 3), (8,))]),
    Network("transposed", transposed, [(3, 3, 3, 8), (4, 4, 8, 8), _C, _C, (2, 2, 8, 4)]),
    Network("dense_head", dense_head, [(3, 3, 3, 4), (5 * 7 * 4, 10)], frame=(20, 28, 3)),
    Network("focus", focus, [(3, 3, 12, 16), (3, 3, 16, 16)], frame=(34, 46, 3)),
    Network(
        "space_to_depth",
        space_to_depth,
        [(3, 3, 12, 8), (3, 3, 8, 16), (3, 3, 4, 4)],
        frame=(26, 34, 3),
    ),
    Network("shuffle", shuffle, [(1, 1, 3, 16), (3, 3, 4, 16), (3, 3, 1, 16)]),
    Network("sums", sums, [(3, 3, 3, 4), (1, 1, 4, 4)]),
    Network("even_kernels", even_kernels, [(2, 2, 3, 16), (4, 4, 16, 16), (1, 1, 16, 8)]),
    Network("crops", crops, [(3, 3, 3, 4), (3, 3, 5, 4)]),
    Network("positions", positions, [(3, 3, 3, 4), (4,), (3, 3, 4, 3)]),
    Network("camera", camera, [(3, 3, 3, 8), _C], frame=(36, 52, 3), dtype=np.uint8),
    Network("boundaries", boundaries, [(3, 3, 3, 4), (3, 3, 4, 4), (3, 3, 4, 4)]),
    Network("nested", nested, {"w": (3, 3, 3, 4)}),
    Network("wrapped", wrapped, [(3, 3, 3, 4), (4,), (3, 3, 4, 4)]),
    Network("bytes", bytes_network, (3, 3, 3, 8), dtype=np.uint8),
    Network("tiny", chain, [((3, 3, 1, 2), (2,)), ((3, 3, 2, 2), (2,))], frame=(3, 2, 1)),
    Network("letterbox", letterbox, [(3, 3, 3, 8), _C], dtype=np.uint8, integer=False),
    Network("activations", activations, [(3, 3, 3, 8), _C, (8, 5)], integer=False),
    Network(
        "attention", attention, [(3, 3, 3, 8), (8, 4), (8, 4), _C], frame=(29, 37, 3), integer=False
    ),
    Network("averages", averages, [(3, 3, 3, 8), _C], integer=False),
    flax_network(),
]
BY_NAME = {network.name: network for network in ZOO}
