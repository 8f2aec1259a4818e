"""Contenders from outside: backends of PyTorch, compiled forms, and kernels of packages that may be missing."""

import functools
import importlib
import importlib.metadata
import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from icl_bench.errors import KernelUnavailableError
from icl_bench.kernels.measurement.problem import ContenderRun, Peer, Problem, Subject, Tensors

PACKAGES = {"fla": "fla-core", "retention": "retention", "mamba_ssm": "mamba-ssm"}
"""Distributions of the other packages, by the names they are imported under."""


def subject_of(problem: Problem, name: str) -> Subject:
    """Return the owner of a contender."""
    if name in problem.peers:
        return problem.peers[name].subject
    return "plain" if name in problem.plain else "ours"


def installed(problem: Problem, name: str) -> bool:
    """Return whether the package of a contender is installed."""
    subject = subject_of(problem, name)
    return subject not in PACKAGES or importlib.util.find_spec(subject) is not None


def peer_versions() -> dict[str, str]:
    """Return the versions of the other packages, "none" where one is not installed."""
    found = {name: importlib.metadata.distributions(name=name) for name in PACKAGES.values()}
    return {name: next((one.version for one in each), "none") for name, each in found.items()}


def contender_run(problem: Problem, name: str, device: torch.device) -> ContenderRun:
    """Return the contender of that name, ready for a problem; its package must be installed."""
    if not installed(problem, name):
        package = PACKAGES[subject_of(problem, name)]
        raise KernelUnavailableError(f"{name} needs the package {package}, which is not installed: install it")
    if name in problem.peers:
        return problem.peers[name].build(problem, device)
    return lambda inputs: problem.run(name, inputs)["y"]


def stored_inputs(problem: Problem, name: str, inputs: Tensors) -> Tensors:
    """Return the inputs in the order in memory that a contender is made for."""
    if name not in problem.peers or not problem.peers[name].channels_first:
        return inputs
    return {key: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() > 2 and key not in problem.shared else x
            for key, x in inputs.items()}  # fmt: skip


def compiled_steps(form: str, tokens: int) -> Peer:
    """Return a form in operators of torch, compiled for some tokens at a time, with the state passed on between calls.

    A loop over all tokens is unrolled by the compiler, whose time grows faster than their number.
    """

    def build(problem: Problem, device: torch.device) -> ContenderRun:
        torch.compiler.reset()  # the compiler gives up on a function after eight forms of it, over all problems
        body = torch.compile(lambda inputs: problem.run(form, inputs), dynamic=False)
        name, first = problem.first_state(device)

        def run(inputs: Tensors) -> Tensor:
            parts = {key: x.split(tokens, dim=1) for key, x in inputs.items() if key not in problem.shared}
            fixed = {key: inputs[key] for key in problem.shared}
            state, outputs = first, []
            for piece in zip(*parts.values(), strict=True):
                made = body({**dict(zip(parts, piece, strict=True)), **fixed, name: state})
                state = made["state"]
                outputs.append(made["y"])
            return torch.cat(outputs, dim=1)

        return run

    return Peer("compiled", build)


def sdpa_backend(backend: str, same: bool) -> Peer:
    """Return PyTorch's softmax attention by one of its backends."""

    def run(inputs: Tensors) -> Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        with sdpa_kernel(getattr(SDPBackend, backend)):
            q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
            return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    return Peer("torch", lambda problem, device: run, same)


def flex_window(problem: Any, device: torch.device) -> ContenderRun:
    """Return PyTorch's FlexAttention with the window of a problem."""
    from torch.nn.attention.flex_attention import flex_attention

    mask = window_mask(problem.t, problem.window, device)
    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return lambda inputs: compiled(*(inputs[x].transpose(1, 2) for x in "qkv"), block_mask=mask).transpose(1, 2)


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
    """Leave every `shares`-th configuration to a package's autotuners, which compile it, to share the compilation.

    Nothing is chosen among fewer configurations for a later process: these choices are not written to files.
    """
    for tuner in autotuners(package):
        tuner.configs = tuner.configs[share::shares] or tuner.configs[:1]
        tuner._bench, tuner.cache_results = functools.partial(_compile_configuration, tuner), False


def forget_choices(package: str) -> None:
    """Let a package's autotuners launch all of their configurations again: their keys may lack a size."""
    for tuner in autotuners(package):
        tuner.cache.clear()


def _compile_configuration(tuner: Any, *args: Any, config: Any, **meta: Any) -> list[float]:
    """Compile a configuration and load it, without a launch; return no time, or an infinite one if it cannot run."""
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        kernel = tuner.fn.run(*args, **{**meta, **config.all_kwargs(), "warmup": True})
        _ = kernel.run  # loads it, which fails where it needs more shared memory than there is
    except (OutOfResources, CompileTimeAssertionFailure, PTXASError):
        return [math.inf] * 3
    return [0.0] * 3


def shorten_autotuning(package: str) -> None:
    """Let a package's autotuners time each configuration by three launches in place of 100 ms: there are hundreds."""
    for tuner in autotuners(package):
        tuner._do_bench = few_launches


def few_launches(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    """Return these quantiles of the milliseconds of three launches, after one that warms up."""
    call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
    for event in events[:-1]:
        event.record()
        call()
    events[-1].record()
    torch.cuda.synchronize()
    ranked = torch.tensor(sorted(first.elapsed_time(last) for first, last in itertools.pairwise(events)))
    times: list[float] = ranked.quantile(torch.tensor(list(quantiles))).tolist()
    return times
