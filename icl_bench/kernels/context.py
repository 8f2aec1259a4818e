"""The context of a GPU, made before the first fleet needs it."""

from contextlib import suppress

import torch

from icl_bench.kernels.backends import has_triton, prepare_in_turn


def make_context() -> None:
    """Make the context of the GPU, if there is one, and load the libraries that kernels are launched through.

    It takes a second, most of it without Python's lock. An error of the device is left to the first fleet that uses it.
    """
    if not torch.cuda.is_available():
        return
    with suppress(RuntimeError):
        ones = torch.ones(1, 16, 16, device="cuda", dtype=torch.bfloat16)
        torch.bmm(ones, ones)
        if has_triton(ones):
            prepare_in_turn()
            from icl_bench.kernels.triton.common import add_parts

            add_parts(ones, ones.dtype)
