"""Random problems of the delta rule, one for each architecture that it serves, and errors against float64."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.delta.chunked import delta_by_chunks
from icl_bench.kernels.delta.records import DeltaInputs, DeltaOptions, check_delta


class Variant(NamedTuple):
    """The inputs and options of an architecture."""

    rule: str = "delta"
    reads: str = "decayed"
    gate: str = "none"  # none, heads, channels
    least: float | None = None
    beta: bool = False
    read: bool = False
    substeps: int = 1
    value_gate: bool = False
    bonus: bool = False
    ahead: bool = False


VARIANTS = {
    "delta-net": Variant(beta=True),
    "no-rate": Variant(),
    "gated-delta-net": Variant(beta=True, gate="heads"),
    "kda": Variant(beta=True, gate="channels", least=-5.0),
    "unbounded-kda": Variant(beta=True, gate="channels"),
    "gdn-2": Variant(gate="channels", read=True),
    "comba": Variant(beta=True, gate="heads", read=True, reads="undecayed"),
    "undecayed-keys": Variant(beta=True, gate="heads", reads="undecayed"),
    "comba-channels": Variant(beta=True, gate="channels", read=True, reads="undecayed"),
    "rwkv-7": Variant("untied", "undecayed", "channels", least=-0.607, read=True),
    "unbounded-untied": Variant("untied", "undecayed", "channels", read=True),
    "untied-heads": Variant("untied", "decayed", "heads", read=True),
    "untied": Variant("untied", read=True),
    "gated-delta-product": Variant(beta=True, gate="heads", substeps=2),
    "channel-delta-product": Variant(beta=True, gate="channels", substeps=3),
    "linear": Variant("linear"),
    "ret-net": Variant("linear", gate="heads"),
    "gla": Variant("linear", gate="channels", least=-5.0),
    "hgrn2": Variant("linear", gate="channels"),
    "rwkv-6": Variant("linear", gate="channels", ahead=True),
    "bonus-channels": Variant("linear", gate="channels", bonus=True),
    "bonus-heads": Variant("linear", gate="heads", bonus=True),
    "mamba-3": Variant("linear", gate="heads", ahead=True),
    "gsa": Variant("linear", value_gate=True),
}
# Relative Frobenius errors against float64 from the same inputs: 2e-2 for products in bfloat16; 2e-3 in tf32, and half
# a unit in the last place of float16, to which results are rounded. Products of float32 keep its digits.
BOUNDS = {torch.bfloat16: 2e-2, torch.float16: 2e-3 + 2**-12, torch.float32: 1e-5}


def make_problem(
    variant: Variant, *, n=1, t=20, heads=1, groups=2, key=8, value=6, dtype=torch.float64, initial=True,
    keys="random", rate=1.0, decay=None, seed=0, device="cpu",
) -> tuple[DeltaInputs, DeltaOptions]:  # fmt: skip
    """Random inputs that fit a variant; keys are normalised: random, one ("same"), four ("few") or near ("cosine")."""
    generator = torch.Generator().manual_seed(seed)
    kind = accumulation_dtype(dtype)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def logs(*shape):
        free = logsigmoid(normal(*shape) * 2 + 1) if decay is None else torch.full(shape, decay, dtype=torch.float64)
        return free if variant.least is None else free.clamp(variant.least, 0)

    tokens = t * variant.substeps
    k = normal(n, tokens, heads, key)
    if keys == "same":
        k = k[:, :1].expand_as(k)
    elif keys == "few":
        k = k[:, :4].repeat(1, -(-tokens // 4), 1, 1)[:, :tokens]
    elif keys == "cosine":
        k = 3 * k[:, :1] + k
    k = normalize(k, dim=3)
    own = {"read": None, "erase": None}
    if variant.read:
        own["read"] = normalize(normal(n, tokens, heads, key), dim=3) if variant.rule == "delta" else -k
    if variant.rule == "untied":
        own["erase"] = k * torch.rand(n, tokens, heads, key, generator=generator, dtype=torch.float64)
    raw = {
        "q": normal(n, t, heads, key),
        "k": k if variant.rule != "untied" else normal(n, tokens, heads, key),
        "v": normal(n, tokens, groups, value),
        **own,
    }
    gates = {
        "beta": torch.rand(n, tokens, groups, generator=generator, dtype=torch.float64) * rate
        if variant.beta
        else None,
        "log_decay": {"none": None, "heads": logs(n, t, groups), "channels": logs(n, t, groups, key)}[variant.gate],
        "log_value_decay": logs(n, t, groups, value) if variant.value_gate else None,
        "bonus": normal(heads, key) if variant.bonus else None,
        "state": normal(n, groups, key, value) if initial else None,
    }
    fields = {name: None if x is None else x.to(dtype).to(device) for name, x in raw.items()}
    fields |= {name: None if x is None else x.to(kind).to(device) for name, x in gates.items()}
    options = DeltaOptions(variant.rule, variant.reads, least_log_decay=variant.least, ahead=variant.ahead)
    return DeltaInputs(**fields), options


def results(form, inputs: DeltaInputs, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The outputs of a form, and the gradients of all inputs along fixed random directions."""
    leaves = [None if x is None else x.detach().to(dtype or x.dtype).clone().requires_grad_() for x in inputs]
    outputs = form(DeltaInputs(*leaves))
    generator = torch.Generator().manual_seed(99)
    # Exact in bfloat16, so that every type is asked for the same gradient.
    along = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outputs]
    given = {name: x for name, x in zip(DeltaInputs._fields, leaves, strict=True) if x is not None}
    gradients = torch.autograd.grad(outputs, list(given.values()), along)
    found = dict(zip(("y", "last"), outputs, strict=True))
    return found | {f"d{name}": x for name, x in zip(given, gradients, strict=True)}


