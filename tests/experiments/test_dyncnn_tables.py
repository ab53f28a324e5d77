"""DynCNN's printed tables against their own formulas."""

from decimal import Decimal

import pytest

from experiments.dyncnn.tables import recompute
from experiments.dyncnn.tables.__main__ import main
from experiments.dyncnn.tables.recompute import LAYERS, PAPER_TAIL, Row

PRINTED = recompute.read_printed()
LAYER_ROWS = [row for row in PRINTED if row.column != "dense" and row.layer != "total"]

# Figures that the specification (A5) lists, one by one, as not following from their row's size.
SPECIFIED = {
    ("PETS", "without", "conv2_1"): {"macs"},
    ("AVSS", "without", "conv5_2"): {"macs"},
    ("PETS", "with", "conv3_2"): {"macs"},
    ("AVSS", "with", "conv1_1"): {"macs", "pruned"},
    ("AVSS", "with", "conv1_2"): {"macs", "pruned"},
    ("AVSS", "with", "conv2_2"): {"macs", "pruned"},
    ("AVSS", "with", "conv4_1"): {"macs", "pruned"},
    ("AVSS", "with", "conv4_2"): {"macs", "pruned"},
    ("AVSS", "with", "conv4_3"): {"macs", "pruned"},
    ("VIRAT", "with", "conv4_2"): {"macs"},
    ("VIRAT", "with", "conv5_3"): {"macs"},
    ("YouTube", "with", "conv2_2"): {"macs", "pruned"},
}
# What it says that the size gives.
FORMULA = {
    ("PETS", "without", "conv2_1"): "5.76e+08",
    ("AVSS", "without", "conv5_2"): "1.93e+09",
    ("PETS", "with", "conv3_2"): "3.14e+09",
    ("VIRAT", "with", "conv4_2"): "2.03e+09",
    ("VIRAT", "with", "conv5_3"): "1.02e+09",
    ("YouTube", "with", "conv2_2"): "1.42e+09",
}


def row(layer, column="without", **cells):
    values = {name: cells.get(name) for name in Row._fields[3:]}
    return Row("PETS", column, layer, **{k: v and Decimal(v) for k, v in values.items()})


def printed_row(dataset, column, layer):
    (found,) = (r for r in PRINTED if r[:3] == (dataset, column, layer))
    return found


def test_the_dense_layers_are_the_formula_truncated():
    dense = [row for row in PRINTED if row.column == "dense" and row.layer != "total"]
    assert [row.layer for row in dense] == list(LAYERS)
    for row in dense:
        assert recompute.truncated(recompute.dense_macs(LAYERS[row.layer])) == row.macs
        assert not recompute.marks(row)
    # The printed total is that of the truncated rows and of the two last ones.
    (total,) = (row.macs for row in PRINTED if (row.column, row.layer) == ("dense", "total"))
    assert f"{sum(float(row.macs) for row in dense) + PAPER_TAIL:.2e}" == "9.05e+10"
    assert total == Decimal("9.05e10")


def test_what_ssd512_takes():
    # conv1_1 also as the paper's introduction has it, per output channel: 7 M.
    assert recompute.dense_macs(LAYERS["conv1_1"]) == 512 * 512 * 27 * 64
    convolutions = sum(map(recompute.dense_macs, LAYERS.values()))
    tail = recompute.tail_macs()
    assert f"{convolutions:.3e}" == "8.018e+10"
    assert {k: f"{v:.3e}" for k, v in tail.items()} == {
        "fc6, fc7": "5.906e+09", "extras": "6.153e+08", "heads": "3.509e+09",
    }  # fmt: skip
    assert f"{convolutions + sum(tail.values()):.3e}" == "9.021e+10"


def test_the_marked_cells_are_those_of_the_specification():
    """All that it lists but one, and shares that it gives as a range or not at all."""
    listed = {(*key, name) for key, names in SPECIFIED.items() for name in names}
    # 2.08e9 by K W H, which the specification admits elsewhere, and its share follows that too.
    listed.remove(("VIRAT", "with", "conv4_2", "macs"))
    listed |= {("PETS", "with", f"conv3_{i}", "pruned") for i in (1, 2, 3)}
    listed |= {("PETS", "with", f"conv5_{i}", "pruned") for i in (1, 3)}
    listed |= {("YouTube", "with", f"conv5_{i}", "pruned") for i in (1, 2, 3)}
    marked = {(*line[:3], name) for line in LAYER_ROWS for name in recompute.marks(line)}
    assert marked == listed


