"""Inputs for both scans, and the errors of a form and of its gradients against the definition in float64."""

import torch
from torch import Tensor

from icl_bench.kernels.scan.api import linear_scan_with_state, selective_scan_with_state
from tests.kernels.numerics import draw

NAMES = ("x", "dt", "a", "b", "c", "d", "dt_bias", "state")


def selective_case(
    t: int, *, members=2, batch=2, channels=5, width=3, bias=True, dtype=torch.float32, step_dtype=None, size=1.0
) -> dict[str, Tensor]:
    """The tensors of a selective scan by name, all present; steps from .01 to 1, decays that reach over many tokens."""
    n, wide = members * batch, torch.float64 if dtype == torch.float64 else torch.float32
    raw = draw(n, t, channels, seed=1).double() - 1.5
    case = {
        "x": draw(n, t, channels, seed=2).to(dtype),
        "dt": (raw if bias else size * torch.nn.functional.softplus(raw)).to(step_dtype or wide),
        "a": -torch.exp(draw(members, channels, width, seed=3).to(wide)),
        "b": draw(n, t, width, seed=4).to(dtype),
        "c": draw(n, t, width, seed=5).to(dtype),
        "d": draw(members, channels, seed=6).to(wide),
        "state": draw(n, channels, width, seed=8).to(wide),
    }
    return case | ({"dt_bias": draw(members, channels, seed=7).to(wide)} if bias else {})


def linear_case(t: int, *, n=3, channels=5, dtype=torch.float32, decay_dtype=None) -> dict[str, Tensor]:
    """The tensors of a linear scan by name: decays between 0 and 1, each at some positions, and a state."""
    if dtype.is_complex:
        turn = torch.polar(torch.sigmoid(draw(n, t, channels, seed=1)), draw(n, t, channels, seed=2))
        b = torch.complex(draw(n, t, channels, seed=3), draw(n, t, channels, seed=4))
        return {"a": turn.to(dtype), "b": b.to(dtype), "state": b[:, 0].to(dtype)}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a = torch.sigmoid(2 + 3 * draw(n, t, channels, seed=1))
    a[:, ::5, 0], a[:, ::7, 1] = 0.0, 1.0
    return {
        "a": a.to(decay_dtype or wide),
        "b": draw(n, t, channels, seed=3).to(dtype),
        "state": draw(n, channels, seed=4).to(wide),
    }


def run_scan(case: dict[str, Tensor], impl: str) -> tuple[Tensor, Tensor]:
    """Output and final state of a case by a form."""
    others = {name: x for name, x in case.items() if name != "state"}
    run = selective_scan_with_state if "x" in case else linear_scan_with_state
    return run(**others, initial_state=case.get("state"), impl=impl)


def results(case: dict[str, Tensor], impl: str, along: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
    """Output, final state and the gradient of every tensor of a case, along fixed directions of both outputs."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in case.items()}
    outs = run_scan(leaves, impl)
    along = along or tuple(draw(*out.shape, seed=20 + i).to(out.dtype) for i, out in enumerate(outs))
    along = tuple(direction.to(out.dtype) for direction, out in zip(along, outs, strict=True))
    found = torch.autograd.grad(outs, list(leaves.values()), along)
    made = {"y": outs[0], "final": outs[1]}
    return made | {f"d{name}": x for name, x in zip(leaves, found, strict=True)}


def exact_results(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """`results` of the definition for the same numbers in float64, rounded nowhere."""
    outs = run_scan(case, "sequential")
    along = tuple(draw(*out.shape, seed=20 + i).to(out.dtype) for i, out in enumerate(outs))
    wide = {name: x.to(torch.complex128 if x.dtype.is_complex else torch.float64) for name, x in case.items()}
    return results(wide, "reference", along)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """The norm of the difference over the norm of the exact result."""
    assert actual.shape == exact.shape and actual.isfinite().all()
    wide = actual.to(exact.dtype)
    return (torch.linalg.vector_norm(wide - exact) / torch.linalg.vector_norm(exact).clamp_min(1e-30)).item()


def assert_close_to_exact(case: dict[str, Tensor], impl: str, bound: float) -> None:
    """Output, state and every gradient of a form err by at most `bound`, and have the types of their tensors."""
    found, exact = results(case, impl), exact_results(case)
    for name, wanted in exact.items():
        error = relative_error(found[name], wanted)
        assert error <= bound, f"{name}: relative error {error:.2e} over {bound:.0e}"