def errors(form, inputs: DeltaInputs, options: DeltaOptions) -> dict[str, float]:
    """Relative errors of a form's outputs and gradients against the chunked form in float64.

    A gradient of gates is a difference of products of the vectors with their own gradients, which cancel where decays
    are strong: its error is relative to the largest of them, if that is larger, and to 1 at least.
    """
    wide = DeltaInputs(*(None if x is None else x.double() for x in inputs))
    exact = results(lambda x: delta_by_chunks(x, options), wide)
    found = results(lambda x: form(x, options), inputs)
    sizes = {name: x.norm().clamp(min=1.0) for name, x in exact.items()}
    terms = [
        (x * exact[f"d{name}"]).norm() for name in ("q", "k", "read", "erase") if (x := getattr(wide, name)) is not None
    ]
    if "dlog_decay" in sizes:
        sizes["dlog_decay"] = max(sizes["dlog_decay"], *terms)
    return {name: ((found[name] - x).norm() / sizes[name]).item() for name, x in exact.items()}


def check(form, inputs: DeltaInputs, options: DeltaOptions, overwritten: bool = False, undamped: bool = False) -> None:
    """Assert that all errors are within the bound of the type of the inputs.

    `overwritten` says that each write replaces the one before. The gradients of a rate and of a value are then what is
    left of 16 terms, those of the tokens of its chunk, whose rounding errors add up as the root of their number.
    `undamped` says that equal keys at a rate of 2 change the sign of a state, which keeps what each token rounds: twice
    the error of a product of float32 in three parts, 2^-22, a token.
    """
    found = errors(form, inputs, check_delta(inputs, options))
    limit = BOUNDS[inputs.q.dtype]
    if undamped:
        limit = max(limit, inputs.k.shape[1] * 2 * 2**-22)
    limits = {name: limit * 4 if overwritten and name in ("dbeta", "dv") else limit for name in found}
    assert all(error <= limits[name] for name, error in found.items()), found