def test_what_the_specification_says_of_the_cells_it_lists():
    for key, macs in FORMULA.items():
        assert f"{recompute.readings(printed_row(*key))[0]:.2e}" == macs, key
    macs = recompute.readings(printed_row("YouTube", "with", "conv2_2"))[0]
    assert f"{recompute.pruned_percent(LAYERS['conv2_2'], macs):.1f}" == "85.3"
    for layer, width in {
        "conv1_1": 2040, "conv1_2": 2040, "conv4_1": 334, "conv4_2": 334, "conv4_3": 334,
    }.items():  # fmt: skip
        for name in ("macs", "pruned"):
            found, _ = recompute.implied_size(printed_row("AVSS", "with", layer), name)
            # "About": a unit of the second digit of 4.7e9 is 2% of W.
            assert abs(found / width - 1) < 0.02, (layer, name)
    for name in ("macs", "pruned"):
        _, height = recompute.implied_size(printed_row("AVSS", "with", "conv2_2"), name)
        assert round(height) == 10
    # "low throughout gp3-gp5 by 0.3-0.9 point against W*H (0.7-3.2 against (W-2)H)"
    low = []
    for layer in list(LAYERS)[4:]:
        line = printed_row("PETS", "with", layer)
        shares = (recompute.pruned_percent(LAYERS[layer], v) for v in recompute.readings(line))
        low.append([share - float(line.pruned) for share in shares])
    strip, whole = zip(*low, strict=True)
    assert [f"{end:.1f}" for end in (min(whole), max(whole))] == ["0.3", "0.9"]
    assert [f"{end:.1f}" for end in (min(strip), max(strip))] == ["0.7", "3.2"]


def test_arrays_are_cells_side_by_side():
    """Each layer takes two columns and two rows off a group's array, and begins with its cells."""
    widths = {r[:3]: r.width for r in LAYER_ROWS}
    for line in LAYER_ROWS:
        assert line.height == LAYERS[line.layer].heights[line.column]
        group, index = line.layer.removeprefix("conv").split("_")
        if line.column == "with" and index != "1":
            first = widths[line.dataset, "with", f"conv{group}_1"]
            assert first - line.width == 2 * (int(index) - 1)


def test_the_cells_of_both_columns_are_not_the_same():
    """Both need the cells of the group's last layer; the specification gives how far they are."""
    apart = {}
    for dataset in ("PETS", "AVSS", "VIRAT", "YouTube"):
        for group, last in enumerate((2, 2, 3, 3, 3), 1):
            without, width = (
                float(line.width / line.height)
                for line in (
                    printed_row(dataset, "without", f"conv{group}_{last}"),
                    printed_row(dataset, "with", f"conv{group}_1"),
                )
            )
            apart.setdefault(dataset, []).append(round(100 * (width / without - 1)))
    fewer, more = apart["PETS"] + apart["AVSS"], apart["VIRAT"] + apart["YouTube"]
    assert (min(fewer), max(fewer)) == (-21, -4)
    assert (min(more), max(more)) == (18, 100)


def test_the_totals_give_the_printed_shares():
    dense = 9.05e10
    for row in PRINTED:
        if row.layer == "total" and row.column != "dense":
            share = 100 * (1 - float(row.macs) / dense)
            # One unit of the last digit of either figure, as both may be truncated: 0.11 + 0.1.
            assert abs(share - float(row.pruned)) < 0.21, row


def test_the_totals_are_those_of_their_rows():
    """Within a unit of the last digit of every row, of the tail's two, and of the total."""
    for total in PRINTED:
        if total.layer != "total":
            continue
        rows = [r for r in PRINTED if r[:2] == total[:2] and r.layer != "total"]
        units = [Decimal(1).scaleb(r.macs.as_tuple().exponent) for r in [*rows, total]]
        slack = float(sum(units)) + 1e7 + 1e8
        assert abs(float(total.macs) - PAPER_TAIL - sum(float(r.macs) for r in rows)) < slack


def test_strips_quoted_by_the_specification():
    # A2 quotes them without naming the table: they are PETS's.
    for layer, width, height in (
        ("conv1_1", 1704, 18), ("conv1_2", 1702, 16), ("conv3_1", 536, 12), ("conv3_2", 534, 10),
        ("conv3_3", 532, 8),
    ):  # fmt: skip
        assert recompute.size_of(printed_row("PETS", "with", layer)) == (width, height)
    assert LAYERS["conv1_1"].heights == {"without": 16, "with": 18}
    assert LAYERS["conv1_2"].heights == {"without": 16, "with": 16}
    assert LAYERS["conv3_1"].heights == {"without": 8, "with": 12}


