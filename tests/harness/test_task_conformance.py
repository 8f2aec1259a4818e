"""`check-task` prints a line for each promise; its checks are tested in tests/tasks and tests/test_plugin.py."""

import pytest

from icl_bench.harness.task_conformance import TASK_CHECKS


def test_a_task_of_the_package_passes_in_a_table(command) -> None:
    outcome = command("check-task", "copy:symbols=4")
    assert outcome.status == 3 and "no test in training" in outcome.out  # four letters repeat
    outcome = command("check-task", "copy")
    lines = outcome.out.splitlines()
    assert outcome.status == 0 and len(lines) == 1 + len(TASK_CHECKS) and not outcome.err
    assert all(line.split("  ")[1:] and "passed" in line for line in lines[1:])


@pytest.mark.parametrize("spec", ["no-such-task", "copy:symbols=0", "copy:letters=3"])
def test_a_wrong_spec_is_one_line_and_exit_status_2(command, spec: str) -> None:
    outcome = command("check-task", spec)
    assert outcome.status == 2 and outcome.err.startswith("Error: ") and outcome.err.count("\n") == 1
