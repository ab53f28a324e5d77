"""Prints the tables of the paper beside what they should say.

python -m experiments.dyncnn.tables
"""

from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from experiments.dyncnn.tables import recompute
from experiments.dyncnn.tables.recompute import LAYERS, PAPER_TAIL, PRINTED, Row


def figure(value: object, *, marked: bool = False, form: str = "{:.3g}") -> str:
    """A cell, a dash where nothing is known, starred and red where it does not follow."""
    if value is None:
        return "?*" if marked else "-"
    text = form.format(value).lower().replace("e+", "e").replace("e0", "e")
    return f"[red]{text}*[/red]" if marked else text


def baseline(rows: list[Row]) -> Table:
    """The dense network: VGG16's convolutions, then the tail that the paper gives and the real."""
    table = Table("layer", "paper", "ours", title="Dense SSD512, MACs")
    dense = [row for row in rows if row.column == "dense"]
    for row in dense:
        if row.layer != "total":
            value = recompute.dense_macs(LAYERS[row.layer])
            marked = "macs" in recompute.marks(row)
            table.add_row(row.layer, figure(row.macs, marked=marked, form="{}"), figure(value))
    table.add_section()
    tail = recompute.tail_macs()
    for name, value in tail.items():
        table.add_row(name, "-", figure(value, form="{:.4g}"))
    table.add_row(
        "after conv5_3",
        figure(PAPER_TAIL, form="{:.4g}"),
        figure(sum(tail.values()), form="{:.4g}"),
    )
    total = sum(map(recompute.dense_macs, LAYERS.values())) + sum(tail.values())
    (printed,) = (row.macs for row in dense if row.layer == "total")
    table.add_row("total", figure(printed, form="{}"), figure(total, form="{:.4g}"))
    return table


def of_dataset(rows: list[Row], dataset: str) -> Table | None:
    """The layers of one video set of which some cell is known."""
    table = Table(
        "continuous", "layer", "W x H", "MACs, paper", "K(W-2)H", "K(W-2)(H-2)",
        "pruned %, paper", "ours", "printed figures imply", title=dataset,
    )  # fmt: skip
    for row in rows:
        known = (row.width, row.macs, row.pruned)
        if row.dataset != dataset or row.layer == "total" or known == (None, None, None):
            continue
        layer, size, marked = LAYERS[row.layer], recompute.size_of(row), recompute.marks(row)
        macs = next(iter(recompute.readings(row)), None)
        share = row.formula_pruned
        if share is None and macs is not None:
            share = recompute.pruned_percent(layer, macs)
        implied = [
            f"{name} {value}"
            for name, value in (("W", row.implied_width), ("H", row.implied_height))
            if value is not None
        ]
        table.add_row(
            row.column,
            row.layer,
            "-" if size is None else "{:g} x {:g}".format(*size),
            figure(row.macs, marked="macs" in marked, form="{}"),
            figure(macs),
            figure(None if size is None else recompute.valid_macs(layer, *size)),
            figure(row.pruned, marked="pruned" in marked, form="{}"),
            figure(share, form="{:.1f}"),
            ", ".join(implied) or "-",
        )
    return table if table.row_count else None


def totals(rows: list[Row]) -> Table:
    """Whole networks, with the paper's tail and with the real one."""
    table = Table(
        "set", "continuous", "paper", "pruned %", "from its totals", "with SSD512's tail",
        "pruned %", "conv1-5 alone, %", title="Whole network, MACs",
    )  # fmt: skip
    convolutions = sum(map(recompute.dense_macs, LAYERS.values()))
    tail = sum(recompute.tail_macs().values())
    (dense,) = (float(r.macs or 0) for r in rows if (r.column, r.layer) == ("dense", "total"))
    for row in rows:
        if row.layer != "total" or row.column == "dense" or row.macs is None:
            continue
        total = float(row.macs)
        executed = total - PAPER_TAIL
        table.add_row(
            row.dataset,
            row.column,
            figure(row.macs, form="{}"),
            figure(row.pruned, form="{}"),
            f"{100 * (1 - total / dense):.1f}",
            figure(executed + tail),
            f"{100 * (1 - (executed + tail) / (convolutions + tail)):.1f}",
            f"{100 * (1 - executed / convolutions):.1f}",
        )
    return table


def main(printed: Path = PRINTED) -> None:
    """Print the tables.

    Args:
      printed: the printed cells, in the form of `printed.csv`.
    """
    rows = recompute.read_printed(printed)
    console = Console()
    console.print(baseline(rows))
    for dataset in dict.fromkeys(row.dataset for row in rows if row.column != "dense"):
        table = of_dataset(rows, dataset)
        if table is not None:
            console.print(table)
    console.print(totals(rows))
    layers = [r for r in rows if r.layer != "total" and r.column != "dense"]
    known = sum(cell is not None for row in layers for cell in row[3:7])
    console.print(
        "* does not follow from the row's own size; ? the printed figure is not known. Of the "
        f"{4 * len(layers)} cells (W, H, MACs, pruned) of the {len(layers)} layer rows, {known} "
        "are known here."
    )


if __name__ == "__main__":
    tyro.cli(main)
