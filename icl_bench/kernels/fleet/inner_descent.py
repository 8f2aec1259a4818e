"""Gradient descent of an inner model on keys and values, by minibatches of 16 tokens (Sun et al., arXiv 2407.04620).

    W_t = W_s - n_t sum_(s < j <= t) e_j dl_j/dW,   b_t = b_s - n_t sum_(s < j <= t) e_j dl_j/db,   for all layers
    l_j = |LN(f_s(k_j)) - (v_j - k_j)|^2 / 2,   y_t = q_t + LN(f_t(q_t))

f is a linear map, or several with GELU between them; s is the last token of the minibatch before; n_t is a number for
each place in a minibatch; LN is a layer norm with the gain and the shift of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.arguments import check_shape
from icl_bench.kernels.backends import FleetImpl, takes_triton
from icl_bench.kernels.fleet.projection import HALF_TYPES
from icl_bench.kernels.fleet.records import MINIBATCH, MOST_INNER_LAYERS, WIDEST_INNER

NORM_EPS = 1e-6
WIDE_KEYS_BYTES = 228 << 10
"""Least shared memory of a multiprocessor for keys of more than 64 columns, that of Hopper: a program takes up to 121
KiB there, and compiled for Ampere it spills most of what it holds (Triton 3.6)."""
gelu_backward = torch.ops.aten.gelu_backward
"""Gradient of GELU, which has a gradient itself, in one launch."""


class InnerLayer(NamedTuple):
    """Weights and biases of a layer of the inner models, or sums of their gradients."""

    weight: Tensor
    """[M, B, H, in, out]."""
    bias: Tensor
    """[M, B, H, 1, out]."""

    def apply(self, x: Tensor) -> Tensor:
        """Return x W + b: [M, B, H, T, in] -> [M, B, H, T, out]."""
        return x @ self.weight + self.bias

    def less(self, sums: "InnerLayer", factor: Tensor) -> "InnerLayer":
        """Return the layer after a step of gradient descent."""
        return InnerLayer(self.weight - factor * sums.weight, self.bias - factor * sums.bias)

    def plus(self, x: Tensor, gradient: Tensor) -> "InnerLayer":
        """Return the sums with the gradients of tokens x [M, B, H, T, in] and of their outputs [.., out] added."""
        return InnerLayer(self.weight + x.mT @ gradient, self.bias + gradient.sum(-2, keepdim=True))

    def zeros(self) -> "InnerLayer":
        """Return sums of no gradients."""
        return InnerLayer(torch.zeros_like(self.weight), torch.zeros_like(self.bias))


Layers = tuple[InnerLayer, ...]


class InnerNorm(NamedTuple):
    """Gain and shift of the layer norm of heads, [M, 1, H, 1, K] each."""

    gain: Tensor
    shift: Tensor

    def apply(self, z: Tensor) -> Tensor:
        """Apply the norm to [M, B, H, T, K]."""
        return self.gain * functional.layer_norm(z, z.shape[-1:], eps=NORM_EPS) + self.shift


class InnerTokens(NamedTuple):
    """Tokens, [M, B, H, T, .] each."""

    q: Tensor
    k: Tensor
    v: Tensor
    rates: Tensor


def inner_descent(
    q: Tensor, k: Tensor, v: Tensor, rates: Tensor, factors: Tensor, model: tuple[Layers, InnerNorm],
    *, impl: FleetImpl = "auto",
) -> Tensor:  # fmt: skip
    """Return y [M, B, T, H, K] in the type of v, for tokens of that shape, rates e [M, B, T, H] and n [M, 16].

    The layers have an axis of 1 for the batch; they, the norm, rates and n are float32, or float64. "triton" takes one
    layer or two and K up to 128, or 64 where a GPU has less shared memory than Hopper; "auto" is that where it fits,
    for tokens in half precision.
    """
    layers, norm = model
    check_shape("rates", rates, q.shape[:-1], "[M, B, T, H]")
    check_shape("factors", factors, (q.shape[0], MINIBATCH), "[M, 16]")
    widest = widest_keys(q.device)
    fits = len(layers) <= MOST_INNER_LAYERS and q.shape[-1] <= widest
    if impl == "triton" and not fits:
        raise KernelUnavailableError(
            f"impl='triton' takes up to {MOST_INNER_LAYERS} layers and keys of up to {widest} on {q.device}; got "
            f"K={q.shape[-1]} and {len(layers)} layers: use impl='auto'"
        )
    if takes_triton(impl, v) and fits and (v.dtype in HALF_TYPES or impl == "triton"):
        return fused_descent((q, k, v, rates, factors), layers, norm)
    wide = torch.float64 if impl == "reference" else rates.dtype
    parts = (part.transpose(2, 3).to(wide) for part in (q, k, v, rates[..., None]))
    layers = tuple(InnerLayer(*(part.to(wide) for part in layer)) for layer in layers)
    norm, shares, rows = InnerNorm(*(part.to(wide) for part in norm)), factors.to(wide)[:, None, None, :, None], []
    for tokens in zip(*(part.split(MINIBATCH, dim=3) for part in parts), strict=True):
        y, layers = take_minibatch(InnerTokens(*tokens), shares, layers, norm)
        rows.append(y)
    return torch.cat(rows, dim=3).transpose(2, 3).to(v.dtype)


def widest_keys(device: torch.device) -> int:
    """Return the widest keys for which the kernels fit the shared memory of a device."""
    if device.type != "cuda":
        return WIDEST_INNER
    shared = torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor
    return WIDEST_INNER if shared >= WIDE_KEYS_BYTES else WIDEST_INNER // 2


def fused_descent(tokens: tuple[Tensor, ...], layers: Layers, norm: InnerNorm) -> Tensor:
    """Return y by the kernel for one layer or for two."""
    from icl_bench.kernels.fleet.triton.inner_descent import FusedInnerDescent
    from icl_bench.kernels.fleet.triton.inner_network import FusedInnerNetwork

    parameters = [part[:, 0] for layer in (*layers, norm) for part in layer]
    if len(layers) == 1:
        y: Tensor = FusedInnerDescent.apply(*tokens, *parameters, NORM_EPS)
    else:
        y = FusedInnerNetwork.apply(*tokens, *parameters, NORM_EPS, torch.is_grad_enabled())
    return y


def take_minibatch(tokens: InnerTokens, factors: Tensor, layers: Layers, norm: InnerNorm) -> tuple[Tensor, Layers]:
    """Take up to 16 tokens, n [M, 1, 1, 16, 1]: return y [M, B, H, T, K], and the inner model after them."""
    q, k, v, rates = tokens
    inputs, gradients = inner_gradients(k, v - k, layers, norm)
    factors = factors[..., : q.shape[3], :]
    steps = (factors * rates.mT).tril()  # of the gradient of token s at token t
    z = q
    for depth, (layer, held, gradient) in enumerate(zip(layers, inputs, gradients, strict=True)):
        z = functional.gelu(z, approximate="tanh") if depth else z
        z = layer.apply(z) - (steps * (z @ held.mT) + steps) @ gradient
    return q + norm.apply(z), added(layers, inputs, gradients, -factors[..., -1:, :] * rates)


def take_token(
    tokens: InnerTokens, factor: Tensor, layers: Layers, sums: Layers, norm: InnerNorm
) -> tuple[Tensor, Layers, Layers]:
    """Take one token, n [M, 1, 1, 1, 1] at its place: return y [M, B, H, 1, K], the inner model after it, and the sums.

    `layers` is the inner model at the start of the minibatch, `sums` the gradients of its tokens times their rates.
    """
    inputs, gradients = inner_gradients(tokens.k, tokens.v - tokens.k, layers, norm)
    sums = added(sums, inputs, gradients, tokens.rates)
    now, z = descended(layers, sums, factor), tokens.q
    for depth, layer in enumerate(now):
        z = layer.apply(functional.gelu(z, approximate="tanh") if depth else z)
    return tokens.q + norm.apply(z), now, sums


def inner_gradients(k: Tensor, target: Tensor, layers: Layers, norm: InnerNorm) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs of all layers for keys [M, B, H, T, K], and the gradients of the loss by their outputs."""
    inputs, outputs = [k], []
    for layer in layers:
        outputs.append(layer.apply(inputs[-1]))
        inputs.append(functional.gelu(outputs[-1], approximate="tanh"))
    gradients = [loss_gradient(outputs[-1], target, norm)]
    for layer, z in zip(reversed(layers[1:]), reversed(outputs[:-1]), strict=True):
        gradients.append(gelu_backward(gradients[-1] @ layer.weight.mT, z, approximate="tanh"))
    return inputs[:-1], gradients[::-1]


def loss_gradient(z: Tensor, target: Tensor, norm: InnerNorm) -> Tensor:
    """Return the gradient of |LN(z) - target|^2 / 2 by z."""
    centred = z - z.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    normed = centred * scale
    g = norm.gain * (norm.gain * normed + norm.shift - target)
    return scale * (g - g.mean(-1, keepdim=True) - normed * (g * normed).mean(-1, keepdim=True))


def added(sums: Layers, inputs: list[Tensor], gradients: list[Tensor], rates: Tensor) -> Layers:
    """Add the gradients of tokens, times their rates, to numbers of all layers."""
    pairs = zip(sums, inputs, gradients, strict=True)
    return tuple(layer.plus(x, rates * gradient) for layer, x, gradient in pairs)


def descended(layers: Layers, sums: Layers, factor: Tensor) -> Layers:
    """Return the inner model after a step of gradient descent by the sums, times the factor of the token."""
    return tuple(layer.less(own, factor) for layer, own in zip(layers, sums, strict=True))
