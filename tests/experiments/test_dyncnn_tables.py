"""DynCNN's printed tables against their own formulas."""

from decimal import Decimal

import pytest

from experiments.dyncnn.tables import recompute
from experiments.dyncnn.tables.__main__ import main
from experiments.dyncnn.tables.recompute import LAYERS, PAPER_TAIL, Row

PRINTED = recompute.read_printed()
LAYER_ROWS = [row for row in PRINTED if row.column != "dense" and row.layer != "total"]

# What the specification (A5) says does not match, of the cells whose printed figure it quotes or
# whose size it says to be another than the printed one.
MARKED = {
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


def row(layer, column="without", **cells):
    values = {name: cells.get(name) for name in Row._fields[3:]}
    return Row("PETS", column, layer, **{k: v and Decimal(v) for k, v in values.items()})


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
    found = {r[:3]: recompute.marks(r) for r in LAYER_ROWS}
    assert {key: cells for key, cells in found.items() if cells} == MARKED


def test_the_totals_give_the_printed_shares():
    dense = 9.05e10
    for row in PRINTED:
        if row.layer == "total" and row.column != "dense":
            share = 100 * (1 - float(row.macs) / dense)
            # One unit of the last digit of either figure, as both may be truncated: 0.11 + 0.1.
            assert abs(share - float(row.pruned)) < 0.21, row


def test_strips_quoted_by_the_specification():
    # A2 quotes 536x12, 534x10, 532x8 without naming the table; the middle one is PETS's conv3_2.
    for layer, width, height in (("conv3_1", 536, 12), ("conv3_2", 534, 10), ("conv3_3", 532, 8)):
        assert LAYERS[layer].heights == {"without": 8, "with": height}
        assert recompute.size_of(row(layer, "with", width=width)) == (width, height)
    assert f"{recompute.strip_macs(LAYERS['conv3_2'], 534, 10):.2e}" == "3.14e+09"
    assert LAYERS["conv1_1"].heights == {"without": 16, "with": 18}
    assert LAYERS["conv1_2"].heights == {"without": 16, "with": 16}


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
    macs = f"{LAYERS['conv4_3'].taps * 22 * 8:.1e}"  # 2 of 22 columns are 9%
    assert not recompute.marks(row("conv4_3", "with", width=22, height=8, macs=macs))
    assert recompute.marks(row("conv4_3", "without", width=22, height=8, macs=macs)) == {"macs"}


def test_what_is_not_known_is_not_marked():
    assert not recompute.marks(row("conv4_3", width=22, height=8))
    assert not recompute.marks(row("conv4_3", macs="3.7e8", pruned="96"))
    assert recompute.marks(row("conv4_3", macs="3.7e8", pruned="96", implied_height=10)) == {
        "macs", "pruned",
    }  # fmt: skip


def test_full_columns_without_continuous_convolution():
    """52 of 52 shares within half a point and 50 of 52 multiply-accumulates."""
    rows = [row for row in LAYER_ROWS if row.column == "without"]
    assert len(rows) == 52
    missing = sum(None in (row.width, row.height, row.macs, row.pruned) for row in rows)
    if missing:
        pytest.skip(
            f"{missing} of 52 rows of Tables 6 and 9-11 lack printed cells in printed.csv: the "
            "paper's tables are not at hand"
        )
    marks = [recompute.marks(row) for row in rows]
    assert sum("pruned" in found for found in marks) == 0
    assert sum("macs" in found for found in marks) == 2


def test_all_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main()
    shown = capsys.readouterr().out
    for text in ("5.9e8*", "9.021e10", "1931 x 18", "VIRAT", "3.29e10"):
        assert text in shown
    assert "are known here" in shown


@pytest.mark.parametrize(
    "line",
    [
        "PETS,without,conv1_3,,,,,,,,",
        "PETS,both,conv1_1,,,,,,,,",
        "PETS,with,conv1_1,x,,,,,,,",
        "a,b",
    ],
)
def test_a_bad_row_is_named(tmp_path, line):
    path = tmp_path / "printed.csv"
    path.write_text(f"# source\nheader\n{line}\n")
    with pytest.raises(ValueError, match=rf"printed.csv: '{line}', expected dataset,column"):
        recompute.read_printed(path)
