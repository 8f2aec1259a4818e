"""Launches of a kernel that keeps them: what reaches the device, and what goes through Triton."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
import triton.language as tl
from triton.runtime.jit import JITFunction

from icl_bench.kernels.ahead import LISTING
from icl_bench.kernels.triton import kept
from icl_bench.kernels.triton.common import View, view_of
from icl_bench.kernels.triton.kept import KeptKernel


def scale_kernel(x, y, out, T, factor, C: tl.constexpr, BLOCK: tl.constexpr):
    """Take a view, two tensors, a whole number and another one."""


class Compiled:
    """A compiled kernel that notes its launches."""

    function, packed_metadata = 7, (4, 1, 0)

    def __init__(self):
        self.launches = []

    def run(self, *arguments):
        self.launches.append(arguments)


@pytest.fixture
def device(monkeypatch):
    """A device of a given number, and the launches that went through Triton, as `through`."""
    found = SimpleNamespace(number=0, stream=11, through=[], compiled=Compiled())
    driver = SimpleNamespace(
        get_current_device=lambda: found.number, get_current_stream=lambda device: found.stream + device
    )
    monkeypatch.setattr(kept, "driver", SimpleNamespace(active=driver))

    def run(kernel, *arguments, grid, warmup, **options):
        found.through.append((arguments, grid, warmup, options))
        return found.compiled

    monkeypatch.setattr(JITFunction, "run", run)
    return found


@pytest.fixture
def kernel():
    return KeptKernel(scale_kernel, ["T"])


def arguments(dtype=torch.float32, t=5):
    """View, tensors and numbers for `scale_kernel`; memory of torch begins at a multiple of 64."""
    x, y, out = (torch.zeros(2, 4, 3, 8, dtype=dtype) for _ in range(3))
    return view_of(x), y, out, t, 0.5


def test_a_second_launch_has_pointers_numbers_and_constants_in_order(kernel, device):
    first, (x, y, out, t, _) = arguments(), arguments()
    kernel[3, 2](*first, BLOCK=16, C="c", num_warps=4)
    assert len(device.through) == 1 and not device.compiled.launches
    kernel[5,](x, y, out, t, 0.25, BLOCK=16, C="c", num_warps=4)
    assert len(device.through) == 1
    place = (x.ptr.data_ptr(), 96, 24, 8)
    assert device.compiled.launches == [
        (5, 1, 1, 11, 7, (4, 1, 0), None, None, None, place, y.data_ptr(), out.data_ptr(), 5, 0.25, "c", 16)
    ]


@pytest.mark.parametrize("change", ["type", "size", "stride", "constant", "option", "device"])
def test_what_triton_compiles_for_makes_another_launch(kernel, device, change):
    x, y, out, t, factor = arguments()
    options = {"C": "c", "BLOCK": 16, "num_warps": 4}
    kernel[1,](x, y, out, t, factor, **options)
    if change == "type":
        y = y.double()
    elif change == "stride":
        x = View(x.ptr, x.n, x.t, 16)
    elif change in ("constant", "option"):
        options[{"constant": "BLOCK", "option": "num_warps"}[change]] = 8
    device.number += change == "device"
    kernel[1,](x, y, out, t + (change == "size"), factor, **options)
    assert len(device.through) == 2 and not device.compiled.launches


def test_a_pointer_that_is_no_multiple_of_16_goes_through_triton(kernel, device):
    x, y, out, t, factor = arguments()
    for tensor in (y, y.flatten()[1:], y.flatten()[1:], y):
        kernel[1,](x, tensor, out, t, factor, C="c", BLOCK=16)
    assert len(device.through) == 3 and len(device.compiled.launches) == 1


@pytest.mark.parametrize("reason", ["warmup", "listing", "hook", "watch"])
def test_launches_that_are_listed_or_watched_go_through_triton(kernel, device, reason, monkeypatch):
    given = arguments()
    kernel[1,](*given, C="c", BLOCK=16)
    if reason == "listing":
        monkeypatch.setattr(LISTING, "tell", print)
    elif reason == "hook":
        kernel.add_pre_run_hook(print)
    elif reason == "watch":
        monkeypatch.setattr(kept.knobs.runtime.launch_exit_hook, "calls", [print])
    kernel.run(*given, grid=(1,), warmup=reason == "warmup", C="c", BLOCK=16)
    assert len(device.through) == 2 and not device.compiled.launches


@pytest.mark.parametrize("found", ["nothing", "not loaded"])
def test_what_is_not_loaded_is_not_kept(kernel, device, found):
    device.compiled.function = None
    device.compiled = None if found == "nothing" else device.compiled
    for _ in range(2):
        kernel[1,](*arguments(), C="c", BLOCK=16)
    assert len(device.through) == 2 and not kernel.launches


def test_a_parameter_without_a_value_is_left_to_triton(kernel, device):
    for _ in range(2):
        kernel[1,](*arguments(), C="c")
    assert len(device.through) == 2 and not kernel.launches


def test_many_lengths_are_forgotten(kernel, device, monkeypatch):
    monkeypatch.setattr(kept, "MOST_LAUNCHES", 3)
    for t in range(7):
        kernel[1,](*arguments(t=t), C="c", BLOCK=16)
    assert len(kernel.launches) == 1


def test_the_interpreter_has_kernels_of_its_own(monkeypatch):
    monkeypatch.setattr(kept.knobs.runtime, "interpret", False)
    assert isinstance(kept.kept_kernel(do_not_specialize=["T"])(scale_kernel), KeptKernel)
    monkeypatch.setattr(kept.knobs.runtime, "interpret", True)
    assert not isinstance(kept.kept_kernel()(scale_kernel), JITFunction)
