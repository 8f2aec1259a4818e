"""The content of a report: its topics, each of which is one part."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from icl_bench.reports import document
from icl_bench.reports.blocks import Name, table_of
from icl_bench.reports.parts.base import Part, SectionFigure
from icl_bench.reports.report import write_report
from icl_bench.reports.text import NONE
from icl_bench.runs.outline import FinishedRuns
from tests.reports.factory import make_record


@pytest.mark.parametrize("suffix", ["md", "html"])
def test_a_new_topic_is_one_part(tmp_path: Path, monkeypatch, suffix: str) -> None:
    figure = SectionFigure("seeds", "A figure.", lambda section, context: Figure())
    part = Part(
        "Seeds",
        lambda section: table_of([{"architecture": Name(one.label), "runs": "17"} for one in section.entries]),
        figure,
        "An explanation.",
    )
    monkeypatch.setattr(document, "PARTS", (*document.PARTS, part))
    text = write_report(FinishedRuns.of([make_record()]), [], tmp_path / f"r.{suffix}", "c").read_text()
    assert all(words in text for words in ("Seeds", "17", "An explanation."))
    assert ("A figure." in text) == (suffix == "md")  # a page has figures of its own
    assert (tmp_path / "r_files" / "1-seeds.svg").exists() == (suffix == "md")


def test_a_table_fills_the_columns_that_a_row_lacks() -> None:
    table = table_of([{"a": "1", "b": "2"}, {"b": "3"}])
    assert (table.header, table.rows) == (("a", "b"), (("1", "2"), (NONE, "3")))
    assert table_of([]).rows == ()
