"""Probes of a fleet in training: gradients by group, scores, weights and keys of each layer, at 2 % of the steps.

A probe reads the gradients of the last step as they were before clipping, and runs the model on a few validation
examples whose queries and keys it looks at. It changes no number of a run, and never waits for the device, where its
values lie until a validation. Its few hundred kernels are one more graph beside those of steps, in the same memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from icl_bench.architectures.frame import HeadsMixer
from icl_bench.architectures.spectrum import SpectrumCore
from icl_bench.architectures.sums import Sums, SumsCore
from icl_bench.harness.training.trainer import Trainer
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.runs.probes import ProbePoint

MARKS = 50
"""Number of probes of a run, evenly spaced over its steps."""
EXAMPLES = 2
"""Validation examples of each member whose scores are looked at."""
LONGEST = 512
"""Tokens of an example whose scores are looked at, from the first on."""
NEAR_EPS = 10.0
"""Factor on a constant below which a sum counts as dominated by it."""
DIGITS = 4
"""Significant digits that are kept."""
GRAPH = -1
"""Place of the graph of a probe among those of the cells."""


def probe_marks(steps: int) -> set[int]:
    """Return the steps after which a run is probed."""
    return {max(1, round(steps * (i + 1) / MARKS)) for i in range(MARKS)}


class Pass(NamedTuple):
    """A forward pass of a core over power attention, as it was seen."""

    q: Tensor
    """Queries as they meet keys, [M, E, T, H, K]."""
    k: Tensor
    """Keys, [M, E, T, G, K]."""
    log_g: Tensor | None
    """Log gates, [M, E, T, G]."""
    y: Tensor
    """Output before any norm, [M, E, T, H, V]."""


class Probe:
    """The probe of the members that a trainer holds."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.passes = trainer, dict[str, Pass]()
        longest = max(trainer.task.eval_cells, key=lambda cell: cell.length)
        self.batch = trainer.make_stream(longest.label, "val").first(EXAMPLES)
        self.cores = {
            f"block{i}": block.mixer.core
            for i, block in enumerate(trainer.model.blocks)
            if isinstance(block.mixer, HeadsMixer) and isinstance(block.mixer.core, SumsCore)
        }
        names = {id(own): name for name, own in trainer.model.named_parameters()}
        self.parameters = [names[id(own)] for own in trainer.optimiser.parameters]
        start = self.measure()
        self.names = tuple(start)
        self.table = torch.zeros(MARKS + 1, len(trainer.specs), len(start), device=trainer.device)
        self.row = torch.zeros_like(self.table[0])
        self.steps: list[int] = []

    def record(self) -> None:
        """Measure all members after the present step; never waits for the device."""
        self.trainer.update_graphs.run(self.write_row, GRAPH)
        self.table[len(self.steps)] = self.row
        self.steps.append(self.trainer.done)

    def write_row(self, place: int) -> None:
        """Write all numbers of this moment into the row; on device tensors alone, so that a graph can hold it."""
        self.row.copy_(torch.stack([value.float() for value in self.measure().values()], dim=-1))

    def take(self) -> list[list[ProbePoint]]:
        """Return the points of each member held since the last call; waits for the device."""
        rows = self.table[: len(self.steps)].tolist()
        points = [
            [
                ProbePoint(step=step, values=tuple(map(kept, row[member])))
                for step, row in zip(self.steps, rows, strict=True)
            ]
            for member in range(len(self.trainer.specs))
        ]
        self.steps.clear()
        return points

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Return all numbers of this moment by name, [M] each."""
        found = dict((*self.gradient_norms(), *self.weight_norms()))
        model = self.trainer.working_model
        handles = [core.register_forward_hook(self.hook(name)) for name, core in self.cores.items()]
        try:
            with model.evaluating():
                model.scores(self.batch.inputs, self.batch.positions, self.batch.targets)
        finally:
            for handle in handles:
                handle.remove()
        statistics = self.statistics()
        for name, core in self.cores.items():
            found |= statistics[name]
            if isinstance(core, SpectrumCore) and core.shares.level is not None:
                shares = core.shares.level.weight.flatten(1)
                found |= {f"{name}.theta{i}": shares[:, i] for i in range(shares.shape[1])}
        self.passes.clear()
        return found

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Return the statistics of the passes by core; those of cores that are alike are made together, as of one."""
        alike: dict[tuple[Sums, float | None, tuple[object, ...]], list[str]] = {}
        for name, seen in self.passes.items():
            mixer = trainer_mixer(self.trainer, name)
            norm_eps = None if mixer.norm is None else mixer.layout.norm_eps
            shapes = tuple(None if x is None else x.shape for x in seen)
            alike.setdefault((self.cores[name].sums, norm_eps, shapes), []).append(name)
        found: dict[str, dict[str, Tensor]] = {}
        for (sums, norm_eps, _), names in alike.items():
            values = pass_statistics(join_passes([self.passes[name] for name in names]), sums, norm_eps)
            parts = {key: value.chunk(len(names)) for key, value in values.items()}
            found |= {name: {f"{name}.{key}": part[i] for key, part in parts.items()} for i, name in enumerate(names)}
        return found

    def hook(self, name: str) -> Callable[[SumsCore, tuple[Tensor, ...], Tensor], None]:
        """Return the forward hook that notes what a core meets."""

        def note(core: SumsCore, arguments: tuple[Tensor, ...], y: Tensor) -> None:
            operands = core.operands(*arguments)
            first = slice(0, LONGEST)
            gates = None if operands.log_g is None else operands.log_g[:, :, first].float()
            self.passes[name] = Pass(
                operands.q[:, :, first].float(), operands.k[:, :, first].float(), gates, y[:, :, first].float()
            )

        return note

    def gradient_norms(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the norm of the gradient of each group of parameters before clipping, that of all of them first."""
        norms: dict[str, list[Tensor]] = {}
        for path, gradient in zip(self.parameters, self.trainer.optimiser.gradients, strict=True):
            for group, part in self.groups(path, gradient):
                own = torch.linalg.vector_norm(part, dim=tuple(range(1, part.ndim)), dtype=torch.float32)
                norms.setdefault(group, []).append(own)
        yield "gradient", torch.stack([norm for own in norms.values() for norm in own]).norm(dim=0)
        yield from ((name, own[0] if len(own) == 1 else torch.stack(own).norm(dim=0)) for name, own in norms.items())

    def weight_norms(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the norms of the weights that make the queries and the keys of each layer."""
        for name in self.cores:
            mixer = trainer_mixer(self.trainer, name)
            widths = [heads * width for heads, width in mixer.layout.shapes]
            parts = mixer.project.weight.split(widths, dim=-1)
            yield from (
                (f"{name}.weight.{one}", part.flatten(1).norm(dim=1)) for one, part in zip("qk", parts, strict=False)
            )

    def groups(self, path: str, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the parts of a gradient [M, ...] with the names of their groups."""
        block, _, rest = path.partition(".")
        mixer = self.trainer.model.blocks[int(block[5:])].mixer if block.startswith("block") else None
        if isinstance(mixer, HeadsMixer) and rest == "mixer.project.weight":
            widths = [heads * width for heads, width in mixer.layout.shapes]
            yield from zip((f"{block}.gradient.{one}" for one in "qkv"), gradient.split(widths, dim=-1), strict=True)
        elif mixer is not None:
            place, _, part = rest.partition(".")
            known = place == "mixer" and part.partition(".")[0] in ("output", "gate")
            yield f"{block}.gradient.{part.partition('.')[0] if known else place.partition('_')[0]}", gradient
        else:
            yield "gradient.ends", gradient


def trainer_mixer(trainer: Trainer, block: str) -> HeadsMixer:
    """Return the multi-head mixer of a block by its name."""
    mixer = trainer.model.blocks[int(block.removeprefix("block"))].mixer
    assert isinstance(mixer, HeadsMixer)
    return mixer


def join_passes(passes: Sequence[Pass]) -> Pass:
    """Return passes of one shape as a pass of all their members."""
    if len(passes) == 1:
        return passes[0]
    q, k, log_g, y = zip(*passes, strict=True)
    gates = [gate for gate in log_g if gate is not None]
    return Pass(torch.cat(q), torch.cat(k), torch.cat(gates) if gates else None, torch.cat(y))


def pass_statistics(seen: Pass, sums: Sums, norm_eps: float | None) -> dict[str, Tensor]:
    """Return numbers of the scores, weights and keys of a pass, [M] each; the weights are decayed powers |s|^p.

    `norm_eps` is the constant in the norm of the output, None without a norm.

    largest_score: of |s|. denominator: median over tokens of the sum of weights; least_denominator: its minimum.
    eps_share: share of tokens whose sum of weights, or without a sum the mean square of an output that has a norm,
    is below ten times the constant added to it; there is none without either. key_share: largest share of a token's
    weight on one key, mean over tokens. sink_share: share of tokens whose weight lies mostly on the key that has
    most weight of all. participation: participation ratio of weights over the number of keys, mean. mass_share:
    share of sum |k|^p of the 1 % longest keys. key_rank: participation ratio of the expanded keys over the most
    that there can be. output_rms: of the output. horizon: mean of -1 / log g in tokens.
    """
    shared = seen.q.shape[3] // seen.k.shape[3]
    q, k = seen.q.movedim(3, 2), seen.k.repeat_interleave(max(1, shared), dim=3).movedim(3, 2)  # [M, E, H, T, K]
    t = q.shape[3]
    scale = sums.key_width**-0.5 if sums.scale is None else sums.scale
    scores = (scale * q @ k.mT).tril().abs()  # [M, E, H, T, T]
    weights = scores**sums.p * pair_decays(seen.log_g, max(1, shared), scores)
    total = weights.sum(-1)
    shares = weights / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    sink = shares.sum(-2).argmax(-1)[..., None, None].expand(*shares.shape[:-1], 1)
    counts = torch.arange(1, t + 1, device=q.device)
    mean_square = seen.y.square().mean(-1)
    constant = sums.eps if sums.normalize == "sum" else norm_eps
    small = (total if sums.normalize == "sum" else mean_square) < NEAR_EPS * (constant or 0.0)
    found = {} if constant is None else {"eps_share": small.float().flatten(1).mean(1)}
    found |= {
        "largest_score": scores.flatten(1).amax(1),
        "denominator": total.flatten(1).median(1).values,
        "least_denominator": total.flatten(1).amin(1),
        "key_share": shares.amax(-1).flatten(1).mean(1),
        "sink_share": (shares.gather(-1, sink) > 0.5).float().flatten(1).mean(1),
        "participation": (1 / shares.square().sum(-1).clamp(min=1e-9) / counts).flatten(1).mean(1),
        **key_statistics(seen.k, sums.p, sums.key_width),
        "output_rms": mean_square.flatten(1).mean(1).sqrt(),
    }
    if seen.log_g is not None:
        found["horizon"] = (-1 / seen.log_g.clamp(max=-1e-6)).flatten(1).mean(1)
    return found


def pair_decays(log_g: Tensor | None, shared: int, like: Tensor) -> Tensor | float:
    """Return the decays [M, E, H, T, T] of weights between tokens; 1 without gates."""
    if log_g is None:
        return 1.0
    c = log_g.cumsum(2).repeat_interleave(shared, dim=3).movedim(3, 2)
    return (c[..., :, None] - c[..., None, :]).clamp(max=0.0).exp().expand_as(like)


def key_statistics(k: Tensor, p: int, key_width: int) -> dict[str, Tensor]:
    """Return mass_share and key_rank of keys [M, E, T, G, K], columns of zeros included; see `pass_statistics`."""
    keys = k.movedim(3, 2)
    norms = keys.norm(dim=-1)
    keys = keys / norms.amax(-1).clamp(min=1e-30)[..., None, None]  # only ratios count, and powers stay in range
    powers = keys.norm(dim=-1) ** p
    longest = powers.sort(dim=-1, descending=True).values[..., : math.ceil(powers.shape[-1] / 100)]
    gram = (keys @ keys.mT) ** (2 * p)
    ratio = powers.square().sum(-1).square() / gram.sum((-1, -2)).clamp(min=1e-30)
    most = min(k.shape[2], expanded_width(key_width, p))
    return {
        "mass_share": (longest.sum(-1) / powers.sum(-1).clamp(min=1e-30)).flatten(1).mean(1),
        "key_rank": (ratio / most).flatten(1).mean(1),
    }


def kept(value: float) -> float | None:
    """Round a value for the file; None for one that is not finite."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) and abs(value) < 1e30 else None
