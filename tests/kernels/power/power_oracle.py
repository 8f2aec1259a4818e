"""Random problems of power attention, their float64 definition, and the errors of the Triton kernels against it."""

import torch
from torch import Tensor

from icl_bench.kernels.power.expansion import expand
from icl_bench.kernels.power.records import PowerInputs, PowerOptions, PowerState
from icl_bench.kernels.power.triton.ops import power_attention_triton

# Root-mean-square errors relative to float64: outputs, and each gradient.
# bfloat16 rounds operands to 2^-9, tf32 to 2^-11.
BOUNDS = {torch.bfloat16: (5e-3, 1e-2), torch.float16: (2e-3, 5e-3), torch.float32: (1e-5, 1e-5)}


class Case:
    """Random inputs of one problem, exact in `dtype`, with random gates and cotangents.

    Log gates are -.31 on average, times `decay`.
    """

    def __init__(
        self, *, n=1, t=100, heads=2, groups=1, key_heads=None, key=64, value=64, p=2, gated=True, normalize="sum",
        chunk=None, initial=False, keep=False, dtype=torch.bfloat16, size=1.0, decay=1.0, device="cuda",
    ):  # fmt: skip
        g = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        q, k = normal(n, t, heads, key) * size, normal(n, t, key_heads or groups, key) * size
        if p == 1 and normalize == "sum":
            q, k = q.abs(), k.abs()
        log_g = None
        if gated:
            log_g = decay * torch.log(torch.rand(n, t, groups, generator=g, dtype=torch.float64) * 0.5 + 0.5)
        s = z = None
        if initial:
            past = normal(n, 9, groups, key)
            past = expand(past.abs() if p == 1 else past, p)
            s = torch.einsum("ntgd,ntgv->ngdv", past, normal(n, 9, groups, value))
            z = past.sum(1) if normalize == "sum" else None
        kinds = [dtype, dtype, dtype, torch.float32, torch.float32, torch.float32]
        inputs = [q, k, normal(n, t, groups, value), log_g, s, z]
        self.inputs = [None if x is None else x.to(kind).to(device) for x, kind in zip(inputs, kinds, strict=True)]
        self.p, self.scale, self.normalize, self.chunk, self.keep, self.dtype = (
            p,
            key**-0.5,
            normalize,
            chunk,
            keep,
            dtype,
        )

    def exact(self) -> list[Tensor]:
        q, k, v, log_g, s, z = leaves = [_leaf(x, torch.float64) for x in self.inputs]
        outputs = _definition(q, k, v, log_g, s, z, self.p, self.scale, self.normalize == "sum", self.keep)
        return self._with_gradients(outputs, leaves)

    def sizes(self) -> list[float]:
        """The norms that errors are relative to: those of the exact results.

        Where the first token has no state to read, its weight divides itself out, and the exact gradients of its query
        and key cancel to nothing while rounding is magnified by 1/(q.k). With one token, or in float32, where the bound
        leaves no room for that row, q and k are measured by their gradients with the normaliser held fixed.
        """
        sizes = [x.norm().item() for x in self.exact()]
        if self.inputs[0].shape[1] == 1 or self.dtype == torch.float32:
            leaves = [_leaf(x, torch.float64) for x in self.inputs]
            outputs = _definition(*leaves, self.p, self.scale, self.normalize == "sum", self.keep, hold=True)
            held = [x.norm().item() for x in self._with_gradients(outputs, leaves)]
            first = len(held) - sum(x is not None for x in self.inputs)
            sizes[first : first + 2] = [max(a, b) for a, b in zip(sizes[first:], held[first : first + 2], strict=False)]
        return sizes

    def triton(self) -> list[Tensor]:
        q, k, v, log_g, s, z = leaves = [_leaf(x) for x in self.inputs]
        start = None if s is None else PowerState(s, z)
        options = PowerOptions(self.p, self.scale, self.normalize, 1e-6, self.chunk)
        y, state = power_attention_triton(PowerInputs(q, k, v, log_g, start), options, self.keep)
        return self._with_gradients([y, *(state or (None, None))], leaves)

    def _with_gradients(self, outputs, leaves) -> list[Tensor]:
        outputs = outputs[: (1 if not self.keep else 3 if self.normalize == "sum" else 2)]
        g = torch.Generator().manual_seed(99)
        cotangents = [
            torch.randn(x.shape, generator=g).to(self.dtype if i == 0 else torch.float32) for i, x in enumerate(outputs)
        ]
        leaves = [x for x in leaves if x is not None]
        gradients = torch.autograd.grad(outputs, leaves, [c.to(x) for c, x in zip(cotangents, outputs, strict=True)])
        return [*outputs, *gradients]

    def errors(self) -> tuple[list[float], list[float]]:
        found, exact = self.triton(), self.exact()
        errors = [_error(a, b, size) for a, b, size in zip(found, exact, self.sizes(), strict=True)]
        count = len(errors) - sum(x is not None for x in self.inputs)
        return errors[:count], errors[count:]

    def check(self) -> None:
        outputs, gradients = self.errors()
        bound, gradient_bound = BOUNDS[self.dtype]
        assert all(e <= bound for e in outputs), (outputs, gradients)
        assert all(e <= gradient_bound for e in gradients), (outputs, gradients)


def _definition(q, k, v, log_g, s, z, p, scale, normalize, keep, hold=False) -> list[Tensor | None]:
    """Scores, weights and states as `power_attention_reference` has them, with states by the fast expansion."""
    q, k, v, log_g, _ = PowerInputs(q, k, v, log_g, None).with_own_heads()
    shared = q.shape[2] // k.shape[2]
    c = torch.zeros_like(k[..., 0]) if log_g is None else log_g.cumsum(1)
    causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril()
    difference = (c[:, :, None] - c[:, None]).masked_fill(~causal[None, :, :, None], -torch.inf)
    keys, values = k.repeat_interleave(shared, 2), v.repeat_interleave(shared, 2)
    weights = difference.exp().repeat_interleave(shared, 3) * (scale * torch.einsum("nihk,njhk->nijh", q, keys)) ** p
    y, total = torch.einsum("nijh,njhv->nihv", weights, values), weights.sum(2)
    if s is not None:
        reach = expand(q, p) * (c.exp() * scale**p).repeat_interleave(shared, 2)[..., None]
        y = y + torch.einsum("nthd,nhdv->nthv", reach, s.repeat_interleave(shared, 1))
        total = total if z is None else total + torch.einsum("nthd,nhd->nth", reach, z.repeat_interleave(shared, 1))
    if keep:
        last = c[:, -1].exp()
        phi = expand(k, p) * (c[:, -1:] - c).exp()[..., None]
        s = torch.einsum("ntgd,ntgv->ngdv", phi, v) + (0 if s is None else last[..., None, None] * s)
        z = phi.sum(1) + (0 if z is None else last[..., None] * z)
    total = total.detach() if hold else total
    return [y / (total[..., None] + 1e-6) if normalize else y, s, z]


def _leaf(x: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    return None if x is None else x.detach().to(dtype or x.dtype).clone().requires_grad_()


def _error(a: Tensor, b: Tensor, size: float) -> float:
    """NaN, and so never at most a bound, where anything is NaN; absolute where the size is 0."""
    difference = (a.double() - b).norm().item()
    return difference / size if size > 0 else difference
