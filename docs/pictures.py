"""A picture of one small example for each task: its tokens in boxes, scored ones framed, the target below.

`make docs` runs this module, which writes `docs/figures/tasks/`; a test compares. A picture depends on the code alone.
"""

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

from icl_bench.harness.show import Example, example
from icl_bench.tasks import TASKS

FOLDER = Path(__file__).resolve().parent / "figures" / "tasks"
SMALL: Mapping[str, str] = {
    "assoc-recall": "length=20,pairs=4,vocab=64",
    "compositional-recall": "length=24,pairs=4",
    "compression": "symbols=8",
    "copy": "symbols=8",
    "flip-flop": "length=20,ignore=0.4",
    "haystack-recall": "length=22,pairs=3",
    "in-context-recall": "length=20,keys=3",
    "joint-recall": "contexts=2,pairs=2",
    "k-hop": "symbols=16,hops=1",
    "linear-regression": "dims=2,points=5",
    "markov-icl": "length=24,order=1,alphabet=3,queries=8",
    "memorization": "length=16,keys=6",
    "ngram-lookup": "symbols=12,ngram=2,answer=3",
    "overwrite-recall": "length=24,pairs=3,updates=4",
    "phonebook": "entries=3,digits=3,queries=1",
    "regbench": "states=4,strings=5,symbols=4",
    "selective-copy": "length=20,symbols=5",
    "set-disjointness": "first=4,second=4",
    "stacked-recall": "length=8,pairs=4",
    "state-tracking": "group=s3,symbols=16",
    "two-pass-recall": "length=20,pairs=3",
    "variable-tracking": "length=29,chains=2,hops=1",
    "vector-recall": "length=10,pairs=2,dims=4",
}
"""Parameters of an example that fits a picture; others are drawn at their defaults."""
WIDTH, MARGIN, BOX, ROW, GAP = 760, 14, 26, 62, 4
LETTER = 7.9
"""Width of a character of the font, and what a box has besides, in pixels."""
PADDING = 12
INK, PALE, FRAME = "#1b1f24", "#8a929b", "#c2410c"
FILLS = {"k": "#dbeafe", "a": "#dbeafe", "x": "#dbeafe", "e": "#dbeafe", "b": "#cffafe", "c": "#dcfce7", "v": "#fef3c7"}
"""Fill of a numbered token, such as `k12`, by its letter."""
STYLE = "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-anchor:middle}"


class Box(NamedTuple):
    """A token where it is drawn."""

    x: float
    y: float
    width: float
    token: str
    target: str | None


def spec_of(name: str) -> str:
    """The task that is drawn."""
    return f"{name}:{SMALL[name]}" if name in SMALL else name


def place(shown: Example) -> list[Box]:
    """Boxes in rows from left to right, as wide as their token and its target."""
    boxes, x, y = [], float(MARGIN), float(MARGIN)
    for position, token in enumerate(shown.tokens):
        target = shown.targets.get(position)
        width = LETTER * max(len(token), len(target or "") + 1 if target else 0) + PADDING
        if x + width > WIDTH - MARGIN:
            x, y = float(MARGIN), y + ROW
        boxes.append(Box(x, y, width, token, target))
        x += width + GAP
    return boxes


def fill_of(token: str) -> str:
    """What a token's box is filled with: a colour by alphabet, grey for noise and padding, else white."""
    if re.fullmatch(r"n\d+|·", token):
        return "#f3f4f6"
    return FILLS.get(token[0], "#ffffff") if re.fullmatch(r"[a-z]\d+", token) else "#ffffff"


def draw_box(box: Box) -> str:
    """One box, framed where it is scored, with its target below."""
    scored = box.target is not None
    middle = box.x + box.width / 2
    quiet = fill_of(box.token) == "#f3f4f6" and not scored
    frame = f'stroke="{FRAME}" stroke-width="2.5"' if scored else 'stroke="#b6bec8" stroke-width="1"'
    lines = [
        f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{BOX}" rx="4" '
        f'fill="{fill_of(box.token)}" {frame}/>',
        f'<text x="{middle:g}" y="{box.y + 17.5:g}" fill="{PALE if quiet else INK}">{escape(box.token)}</text>',
    ]
    if box.target is not None:
        lines.append(
            f'<text x="{middle:g}" y="{box.y + 43:g}" fill="{FRAME}" font-weight="bold">↓{escape(box.target)}</text>'
        )
    return "\n".join(lines)


def picture(name: str) -> str:
    """The SVG of a task, on a white ground, so that it reads on any page."""
    shown = example(spec_of(name), None, 0)
    boxes = place(shown)
    height = boxes[-1].y + ROW + MARGIN / 2
    said = f"An example of {name}: " + " ".join(shown.tokens)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
            f'viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(said)}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height:g}" rx="6" fill="#ffffff"/>',
            *(draw_box(box) for box in boxes),
            "</svg>\n",
        ]
    )


def write_all() -> None:
    """Write every picture, and remove those of tasks that are gone."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        if old.stem not in TASKS:
            old.unlink()
    for name in TASKS:
        (FOLDER / f"{name}.svg").write_text(picture(name))


if __name__ == "__main__":
    write_all()
