"""Tests of a GPU that find too little memory are called again; all others end as they do."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from tests import gpu_memory
from tests.gpu_memory import called_again


class Device:
    """A clock, and a GPU on which other work gives memory back at a time."""

    def __init__(self, returned_at: float) -> None:
        self.returned_at, self.now = returned_at, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def mem_get_info(self) -> tuple[int, int]:
        return 2 * gpu_memory.GIB if self.now >= self.returned_at else 0, 0


@pytest.fixture
def device(monkeypatch) -> Device:
    made = Device(3 * gpu_memory.PAUSE)
    monkeypatch.setattr(gpu_memory, "time", made)
    monkeypatch.setattr(torch.cuda, "mem_get_info", made.mem_get_info)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: gpu_memory.GIB)
    return made


def failing(errors: list[Exception], calls: list[int]):
    def test(size: int) -> None:
        calls.append(size)
        if errors:
            raise errors.pop(0)

    return called_again(test)


def during_another(error: RuntimeError) -> RuntimeError:
    """Return an error that came up while one for want of memory was handled."""
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR"),
        during_another(RuntimeError("operation failed due to a previous error during capture")),
    ],
    ids=str,
)
def test_a_test_without_memory_is_called_again_when_others_gave_it_back(device, error) -> None:
    calls: list[int] = []
    failing([error], calls)(size=3)
    assert calls == [3, 3] and device.now == device.returned_at


def test_it_fails_where_the_memory_stays_taken(device) -> None:
    device.returned_at, calls = 1e9, []
    with pytest.raises(torch.OutOfMemoryError):
        failing([torch.OutOfMemoryError("CUDA out of memory") for _ in range(9)], calls)(1)
    assert len(calls) == 2 and device.now >= gpu_memory.LONGEST_WAIT


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), AssertionError("wrong")])
def test_other_failures_stay(device, error) -> None:
    device.returned_at = 0.0
    calls: list[int] = []
    with pytest.raises(type(error)):
        failing([error], calls)(1)
    assert calls == [1]


@pytest.mark.parametrize("gib", [1, 9])
def test_a_test_begins_when_its_memory_is_free_and_is_skipped_where_the_gpu_has_less(device, monkeypatch, gib) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8 * gpu_memory.GIB)
    )
    with pytest.raises(pytest.skip.Exception) if gib > 8 else nullcontext(), gpu_memory.reserved(gib, in_turn=True):
        assert device.now == device.returned_at
