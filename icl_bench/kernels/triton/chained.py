"""Kernels of a chain: each is launched while the last programs of the one before it run, from Hopper on.

A launch that waits for its turn by itself (programmatic dependent launch) saves most of the time between two kernels,
in a stream and in a graph that was captured from one. Every program of such a kernel first waits until the kernels
before it have ended and what they wrote can be seen: so nothing is read or written any earlier than without. Kernels of
other kinds before or after it are ordered as ever.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import gdc_wait
from triton.runtime import driver
from triton.runtime.jit import JITFunction

HOPPER = 90
"""Number of the first devices on which programs can wait for the kernel before theirs."""


class ChainedKernel(JITFunction):  # type: ignore[misc]
    """A kernel of Triton whose first statement is `wait_for_turn()`."""

    def _run(self, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """Launch the kernel on the current device and stream."""
        early = starts_early(driver.active.get_current_device())
        return super().run(*arguments, grid=grid, warmup=warmup, launch_pdl=early, **options)

    run = _run  # by the name and the signature of Triton's


@functools.cache
def starts_early(device: int) -> bool:
    """Return whether kernels of a chain start early on the device of this index, which is the current one."""
    target = driver.active.get_current_target()
    return target.backend == "cuda" and int(target.arch) >= HOPPER


def chained_kernel(*, do_not_specialize: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a kernel as `triton.jit` does, one of a chain where it is compiled."""
    kind = triton.jit if knobs.runtime.interpret else ChainedKernel
    return functools.partial(kind, do_not_specialize=do_not_specialize)


INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@tl.core.builtin
def is_launched_early(_semantic: Any = None) -> tl.constexpr:
    """Return whether the kernel that is compiled will be launched early."""
    return tl.constexpr(_semantic.builder.options.launch_pdl)


@triton.jit
def wait_for_turn():
    """Wait until all kernels before this one have ended: the first statement of a kernel of a chain."""
    if not INTERPRETED:
        if is_launched_early():
            gdc_wait()
