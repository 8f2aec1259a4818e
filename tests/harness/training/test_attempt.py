"""Kinds of failures."""

import torch

from icl_bench.harness.training.attempt import failure_kind


def test_memory_and_faults_are_told_from_other_errors():
    assert (
        failure_kind(torch.OutOfMemoryError("x"))
        == failure_kind(RuntimeError("can't allocate memory: 4 bytes"))
        == "memory"
    )
    assert failure_kind(RuntimeError("Triton Error [CUDA]: misaligned address")) == "fault"
    assert failure_kind(RuntimeError("sizes do not match")) is None and failure_kind(ValueError("CUDA error")) is None
    try:
        try:
            raise torch.OutOfMemoryError("first")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert failure_kind(error) == "memory"
