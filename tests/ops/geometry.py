"""Random stencil geometries, and the dense operations they are compared with."""

from hypothesis import strategies as st
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def geometries(draw, *, input_dilation=False):
    """Keyword arguments of a stencil and an input size (H, W) that XLA accepts for it."""
    geometry = {
        "window": draw(pairs(1, 6)),
        "strides": draw(pairs(1, 3)),
        "padding": (draw(pairs(-2, 5)), draw(pairs(-2, 5))),
        "dilation": draw(pairs(1, 3)),
    }
    if input_dilation:
        geometry["input_dilation"] = draw(pairs(1, 3))
    # Odd and even, down to the smallest that negative padding leaves something of.
    size = tuple(
        draw(st.integers(max(1, -min(0, low) - min(0, high)), 9))
        for low, high in geometry["padding"]
    )
    return geometry, size


def convolve(x, kernel, geometry, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry["strides"],
        geometry["padding"],
        lhs_dilation=geometry.get("input_dilation", (1, 1)),
        rhs_dilation=geometry["dilation"],
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )
