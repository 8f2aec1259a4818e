"""Draw accuracy against the dilution of the context, a line for each architecture, from the table of runs of a study.

    python benchmarks/dilution_figure.py docs/studies/depth_files/runs.csv docs/studies/depth_files/dilution.svg

A dot is a seed that measures, a line joins medians. Dotted: the floor. Dashed and dash-dotted: the share of queries
whose pair is within reach of a window of 24 tokens, with the floor for the others: by one layer and its convolution of
nine taps, and by two layers.
"""

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Literal

from matplotlib.lines import Line2D

from icl_bench.harness.validation.gate import draw
from icl_bench.reports import canvas
from icl_bench.reports.naming import natural_key
from icl_bench.tasks.assoc_recall import AssocRecall

TASK = re.compile(r"assoc-recall(?::dilute=(\d+))?")
FIRST_TUNING_SEED = 1000
REACHES: Mapping[int, Literal["--", "-."]] = {32: "--", 47: "-."}
"""Tokens back that a window of 24 sees: with eight earlier taps of the convolution; in two layers. Styles of lines."""
EXAMPLES = 2000


def read(path: Path, label: str) -> tuple[dict[str, dict[int, list[float]]], dict[int, float]]:
    """Return the accuracy of each measured seed by architecture and dilution, and the floor by dilution."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    floors: dict[int, float] = {}
    with path.open() as lines:
        for row in csv.DictReader(lines):
            task = TASK.fullmatch(row["task"])
            if task and row["cell"] == label and row["status"] == "ok" and int(row["seed"]) < FIRST_TUNING_SEED:
                dilution = int(task[1] or 0)
                found[row["arch"]][dilution].append(float(row["accuracy"]))
                floors[dilution] = float(row["floor"])
    return found, floors


def within_reach(dilution: int, label: str) -> list[float]:
    """Return the share of queries whose value stands within each reach."""
    task = AssocRecall(dilute=dilution)
    cell = task.cell(label)
    batch = draw(task, cell, "test", EXAMPLES)
    asked = batch.inputs.gather(1, batch.positions)
    keys = batch.inputs[:, : 2 * cell.load * (dilution + 1) : 2 * (dilution + 1)]
    place = (asked[:, :, None] == keys[:, None]).int().argmax(dim=-1) * 2 * (dilution + 1)
    return [float((batch.positions - place <= reach).double().mean()) for reach in REACHES]


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description="Draw accuracy against the dilution of the context.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--cell", default="pairs=16")
    options = parser.parse_args()
    found, floors = read(options.runs, options.cell)
    dilutions = sorted(floors)
    with canvas.figure_settings():
        figure, (axes,) = canvas.new_figure(360)
        styles = [canvas.series_style(i) for i in range(len(found))]
        names = sorted(found, key=natural_key)
        for name, style in zip(names, styles, strict=True):
            places = [dilutions.index(one) for one in sorted(found[name])]
            columns = [found[name][one] for one in sorted(found[name])]
            canvas.draw_seeds(axes, places, columns, style)
            axes.plot(places, [median(values) for values in columns], color=style.colour)
        level = [floors[one] for one in dilutions]
        reached = [within_reach(one, options.cell) for one in dilutions]
        axes.plot(range(len(dilutions)), level, ":", color=canvas.GREY)
        for kind, shares in zip(REACHES.values(), zip(*reached, strict=True), strict=True):
            bound = [share + (1 - share) * floor for share, floor in zip(shares, level, strict=True)]
            axes.plot(range(len(dilutions)), bound, kind, color=canvas.GREY)
        canvas.share_axis(axes, f"test accuracy at {options.cell}")
        canvas.name_ticks(axes, range(len(dilutions)), [str(one) for one in dilutions])
        axes.set_xlabel("noise tokens after each token of the context")
        kinds: tuple[Literal[":", "--", "-."], ...] = (":", *REACHES.values())
        lines = [Line2D([], [], color=canvas.GREY, linestyle=kind) for kind in kinds]
        labels = ["floor", *(f"pairs within {reach} tokens" for reach in REACHES)]
        canvas.add_legend(figure, [*canvas.legend_handles(styles), *lines], [*names, *labels])
        options.output.write_bytes(canvas.svg(figure))
    print({one: [round(share, 3) for share in shares] for one, shares in zip(dilutions, reached, strict=True)})


if __name__ == "__main__":
    main()
