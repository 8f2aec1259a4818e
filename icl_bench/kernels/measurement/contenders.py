"""Contenders that are timed side by side: forms of this library, backends of PyTorch, kernels of other packages."""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.measurement.operators import run_form
from icl_bench.kernels.measurement.problems import Inputs, Problem

Subject = Literal["ours", "plain", "torch", "fla", "retention"]
ContenderRun = Callable[[Inputs], Tensor]
"""Inputs to y [N, T, H, V]."""

PEERS = {"fla": "fla-core", "retention": "retention"}
"""Distributions of the other packages, which may be missing."""
BACKENDS = {
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
    "sdpa efficient": "EFFICIENT_ATTENTION",
    "sdpa math": "MATH",
}
PLAIN = ("quadratic", "chunked", "torch")
"""Forms of this library in operators of torch: slow at the sizes of the table."""


def subject_of(name: str) -> Subject:
    """Return the owner of a contender."""
    if name in PLAIN:
        return "plain"
    if name.startswith(("sdpa ", "flex")):
        return "torch"
    return "retention" if name == "retention" else "fla" if name.startswith("fla") else "ours"


def installed(name: str) -> bool:
    """Return whether the package of a contender is installed."""
    subject = subject_of(name)
    return subject not in PEERS or importlib.util.find_spec(subject) is not None


def peer_versions() -> dict[str, str]:
    """Return the versions of the other packages, "none" where one is not installed."""
    found = {name: importlib.metadata.distributions(name=name) for name in PEERS.values()}
    return {name: next((one.version for one in each), "none") for name, each in found.items()}


def contender_run(name: str, problem: Problem, device: torch.device) -> ContenderRun:
    """Return the contender of that name, ready for a problem; its package must be installed."""
    if not installed(name):
        package = PEERS[subject_of(name)]
        raise KernelUnavailableError(f"{name} needs the package {package}, which is not installed: install it")
    if name in BACKENDS:
        return functools.partial(_sdpa, BACKENDS[name])
    if name == "flex":
        return _flex(problem, device)
    if name.startswith("fla"):
        linear = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn
        normalize = name == "fla"
        return lambda inputs: linear(inputs.q, inputs.k, inputs.v, normalize=normalize)[0]
    if name == "retention":
        retain = importlib.import_module("retention").power_retention
        chunk = 1024 if problem.t > 1024 else None  # as in the benchmarks of retention itself
        options = {"deg": problem.p, "scale": problem.key**-0.5, "chunk_size": chunk}
        return lambda inputs: retain(inputs.q, inputs.k, inputs.v, inputs.log_g, **options)
    return lambda inputs: run_form(problem, name, inputs)[0]


def same_function(name: str, problem: Problem) -> bool:
    """Return whether a contender computes the function of the problem, so that its error means something."""
    return problem.op == "attention" or not (subject_of(name) == "torch" or name == "fla unnormalised")


def _sdpa(backend: str, inputs: Inputs) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    with sdpa_kernel(getattr(SDPBackend, backend)):
        q, k, v = (x.transpose(1, 2) for x in inputs[:3])
        return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def _flex(problem: Problem, device: torch.device) -> ContenderRun:
    from torch.nn.attention.flex_attention import flex_attention

    assert problem.window is not None
    mask = window_mask(problem.t, problem.window, device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda inputs: compiled(*(x.transpose(1, 2) for x in inputs[:3]), block_mask=mask).transpose(1, 2)


def window_mask(t: int, window: int, device: torch.device) -> Any:
    """Return FlexAttention's mask of a causal window, made from distances of blocks, without T x T entries.

    Positions of blocks d apart are (d - 1) block + 1 to (d + 1) block - 1 apart, and those of one block 0 to block - 1.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def sees(_n: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < window)

    block = 128  # as FlexAttention's own masks
    index = torch.arange(-(-t // block), device=device)
    apart = index[:, None] - index
    nearest, farthest = ((apart - 1) * block + 1).clamp(min=0), (apart + 1) * block - 1
    full = (apart > 0) & (farthest < window)
    counts, blocks = _listed((apart >= 0) & (nearest < window) & ~full)
    return BlockMask.from_kv_blocks(counts, blocks, *_listed(full), BLOCK_SIZE=block, mask_mod=sees, seq_lengths=(t, t))


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen blocks of each row, and all blocks, chosen ones first: [1, 1, rows (, blocks)]."""
    order = chosen.int().argsort(stable=True, dim=-1, descending=True)
    return chosen.sum(-1).int()[None, None], order.int()[None, None]


def autotuners(package: str) -> list[Any]:
    """Return the Triton autotuners of an imported package."""
    from triton.runtime import KernelInterface
    from triton.runtime.autotuner import Autotuner

    found: dict[int, Any] = {}
    modules = [m for name, m in sys.modules.items() if name == package or name.startswith(f"{package}.")]
    for kernel in [value for module in modules for value in vars(module).values()]:
        while isinstance(kernel, KernelInterface):  # autotuners and heuristics wrap one another
            if isinstance(kernel, Autotuner):
                found[id(kernel)] = kernel
            kernel = getattr(kernel, "fn", None)
    return list(found.values())


def keep_share(package: str, share: int, shares: int) -> None:
    """Leave every `shares`-th configuration to a package's autotuners, so that processes share the compilation.

    The choice of an autotuner among fewer configurations is never used: Triton files choices by all of them.
    """
    for tuner in autotuners(package):
        tuner.configs = tuner.configs[share::shares] or tuner.configs[:1]


def shorten_autotuning(package: str) -> None:
    """Autotune with 20 ms for each configuration in place of 100: there are hundreds."""
    from triton.testing import do_bench

    for tuner in autotuners(package):
        tuner._do_bench = functools.partial(do_bench, warmup=5, rep=20)
