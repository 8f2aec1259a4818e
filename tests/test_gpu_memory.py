"""Tests of a GPU that find too little memory are called again; all others end as they do."""

import pytest
import torch

from tests import gpu_memory
from tests.gpu_memory import called_again


class Device:
    """A GPU on which other work gives memory back with each look at it, and a clock that goes on with each pause."""

    def __init__(self, free: list[int]) -> None:
        self.free, self.now = free, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def mem_get_info(self) -> tuple[int, int]:
        return self.free.pop(0) if len(self.free) > 1 else self.free[0], 0


@pytest.fixture
def device(monkeypatch) -> Device:
    made = Device([0, 0, 2 * gpu_memory.GIB])
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


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_a_test_without_memory_is_called_again_when_others_gave_it_back(device, error) -> None:
    calls: list[int] = []
    failing([error], calls)(size=3)
    assert calls == [3, 3] and device.now == 3 * gpu_memory.PAUSE


def test_it_fails_where_the_memory_stays_taken(device) -> None:
    device.free, calls = [0], []
    with pytest.raises(torch.OutOfMemoryError):
        failing([torch.OutOfMemoryError("CUDA out of memory") for _ in range(9)], calls)(1)
    assert len(calls) == 2 and device.now >= gpu_memory.LONGEST_WAIT


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), AssertionError("wrong")])
def test_other_failures_stay(device, error) -> None:
    calls: list[int] = []
    with pytest.raises(type(error)):
        failing([error], calls)(1)
    assert calls == [1]
