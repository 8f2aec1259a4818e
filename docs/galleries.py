"""Galleries of the site: tasks with their pictures, architectures with their recurrence, studies as explorer pages.

Cards are lists in a grid, as Zensical shows them; everything on them comes from the package and the published studies.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from docs.pages import first_line
from icl_bench.architectures import ARCHITECTURES
from icl_bench.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
EXPLORER = Path("docs/studies/explorer/index.html")
"""The page of the packaged studies, as `icl-bench view` wrote it."""
PACKED = re.compile(r'id="data">([^<]*)</script>')
WIDE = "---\nhide:\n  - toc\n---\n\n"
"""Head of a page that takes the room of its list of sections."""
TITLES = 2
"""Largest number of answers on the card of a study."""


def tasks() -> str:
    """Return the gallery of tasks: a picture of a small example and the rule in a line."""
    cards = (
        f"[**{name}**](docs/tasks.md#{name})\n\n    [![A small example of {name}](docs/figures/tasks/{name}.svg)]"
        f"(docs/tasks.md#{name})\n\n    {first_line(TASKS[name].__doc__)}"
        for name in sorted(TASKS)
    )
    return f"{WIDE}# Tasks\n\nScored tokens are framed, with their targets below.\n\n{grid(cards, columns=1)}"


def architectures() -> str:
    """Return the gallery of architectures by family: the recurrence, and the state of a layer."""
    families: dict[str, list[str]] = {}
    for name in sorted(ARCHITECTURES):
        card = ARCHITECTURES[name].card()
        words = f"[**{name}**](docs/architectures.md#{name})\n\n    `{card.recurrence}`\n\n    State: {card.state}."
        families.setdefault(card.family, []).append(words)
    parts = "\n".join(f"## {family[0].upper()}{family[1:]}\n\n{grid(cards)}" for family, cards in families.items())
    return (
        f"{WIDE}# Architectures\n\nThe recurrence of each mixer, for attention its weights; [letters and equations]"
        f"(docs/architectures.md) are on the page of architectures.\n\n{parts}"
    )


def studies() -> str:
    """Return the gallery of the packaged studies whose runs are published: question, answers, explorer and report."""
    document = explorer_data((ROOT / EXPLORER).read_text())
    cards = (study_card(document, place) for place in range(len(document["stores"])))
    return (
        f"{WIDE}# Studies\n\nEach study is a question with runs that answer it, or do not yet. The explorer has every "
        "run: filters, curves and the numbers of each figure. [All reports](docs/studies/README.md) have their "
        f"expectations, conclusions and corrections.\n\n{grid(cards)}"
    )


def study_card(document: Mapping[str, Any], place: int) -> str:
    """Return the card of a study: its question, the answers of its first tasks, and links."""
    store = document["stores"][place]
    own = [section for section in document["sections"] if section["store"] == place]
    answers = "".join(f"\n\n    {section['answers']['recall']}." for section in own[:TITLES])
    report = f"docs/studies/{store['name']}.md"
    links = [f"[explorer]({EXPLORER}#{urlencode({'store': place})})"]
    links += [f"[report]({report})"] if (ROOT / report).is_file() else []
    head = f"**{store['name']}**, {store['totals']}\n\n    {store['study']['question']}"
    return f"{head}{answers}\n\n    {' · '.join(links)}"


def explorer_data(page: str) -> dict[str, Any]:
    """Return the data document of a page that `icl-bench view` wrote."""
    (packed,) = PACKED.findall(page)
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def grid(cards: Iterable[str], columns: int | None = None) -> str:
    """Return cards as a grid, with so many columns or as many as have room."""
    style = f' style="grid-template-columns: repeat({columns}, 1fr)"' if columns else ""
    items = "\n\n".join(f"-   {card}" for card in cards)
    return f'<div class="grid cards" markdown{style}>\n\n{items}\n\n</div>\n'
