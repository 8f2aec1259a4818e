"""The context of a GPU that is made beside an import: the calls of the driver, and machines where they fail."""

import ctypes
import importlib

import pytest

from icl_bench.kernels import context


class Driver:
    """A driver of which one function fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.called = failing, []

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.called.append(name)
            return int(name == self.failing)

        return call


@pytest.mark.parametrize(("failing", "count"), [("", 3), ("cuInit", 1), ("cuDeviceGet", 2)])
def test_the_primary_context_is_kept_where_there_is_a_gpu(monkeypatch, failing: str, count: int) -> None:
    driver = Driver(failing)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    context.make_context()
    assert driver.called == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"][:count]


def test_a_machine_without_a_driver_is_left_alone(monkeypatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    importlib.reload(context)
    context.MAKING.join(10)
    assert not context.MAKING.is_alive()
