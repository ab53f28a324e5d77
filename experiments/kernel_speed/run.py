"""How fast one masked convolution is, by channels and by the share of positions that changed.

    uv run --extra test python -m experiments.kernel_speed.run [--one-core]

The kernel of the device and the loop over cells against XLA's dense convolution of the whole map,
in turns in one process, medians. With --one-core everything runs on one core and processor time is
counted instead of the clock's: what other programs do on the machine then matters little. Writes
results.json and speed.png beside this file.
"""

import argparse
import os
import pathlib
import time

HERE = pathlib.Path(__file__).parent
REPEATS = 15
SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
LAYERS = (  # rows, columns, channels in and out, side of the window: of YOLOv5n and of wider ones
    (240, 320, 3, 16, 3),
    (120, 160, 16, 16, 3),
    (60, 80, 32, 32, 3),
    (60, 80, 64, 64, 1),
    (30, 40, 64, 64, 3),
    (15, 20, 128, 128, 3),
    (32, 32, 256, 256, 3),
)


def blobs(height, width, share, rng):
    """Positions in patches of 8x8, as moving things leave them, until a share is marked."""
    import numpy as np

    mask = np.zeros((1, height, width), bool)
    if share == 1:
        return ~mask
    while mask.mean() < share:
        row, column = rng.integers(-4, height - 4), rng.integers(-4, width - 4)
        mask[0, max(0, row) : row + 8, max(0, column) : column + 8] = True
    return mask


def measure(layer, clock):
    """Milliseconds and shares for one layer."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from dynvid.kernels.masked_conv import masked_conv

    height, width, depth, features, side = layer
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((1, height, width, depth), np.float32))
    kernel = jnp.asarray(rng.normal(0, 0.1, (side, side, depth, features)).astype(np.float32))
    padding = ((side // 2, side // 2),) * 2

    @jax.jit
    def dense(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def masked(implementation):
        def run(previous, x, kernel, mask):
            return masked_conv(
                x, kernel, previous, mask, padding=padding, implementation=implementation
            )

        return jax.jit(run, donate_argnums=0)

    ways = {"kernel": masked(None), "loop": masked("xla")}
    rows = []
    for share in SHARES:
        impacted = blobs(height, width, share, rng)
        # The mask of what changed; what it reaches is what is computed.
        mask = jnp.asarray(impacted)
        reached = np.asarray(impacted)
        if side > 1:
            grown = np.pad(reached, ((0, 0), (1, 1), (1, 1)))
            reached = np.any(
                [grown[:, a : a + height, b : b + width] for a in range(3) for b in range(3)],
                axis=0,
            )
        kept = {name: jnp.zeros((1, height, width, features)) for name in ways}
        times = {name: [] for name in ("dense", *ways)}
        for _ in range(REPEATS + 3):
            start = clock()
            jax.block_until_ready(dense(x, kernel))
            times["dense"].append(clock() - start)
            for name, run in ways.items():
                start = clock()
                kept[name] = jax.block_until_ready(run(kept[name], x, kernel, mask))
                times[name].append(clock() - start)
        found = {f"{name}_ms": 1e3 * float(np.median(t[3:])) for name, t in times.items()}
        rows.append({"share": float(reached.mean()), **found})
    return rows


def plot(results, path):
    """Speed-up over dense against what the arithmetic alone would give."""
    from matplotlib.figure import Figure

    from experiments.bench.figures import save_figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, way in zip(figure.subplots(1, 2, sharey=True), ("kernel", "loop"), strict=True):
        for name, rows in results["layers"].items():
            shares = [row["share"] for row in rows]
            gains = [row["dense_ms"] / row[f"{way}_ms"] for row in rows]
            axes.loglog(shares, gains, "o-", markersize=3, label=name)
        line = [min(shares), 1.0]
        axes.loglog(line, [1 / s for s in line], "k--", linewidth=1, label="ideal: 1 / share")
        axes.axhline(1, color="grey", linewidth=0.5)
        axes.set_title({"kernel": "the CPU's kernel", "loop": "XLA's loop over cells"}[way])
        axes.set_xlabel("share of positions computed")
        axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["2%", "5%", "10%", "20%", "50%", "100%"])
        axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("times as fast as XLA's dense convolution")
    figure.axes[0].legend(fontsize=7)
    save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one-core", action="store_true", help="one core, processor time")
    options = parser.parse_args()
    clock = time.perf_counter
    if options.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        clock = time.process_time
    from experiments.bench import console
    from experiments.bench.results import machine, write_json

    results = {"machine": machine(), "one_core": options.one_core, "layers": {}}
    for layer in LAYERS:
        height, width, depth, features, side = layer
        name = f"{side}x{side}, {depth} to {features}, {height}x{width}"
        results["layers"][name] = measure(layer, clock)
        console.print(name, results["layers"][name])
        write_json(HERE / "results.json", results)
    plot(results, HERE / "speed.png")


if __name__ == "__main__":
    main()
