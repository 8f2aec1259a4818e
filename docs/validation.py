"""The generated parts of the page on validation, from `benchmarks/results/validation.json`; see `docs/pages.py`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from docs.pages import ROOT, first_line, table
from docs.pictures import INK, PALE, STYLE
from icl_bench.harness.validation.shallow import FOR_VECTORS, LOOK_UPS, SMALL, Shallow
from icl_bench.harness.validation.trained import TRAINED

RESULTS = ROOT / "benchmarks" / "results" / "validation.json"
PICTURE = ROOT / "docs" / "figures" / "validation.svg"
SIDE, LEFT, TOP, WIDTH, HEIGHT = 380, 60, 20, 640, 450
"""Side of the square of accuracies, its place and the size of the picture, in pixels."""
KINDS = {
    "best": ("best shallow solver", f'r="4" fill="{INK}"'),
    "trained": ("trained solver", f'r="4" fill="none" stroke="{INK}" stroke-width="1.5"'),
    "rule": ("the rule of the task itself", 'r="3" fill="#fdba74"'),
}
"""Name and mark of each kind of point."""


def load() -> Mapping[str, Any]:
    """Return the results of the last whole validation."""
    loaded: Mapping[str, Any] = json.loads(RESULTS.read_text())
    return loaded


def solvers() -> str:
    """Return a list of the shallow solvers."""
    kinds: Mapping[str, Mapping[str, Shallow]] = {
        "With a few tokens or counts": SMALL,
        "Look-ups in the whole context": LOOK_UPS,
        "For tasks of vectors": FOR_VECTORS,
    }
    lists = [
        f"{kind}:\n\n" + "\n".join(f"* `{name}`: {first_line(fit.__doc__)}" for name, fit in own.items()) + "\n"
        for kind, own in kinds.items()
    ]
    return "\n" + "\n".join(lists) + "\n"


def results() -> str:
    """Return a table of the cells: floor, best shallow solver, rule of the task, trained solvers."""
    rows = []
    for task in load()["tasks"]:
        for cell in task["cells"]:
            by_rule = ", ".join(f"`{name}` {share:.2f}" for name, share in cell["by_rule"].items())
            trained = [f"{cell['trained'][name]:.2f}" if cell["trained"] else "-" for name in TRAINED]
            named = [f"{cell[kind]:.2f} `{cell[kind + '_by']}`" for kind in ("floor", "best")]
            rows.append((f"`{task['task']}`", f"`{cell['cell']}`", *named, by_rule or "-", *trained))
    return "\n" + table(("task", "cell", "floor", "best shallow", "by rule", *TRAINED), rows) + "\n"


def summary() -> str:
    """Return a sentence on the last whole validation."""
    found = load()
    cells = [cell for task in found["tasks"] for cell in task["cells"]]
    above = sum(len(cell["above"]) for cell in cells)
    trained = sum(bool(cell["trained"]) for cell in cells)
    by_training = f"trained solvers in {trained}" if trained else "without trained solvers"
    settings = Counter(task["revision"] for task in found["tasks"])
    made = [
        f"* revision {name}, {one['date']}, {one['device']}: {settings[name]} settings"
        for name, one in found["runs"].items()
    ]
    return (
        f"\n{len(found['tasks'])} settings of tasks, {len(cells)} cells with {found['examples']:,} test examples each, "
        f"{by_training}:\n{above} comparisons above a stated floor. Made at\n\n" + "\n".join(made) + "\n\n"
    )


def points() -> Iterator[tuple[str, float, float, str]]:
    """Iterate over the points of the picture: kind, floor, accuracy and label."""
    for task in load()["tasks"]:
        for cell in task["cells"]:
            where = f"{task['task']} {cell['cell']}"
            for name, accuracy in cell["by_rule"].items():
                yield "rule", cell["floor"], accuracy, f"{where}: {name}"
            for name, accuracy in cell["trained"].items():
                if name not in cell["by_rule"]:
                    yield "trained", cell["floor"], accuracy, f"{where}: {name}"
            yield "best", cell["floor"], cell["best"], f"{where}: {cell['best_by']}"


def picture() -> str:
    """Draw the accuracy of solvers against the stated floor of the cell, as SVG."""
    at = lambda share: round(SIDE * share, 1)  # noqa: E731
    bottom = TOP + SIDE
    ticks = [
        f'<text x="{LEFT + at(share):g}" y="{bottom + 18}" fill="{PALE}">{share:g}</text>'
        f'<text x="{LEFT - 18}" y="{bottom - at(share) + 4:g}" fill="{PALE}">{share:g}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    drawn = list(points())
    kinds = [mark for kind, mark in KINDS.items() if any(kind == point[0] for point in drawn)]
    dots = [
        f'<circle cx="{LEFT + at(floor):g}" cy="{bottom - at(accuracy):g}" {KINDS[kind][1]}>'
        f"<title>{escape(label)} {accuracy:.3f}, floor {floor:.3f}</title></circle>"
        for kind, floor, accuracy, label in drawn
    ]
    legend = [
        f'<circle cx="{LEFT + SIDE + 24}" cy="{TOP + 20 + 24 * i}" {mark}/>'
        f'<text x="{LEFT + SIDE + 36}" y="{TOP + 24 + 24 * i}" fill="{INK}" style="text-anchor:start">{name}</text>'
        for i, (name, mark) in enumerate(kinds)
    ]
    said = "Accuracy of shallow solvers against the stated floor of each cell: none is above the diagonal"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff"/>',
            f'<rect x="{LEFT}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#e5e7eb"/>',
            f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + SIDE}" y2="{TOP}" stroke="{PALE}"/>',
            *ticks,
            f'<text x="{LEFT + SIDE // 2}" y="{HEIGHT - 10}" fill="{INK}">stated floor of the cell</text>',
            f'<text x="16" y="{TOP + SIDE // 2}" fill="{INK}" transform="rotate(-90 16 {TOP + SIDE // 2})">'
            "accuracy of the solver</text>",
            *dots,
            *legend,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
