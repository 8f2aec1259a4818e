"""Draw one small example of each task, and the state of each architecture against length.

`make docs` runs this module, which writes `docs/figures/tasks/` and `docs/figures/state.svg`, and a test compares the
pictures with the code. An example has its tokens in boxes, scored tokens framed, targets below; its parameters are the
class variable `picture` of the task. A picture depends on the code alone.
"""

import math
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

from icl_bench.architectures import ARCHITECTURES
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.training.batches import Example, draw_example
from icl_bench.tasks import TASKS

FOLDER = Path(__file__).resolve().parent / "figures" / "tasks"
WIDTH, MARGIN, BOX, ROW, GAP = 760, 14, 26, 62, 4
LETTER = 7.9
"""Width of a character of the font, in pixels."""
PADDING = 12
"""Width of a box beyond its text, in pixels."""
INK, PALE, FRAME = "#1b1f24", "#8a929b", "#c2410c"
FILLS = {"k": "#dbeafe", "a": "#dbeafe", "x": "#dbeafe", "e": "#dbeafe", "b": "#cffafe", "c": "#dcfce7", "v": "#fef3c7"}
"""Fill of a numbered token, such as `k12`, by its letter."""
STYLE = "text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-anchor:middle}"


STATE_PICTURE = FOLDER.parent / "state.svg"
STATE_LENGTHS = (64, 256, 1024)
"""Tokens after which the state is drawn; `hyena` takes no more by default."""
STATE_TICKS = (100, 1_000, 10_000, 100_000)
STATE_LEFT, STATE_ROW = 190, 20
"""Left end of the axis and height of a row, in pixels."""


class Box(NamedTuple):
    """A token and the place at which it is drawn."""

    x: float
    y: float
    width: float
    token: str
    target: str | None


def place(shown: Example) -> list[Box]:
    """Place the tokens in boxes, in rows from left to right; a box is as wide as its token and its target need."""
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
    """Return the fill of a token's box: a colour for each alphabet, grey for noise and padding, otherwise white."""
    if re.fullmatch(r"n\d+|·", token):
        return "#f3f4f6"
    return FILLS.get(token[0], "#ffffff") if re.fullmatch(r"[a-z]\d+", token) else "#ffffff"


def draw_box(box: Box) -> str:
    """Draw a box; a scored one is framed and has its target below."""
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
    """Draw the example of a task as SVG, on a white background for pages of any colour."""
    small = TASKS[name].picture
    shown = draw_example(f"{name}:{small}" if small else name, None, 0)
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


def state_picture() -> str:
    """Draw a row for each architecture, by family: its state after each length, on a logarithmic axis, as SVG."""
    rows, family = [], ""
    for card in sorted((ARCHITECTURES[name].card() for name in ARCHITECTURES), key=lambda card: card.family):
        y = MARGIN + STATE_ROW * (len(rows) + 1)
        layers = [ARCHITECTURES[card.name]()] * 2
        sizes = [Footprint(layers, d_model=64, length=length).state for length in STATE_LENGTHS]
        states = [size.elements for size in sizes if size is not None]
        rows.append(state_row(card.name, card.family if card.family != family else "", states, y))
        family = card.family
    height = MARGIN + STATE_ROW * (len(rows) + 2)
    end = height - STATE_ROW
    ticks = [
        f'<line x1="{state_x(tick):g}" y1="{MARGIN}" x2="{state_x(tick):g}" y2="{end}" stroke="#e5e7eb"/>'
        f'<text x="{state_x(tick):g}" y="{height - 6:g}" fill="{PALE}">{tick:,}</text>'
        for tick in STATE_TICKS
    ]
    width = WIDTH + STATE_LEFT // 2
    said = (
        "State of each architecture in two layers of width 64, after " + ", ".join(map(str, STATE_LENGTHS)) + " tokens"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" '
            f'viewBox="0 0 {width} {height:g}" role="img" aria-label="{said}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height:g}" rx="6" fill="#ffffff"/>',
            *ticks,
            *rows,
            "</svg>\n",
        ]
    )


def state_x(elements: int) -> float:
    """Return the place of a state on the axis."""
    low, high = math.log10(STATE_TICKS[0] / 2), math.log10(STATE_TICKS[-1] * 4)
    return round(STATE_LEFT + (WIDTH - STATE_LEFT - MARGIN) * (math.log10(elements) - low) / (high - low), 1)


def state_row(name: str, family: str, states: list[int], y: float) -> str:
    """Draw the name, a dot for each state, a line where the state grows, and the name of a family at its first row."""
    places = [state_x(elements) for elements in states]
    grows = states[-1] > states[0]
    line = f'<line x1="{places[0]:g}" y1="{y}" x2="{places[-1]:g}" y2="{y}" stroke="{FRAME}"/>' if grows else ""
    dots = [
        f'<circle cx="{x:g}" cy="{y}" r="{3 + i:g}" fill="{FRAME if grows else INK}"/>'
        for i, x in enumerate(dict.fromkeys(places))
    ]
    labels = [
        f'<text x="{STATE_LEFT - 8}" y="{y + 4:g}" fill="{INK}" style="text-anchor:end">{escape(name)}</text>',
        f'<text x="{WIDTH + STATE_LEFT // 2 - 8}" y="{y + 4:g}" fill="{PALE}" style="text-anchor:end">{family}</text>',
    ]
    return "\n".join([*labels[: 2 if family else 1], line, *dots]).replace("\n\n", "\n")


def write_all() -> None:
    """Write every picture, and remove those of tasks that no longer exist."""
    STATE_PICTURE.write_text(state_picture())
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.svg"):
        if old.stem not in TASKS:
            old.unlink()
    for name in TASKS:
        (FOLDER / f"{name}.svg").write_text(picture(name))


if __name__ == "__main__":
    write_all()
