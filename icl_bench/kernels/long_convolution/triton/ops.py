"""The long convolution in Triton, as an operator of torch: differentiable, traceable, capturable; bits repeat."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.backends import launch_on
from icl_bench.kernels.long_convolution.records import ConvolutionInputs
from icl_bench.kernels.long_convolution.triton import launch as launch

CONVOLUTION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def long_convolution_triton(inputs: ConvolutionInputs) -> Tensor:
    """Return y [N, T, C]; with a cache, of all tokens, of which the last T are taken.

    Raise KernelUnavailableError for a type that the kernels do not take.
    """
    u, filters, cache = inputs
    if u.dtype not in CONVOLUTION_DTYPES:
        raise KernelUnavailableError(
            f"impl='triton' needs u in bfloat16, float16 or float32; got {u.dtype}: cast it, or use impl='fft'"
        )
    past = u if cache is None else torch.cat([cache, u], dim=1)
    made: Tensor = _convolve(past if past.stride(2) == 1 else past.contiguous(), filters)[0]
    return made if cache is None else made[:, cache.shape[1] :]


@torch.library.custom_op("icl_bench::long_convolution_forward", mutates_args=())
def _convolve(u: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return y [N, T, C] of inputs u and filters [M, C, L], L >= T, and the rows of u."""
    with launch_on(u):
        rows = launch.to_rows(u, filters.shape[0])
        return launch.from_rows(launch.convolve(rows, filters.contiguous(), u.shape[1]), u.shape), rows


@_convolve.register_fake
def _convolve_fake(u: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(launch.rows_shape(u.shape, filters.shape[0]))


@torch.library.custom_op("icl_bench::long_convolution_backward", mutates_args=())
def _convolve_backward(dy: Tensor, rows: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return du and the gradient of the filters."""
    length = dy.shape[1]
    with launch_on(dy):
        along = launch.to_rows(dy, filters.shape[0])
        du = launch.from_rows(launch.convolve(along, filters.contiguous(), length, transposed=True), dy.shape)
        sums = launch.lag_sums(along, rows, length)
    dfilters = sums[:, :, :, 0] + pad(sums[:, :, 1:, 1], (0, 0, 0, 1))
    dfilters = dfilters.flatten(2)[..., :length]
    return du, pad(dfilters, (0, filters.shape[2] - length)).contiguous()


@_convolve_backward.register_fake
def _convolve_backward_fake(dy: Tensor, rows: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    return dy.new_empty(dy.shape), filters.new_empty(filters.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[1])


def _differentiate(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor, Tensor]:
    du, dfilters = _convolve_backward(dy if dy.stride(2) == 1 else dy.contiguous(), *ctx.saved_tensors)
    return du, dfilters


_convolve.register_autograd(_differentiate, setup_context=_keep)
