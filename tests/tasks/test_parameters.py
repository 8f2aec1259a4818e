"""Any parameters are either refused in one line when the task is made, or give examples that the oracle answers."""

from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from icl_bench.errors import SpecError
from icl_bench.schema import build
from icl_bench.tasks import TASKS, ContinuousTask

NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 24, 33, 64])
PARTS = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5])
LARGEST = 1 << 20
"""Longest sequence that a test makes."""


def values_of(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a parameter, impossible ones included."""
    kinds = [field.annotation, *get_args(field.annotation)]
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    words += [word for word in get_args(field.annotation) if isinstance(word, str)]
    if words:
        return st.sampled_from([*dict.fromkeys(words), "nothing"])
    if field.annotation is bool:
        return st.booleans()
    whole = "float" not in str(field.annotation)
    one = NUMBERS if whole else PARTS
    if any(get_origin(kind) is tuple for kind in kinds):
        return st.lists(one, max_size=2).map(tuple)
    return one


@pytest.mark.parametrize("name", list(TASKS))
@settings(max_examples=60)
@given(data=st.data())
def test_parameters_are_refused_or_answered(name, rows, data) -> None:
    cls = TASKS[name]
    chosen = data.draw(st.lists(st.sampled_from(list(cls.model_fields)), max_size=3, unique=True))
    params = {key: data.draw(values_of(cls.model_fields[key]), label=key) for key in chosen}
    try:
        task = build(cls, params, name)
    except SpecError as error:
        message = str(error)
        assert "\n" not in message
        assert message.count(";") >= 2, f"rule, value and way out: {message}"
        return
    for cell in (*task.train_cells, *task.eval_cells):
        assert cell.length <= LARGEST
        batch = task.sample(rows(task, "test", 2), cell)
        assert batch.positions.shape == (2, cell.scored)
        answers = task.oracle(batch.inputs, batch.positions, cell)
        assert isinstance(task, ContinuousTask) or (task.hits(answers, batch, cell) == 1).all()
        for solve in task.floors.values():
            assert solve(batch.inputs, batch.positions, cell).shape == batch.targets.shape
