"""Residual networks written out in NumPy, float64, from arrays by torchvision's names.

What they are compared with holds integers below 2^24 at every step, which float32 and float64 both
keep exactly: kernels of 0 and 1 or -1, and normalisations whose scale is the deviation.
"""

import numpy as np

LAST_EXACT = 2**24


def conv(x, kernel, *, stride=1, dilation=1):
    """`x` (S, H, W, C), `kernel` OIHW, zeros around that keep the size."""
    side = kernel.shape[2] // 2 * dilation
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    height, width = (-(-n // stride) for n in x.shape[1:3])
    out = np.zeros((x.shape[0], height, width, kernel.shape[0]))
    for i in range(kernel.shape[2]):
        for j in range(kernel.shape[3]):
            rows = padded[:, i * dilation :: stride][:, :height]
            out += rows[:, :, j * dilation :: stride][:, :, :width] @ kernel[:, :, i, j].T
    return out


def max_pool(x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = (-(-n // 2) for n in x.shape[1:3])
    windows = [padded[:, i::2][:, :height, j::2][:, :, :width] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def norm(x, tensors, name):
    found = {k: tensors[f"{name}.{k}"].astype(float) for k in ("weight", "bias")}
    mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
    x = (x - mean) / np.sqrt(variance) * found["weight"] + found["bias"]
    assert np.abs(x).max() < LAST_EXACT
    return x


def resnet(x, tensors, depths, *, strides=(1, 2, 2, 2), dilations=None, stride_in="3x3", stem=1):
    """Conv5 of a residual network; `dilations[stage][block]`, stages from 0."""
    for i in range(1, stem + 1):
        x = conv(x, tensors[f"conv{i}.weight"], stride=2 if i == 1 else 1)
        x = np.maximum(norm(x, tensors, f"bn{i}"), 0)
    x = max_pool(x)
    for stage, count in enumerate(depths):
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            stride = strides[stage] if block == 0 else 1
            rate = dilations[stage][block] if dilations else 1
            first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
            y = conv(x, tensors[f"{name}.conv1.weight"], stride=first)
            y = np.maximum(norm(y, tensors, f"{name}.bn1"), 0)
            y = conv(y, tensors[f"{name}.conv2.weight"], stride=second, dilation=rate)
            y = np.maximum(norm(y, tensors, f"{name}.bn2"), 0)
            y = norm(conv(y, tensors[f"{name}.conv3.weight"]), tensors, f"{name}.bn3")
            if block == 0:
                x = conv(x, tensors[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(x, tensors, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x


def kernel(rng, outputs, inputs, side):
    """About two taps that are not 0 for every output, so that numbers stay small."""
    shape = (outputs, inputs, side, side)
    taps = rng.random(shape) < 2 / (inputs * side * side)
    return (taps * rng.choice([-1, 1], shape)).astype(np.float32)


def normalisation(rng, name, channels):
    """Each part of its own kind, so that no two can be taken for one another."""
    deviation = rng.choice([1, 2, 4], channels)
    return {
        f"{name}.weight": (deviation * rng.choice([-1, 1, 1], channels)).astype(np.float32),
        f"{name}.bias": rng.integers(-2, 5, channels).astype(np.float32),
        f"{name}.running_mean": rng.integers(-1, 2, channels).astype(np.float32),
        f"{name}.running_var": (deviation**2).astype(np.float32),
        f"{name}.num_batches_tracked": np.array(3),
    }


def resnet_tensors(depths, width, *, seed=0, stem=1):
    """What a checkpoint of a narrow network holds, in the order of torchvision."""
    rng = np.random.default_rng(seed)
    tensors = {}
    depth = 3
    for i in range(1, stem + 1):
        outputs = 2 * width if i == 3 else width
        tensors[f"conv{i}.weight"] = kernel(rng, outputs, depth, 7 if stem == 1 else 3)
        tensors |= normalisation(rng, f"bn{i}", outputs)
        depth = outputs
    for stage, count in enumerate(depths):
        inner = width * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            sides = ((inner, depth, 1), (inner, inner, 3), (4 * inner, inner, 1))
            for i, (outputs, inputs, side) in enumerate(sides, start=1):
                tensors[f"{name}.conv{i}.weight"] = kernel(rng, outputs, inputs, side)
                tensors |= normalisation(rng, f"{name}.bn{i}", outputs)
            if block == 0:
                tensors[f"{name}.downsample.0.weight"] = kernel(rng, 4 * inner, depth, 1)
                tensors |= normalisation(rng, f"{name}.downsample.1", 4 * inner)
            depth = 4 * inner
    return tensors


def frames(size, *, seed=1):
    return np.random.default_rng(seed).integers(0, 5, (2, *size, 3)).astype(np.float32)
