"""The ladder of budgets: medians by number of steps, and the claims that they allow."""

from matplotlib.text import Text

from icl_bench.reports.context import NO_STUDY
from icl_bench.reports.parts import rates
from icl_bench.reports.parts.findings import findings
from icl_bench.reports.parts.ladder import ladder_table
from icl_bench.reports.parts.state import PART, drawn_entries
from icl_bench.reports.ranking import rankings
from icl_bench.runs.record import RunRecord
from tests.reports.factory import section_of, several


def at_budget(runs: list[RunRecord], steps: int) -> list[RunRecord]:
    """Records of other runs with this number of training steps."""
    return [
        run.model_copy(
            update={
                "spec": {**run.spec, "train": {**run.spec["train"], "steps": steps}},
                "result": run.result.model_copy(update={"id": f"{run.result.id[:10]}{steps:06}"}),
            }
        )
        for run in runs
    ]


LADDER = [
    *at_budget(several("linear", 0.5), 500),
    *at_budget(several("linear", 0.9), 2000),
    *at_budget(several("softmax", 0.802), 500),
    *at_budget(several("softmax", 0.806), 2000),
]


def test_medians_are_shown_by_budget_with_their_last_move() -> None:
    table = ladder_table(section_of(LADDER))
    assert table.header == ("architecture", "500 steps", "2,000 steps", "last factor", "last move", "settled")
    assert [row[0] for row in table.rows] == ["linear", "softmax"]
    assert [row[3:] for row in table.rows] == [("4", "+0.400", "no"), ("4", "+0.004", "yes")]
    assert ladder_table(section_of(several("linear", 0.5))).rows == ()
    idle = [*at_budget(several("window:w=1", 0.01, 0.001), 500), *at_budget(several("window:w=1", 0.01, 0.001), 2000)]
    assert ladder_table(section_of(idle)).rows[0][-1] == "untrained"  # it does not move, but is not settled either


def test_claims_are_made_at_the_largest_budget_and_say_that_it_moved() -> None:
    section = section_of(LADDER)
    (ranking,) = rankings(section)
    assert (ranking.pairs, ranking.best and ranking.best.label) == (1, "linear, steps=2000")
    text = " ".join(findings(section))
    assert "the last factor of the budget moved linear, steps=2000, by up to 0.400" in text
    assert "do linear (steps=500), linear (steps=2000), softmax (steps=500) and softmax (steps=2000) recall" in text
    assert "for lack of a match" not in text


def test_recall_by_state_draws_the_largest_budget_alone_and_says_so() -> None:
    section = section_of(LADDER)
    assert [entry.label for entry in drawn_entries(section)] == ["linear, steps=2000", "softmax, steps=2000"]
    assert PART.figure is not None and "Of several budgets of training the largest alone" in PART.figure.remark(section)
    one = section_of([*several("linear", 0.5), *several("softmax", 0.8)])
    assert len(drawn_entries(one)) == 2 and "budgets" not in PART.figure.remark(one)


def test_names_in_figures_leave_out_what_all_share_and_the_caption_says_it() -> None:
    swept = [run for arch in ("linear", "softmax") for run in at_budget(several(arch, 0.4, lr=0.01), 500)]
    section = section_of([*LADDER, *swept])
    for part, budget in ((PART, 2000), (rates.PART, 500)):
        assert part.figure is not None and f"All that is drawn has steps={budget}." in part.figure.remark(section)
        figure = part.figure.draw(section, NO_STUDY)
        texts = [] if figure is None else [text.get_text() for text in figure.findobj(Text)]
        assert any(text.startswith("linear") for text in texts) and not any("steps" in text for text in texts)