def test_formulas_by_hand():
    layer = LAYERS["conv2_1"]  # 64 to 128 channels: 73,728 taps
    assert layer.taps == 73_728
    assert recompute.strip_macs(layer, 80, 8) == 73_728 * 78 * 8
    assert recompute.valid_macs(layer, 80, 8) == 73_728 * 78 * 6
    assert recompute.pruned_percent(layer, 73_728 * 256 * 64) == 75


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("column", ["without", "with"])
def test_rows_that_follow_are_not_marked_and_others_are(name, column):
    layer = LAYERS[name]
    width, height = 322, layer.heights[column]
    macs = recompute.strip_macs(layer, width, height)
    share = recompute.pruned_percent(layer, macs)
    for shown in (str(recompute.truncated(macs)), f"{macs:.1e}"):
        good = row(name, column, width=width, height=height, macs=shown, pruned=f"{share:.1f}")
        assert not recompute.marks(good)
    # Two units of the second digit away, and 1.2 points: nothing explains these.
    step = Decimal(10) ** (Decimal(macs).adjusted() - 1)
    for sign in (-2, 2):
        bad = good._replace(macs=recompute.truncated(macs) + sign * step)
        assert recompute.marks(bad) == {"macs"}
    assert recompute.marks(good._replace(pruned=good.pruned + Decimal("1.2"))) == {"pruned"}


def test_only_continuous_rows_may_count_the_whole_width():
    layer = LAYERS["conv4_3"]
    macs = layer.taps * 22 * 8  # 2 of 22 columns are 9%
    cells = {"macs": f"{macs:.1e}", "pruned": f"{recompute.pruned_percent(layer, macs):.1f}"}
    assert not recompute.marks(row("conv4_3", "with", width=22, height=8, **cells))
    assert recompute.marks(row("conv4_3", "without", width=22, height=8, **cells)) == {"macs"}


def test_both_figures_follow_from_the_same_reading():
    layer = LAYERS["conv5_3"]
    strip, whole = layer.taps * 60 * 8, layer.taps * 62 * 8
    share = f"{recompute.pruned_percent(layer, strip):.1f}"
    mixed = row("conv5_3", "with", width=62, height=8, macs=f"{whole:.3e}", pruned=share)
    assert recompute.marks(mixed) == {"macs"}
    assert not recompute.marks(mixed._replace(macs=Decimal(f"{strip:.3e}")))


def test_macs_are_compared_at_the_digits_that_are_printed():
    size = {"width": 1044, "height": 8, "pruned": "87.3"}  # 1.2291e9
    for macs in ("1.2e9", "1.22e9", "1.23e9"):
        assert not recompute.marks(row("conv2_2", macs=macs, **size))
    for macs in ("1.3e9", "1.21e9", "1.24e9"):
        assert recompute.marks(row("conv2_2", macs=macs, **size)) == {"macs"}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_size_follows_from_the_figures_that_follow_from_it(layer):
    macs = recompute.strip_macs(LAYERS[layer], 77, 8)
    share = recompute.pruned_percent(LAYERS[layer], macs)
    line = row(layer, width=52, height=8, macs=Decimal(macs), pruned=Decimal(share))
    for name in ("macs", "pruned"):
        width, height = recompute.implied_size(line, name)
        assert (width, height) == pytest.approx((77, 8 * 75 / 50))


def test_full_columns_without_continuous_convolution():
    """52 of 52 shares within half a point and 50 of 52 multiply-accumulates."""
    rows = [row for row in LAYER_ROWS if row.column == "without"]
    assert len(rows) == 52
    marks = [recompute.marks(row) for row in rows]
    assert sum("pruned" in found for found in marks) == 0
    assert sum("macs" in found for found in marks) == 2


def test_all_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main()
    shown = capsys.readouterr().out
    for line in LAYER_ROWS:
        assert f"{line.layer} │" in shown
        assert f" {line.width} x {line.height} │" in shown
    for text in (
        "5.9e8*", "9.021e10", "W 1886 or H 10.0", "VIRAT, with continuous", "3.29e10", "8.6, 17.2",
        "MACs of 50 of 52 layers follow from the row's own size, shares of 52",
        "MACs of 43 of 52 layers follow from the row's own size, shares of 37",
    ):  # fmt: skip
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    "line",
    [
        "PETS,without,conv1_3,1,1,1,1",
        "PETS,both,conv1_1,1,1,1,1",
        "PETS,with,conv1_1,x,1,1,1",
        "PETS,with,conv1_1,,1,1,1",
        "PETS,with,conv1_1,1,1,1,",
        "PETS,with,total,1,1,1,1",
        "all,dense,conv1_1,,,1,1",
        "all,dense,conv1_1,,,,",
        "PETS,with,conv1_1,1,1,1,1,1",
        "a,b",
    ],
)
def test_a_bad_row_is_named(tmp_path, line):
    path = tmp_path / "printed.csv"
    path.write_text(f"# source\nheader\n{line}\n")
    with pytest.raises(ValueError, match=rf"printed.csv: '{line}', expected dataset,column"):
        recompute.read_printed(path)


@pytest.mark.parametrize("line", [("all", "dense", "conv1_1"), ("PETS", "with", "total")])
def test_rows_without_a_size_say_so(line):
    with pytest.raises(ValueError, match="have no size"):
        recompute.size_of(printed_row(*line))
