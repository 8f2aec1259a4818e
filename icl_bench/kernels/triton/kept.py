"""Kernels that are launched again without Triton's look at each argument, which takes longer than the launch itself."""

from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from icl_bench.kernels.ahead import LISTING

MOST_LAUNCHES = 1024
"""Kept launches of a kernel; all are forgotten where there would be more, as with ever new lengths."""
ALIGNMENT = 15
"""Bits of a pointer that are zero where Triton takes it for a multiple of 16."""


class KeptKernel(JITFunction):  # type: ignore[misc]
    """A kernel of Triton that keeps what its launches compiled to, by all that Triton compiles for.

    That is less than is looked at here: whole numbers count by their values, tensors by their types. Arguments are
    tensors, numbers, and records of a tensor and whole numbers; constants and options have names. Launches with a
    pointer that is no multiple of 16, those that only compile, and those that a hook watches go through Triton.
    """

    def __init__(self, function: Callable[..., Any], do_not_specialize: Sequence[str]) -> None:
        super().__init__(function, do_not_specialize=do_not_specialize)
        self.launches: dict[Any, tuple[Any, tuple[Any, ...]]] = {}

    def _run(self, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        """Launch the kernel on the current device and stream."""
        watched = knobs.runtime.launch_enter_hook.calls or knobs.runtime.launch_exit_hook.calls or self.pre_run_hooks
        if warmup or watched or LISTING.tell is not None:
            return super().run(*arguments, grid=grid, warmup=warmup, **options)
        device = driver.active.get_current_device()
        kinds, values, bits = [device, *options, *options.values()], [], 0
        for x in arguments:
            kind = type(x)
            if kind is int:
                kinds.append(x)
                values.append(x)
            elif kind is float:
                kinds.append(kind)
                values.append(x)
            else:
                sizes = x[1:] if issubclass(kind, tuple) else None
                tensor = x if sizes is None else x[0]
                place = tensor.data_ptr()
                bits |= place
                kinds += (tensor.dtype, tensor.get_device(), sizes)
                values.append(place if sizes is None else (place, *sizes))
        key = tuple(kinds)
        kept = self.launches.get(key)
        if kept is None or bits & ALIGNMENT:
            compiled = super().run(*arguments, grid=grid, warmup=False, **options)
            if not bits & ALIGNMENT and compiled is not None and compiled.function is not None:  # None: not loaded
                self._keep(key, compiled, len(arguments), options)
            return compiled
        compiled, constants = kept
        first, second, third = (*grid, 1, 1)[:3]
        compiled.run(
            first, second, third, driver.active.get_current_stream(device), compiled.function, compiled.packed_metadata,
            None, None, None, *values, *constants,
        )  # fmt: skip
        return compiled

    run = _run  # by the name and the signature of Triton's

    def _keep(self, key: Any, compiled: Any, given: int, options: dict[str, Any]) -> None:
        """Keep a launch whose further parameters are constants."""
        names = self.arg_names[given:]
        if all(name in options for name in names):
            if len(self.launches) >= MOST_LAUNCHES:
                self.launches.clear()
            self.launches[key] = compiled, tuple(options[name] for name in names)


def kept_kernel(*, do_not_specialize: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a kernel as `triton.jit` does, one that keeps its launches where it is compiled."""
    interpreted: Callable[[Callable[..., Any]], Any] = triton.jit(do_not_specialize=do_not_specialize)
    return interpreted if knobs.runtime.interpret else lambda function: KeptKernel(function, do_not_specialize)
