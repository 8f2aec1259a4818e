import pytest

from icl_bench.tasks.cells import check_at_most, check_length, check_multiple, check_values


def test_the_axis_that_is_extrapolated_varies_slowest(make):
    task = make("haystack-recall:pairs=[2|4],length=16,extrapolate=32")
    assert [(cell.label, cell.sizes, cell.weight) for cell in task.eval_cells] == [
        ("length=16,pairs=2", (16, 2), 1.0),
        ("length=16,pairs=4", (16, 4), 1.0),
        ("length=32,pairs=2", (32, 2), 0.0),
        ("length=32,pairs=4", (32, 4), 0.0),
    ]
    (points,) = make("linear-regression:dims=2,points=9").eval_cells
    assert (points.label, points.sizes) == ("dims=2", (2, 9))
    assert [cell.label for cell in make("regbench:states=[4|8],strings=6,extrapolate=8").eval_cells] == [
        "states=4,strings=6",
        "states=8,strings=6",
        "states=4,strings=8",
        "states=8,strings=8",
    ]


def test_labels_of_fractions_have_six_digits_and_those_of_integers_all(make):
    assert make("flip-flop:ignore=0.123456789").eval_cells[0].label == "ignore=0.123457"
    assert make("copy:symbols=12345678").eval_cells[0].label == "symbols=12345678"


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_values("pairs", (4, 0)), "pairs must be at least 1; got 0; raise pairs"),
        (lambda: check_values("pairs", (4, 4)), "pairs must differ from each other; got [4, 4]; drop the repeated one"),
        (
            lambda: check_at_most("pairs", 8, "keys", 4),
            "pairs must be at most keys; got pairs = 8 with keys = 4; lower pairs or raise keys to 8",
        ),
        (lambda: check_multiple("length", 7, 2), "length must be even; got 7; try 8"),
        (lambda: check_multiple("length", 7, 3), "length must be a multiple of 3; got 7; try 9"),
        (
            lambda: check_length(8, 12, "3 pairs", "pairs"),
            "length must hold 3 pairs; got 8; raise length to 12 or lower pairs",
        ),
    ],
)
def test_refusals_name_rule_value_and_way_out(check, message):
    with pytest.raises(ValueError) as error:
        check()
    assert str(error.value) == message


def test_values_that_can_be_met_are_accepted():
    check_values("hops", (0, 1), lowest=0)
    check_values("extrapolate", ())
    check_at_most("pairs", 4, "keys", 4)
    check_multiple("length", 8, 2)
    check_length(12, 12, "3 pairs", "pairs")
