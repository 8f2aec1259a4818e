"""Problems of the operators by scores: power attention, softmax attention and its windows."""

import dataclasses
import importlib
import itertools
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from icl_bench.kernels.arguments import accumulation_dtype
from icl_bench.kernels.attention.api import AttentionImpl, attention
from icl_bench.kernels.measurement.limits import Work
from icl_bench.kernels.measurement.peers import flex_window, sdpa_backend
from icl_bench.kernels.measurement.problem import Case, ContenderRun, Draw, Peer, Problem, Tensors, table_case
from icl_bench.kernels.power.api import PowerImpl, power_attention, power_attention_with_state
from icl_bench.kernels.power.expansion import expanded_width
from icl_bench.kernels.power.records import Normalize, PowerState

EPS = 1e-6
PAST = 9
"""Tokens that made an initial state."""
TABLE_TOKENS = 65_536
TABLE_HEADS = 12
SWEEP_WIDTHS = (32, 64, 128)
SWEEP_LENGTHS = (4096, 16_384, 1024, 65_536, 8192, 32_768, 2048)
"""Lengths of the sweep, in an order that brackets a crossover early if time runs out; a quick sweep takes the first."""
CPU_LENGTHS = (256, 1024, 128, 512)
CPU_TOKENS = 1024
BACKENDS = {"sdpa flash": "FLASH_ATTENTION", "sdpa cudnn": "CUDNN_ATTENTION", "sdpa efficient": "EFFICIENT_ATTENTION"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreProblem(Problem):
    """A problem of queries, keys, values and gates; a large one is checked at a few queries."""

    axes: ClassVar[Mapping[str, str]] = {
        "n": "N", "t": "T", "heads": "H", "groups": "G", "key_heads": "J", "key": "K", "value": "V",
    }  # fmt: skip
    checked_axis: ClassVar[Literal[0, 1]] = 1

    heads: int = 2
    groups: int = 1
    key_heads: int = 1
    key: int = 64
    value: int = 64
    gated: bool = False
    size: float = 1.0
    """Standard deviation of queries and keys."""

    def inputs(self, device: torch.device) -> Tensors:
        """Draw normal queries, keys and values, and a different gate at every position.

        Gates of long sequences are weaker, so that old tokens still count.
        """
        draw = Draw(1000 * self.t + self.key, device)
        n, t, g = self.n, self.t, self.groups
        q = draw.normal(n, t, self.heads, self.key) * self.size
        k, v = draw.normal(n, t, self.key_heads, self.key) * self.size, draw.normal(n, t, g, self.value)
        drawn = {"q": q.to(self.dtype), "k": k.to(self.dtype), "v": v.to(self.dtype)}
        if self.gated:
            gates = logsigmoid(draw.normal(n, t, g) + (1 if t < 1000 else 4))
            drawn["log_g"] = gates.to(accumulation_dtype(self.dtype))
        return drawn

    @property
    def reach(self) -> int:
        """Tokens that a query sees at most."""
        return self.t

    @property
    def outputs(self) -> int:
        """Heads of the output."""
        return max(self.heads, self.groups)

    def scores(self, inputs: Tensors, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and log decays of keys [N, O, R, T] for the O heads of the output and queries `rows` [R]."""
        q = _spread(inputs["q"][:, rows], self.outputs)
        k = _spread(_spread(inputs["k"], self.groups), self.outputs)
        distance = rows[:, None] - torch.arange(self.t, device=rows.device)
        seen = (distance >= 0) & (distance < self.reach)
        c = _spread(_gate_sums(inputs)[..., None], self.outputs)[..., 0]
        decay = (c[:, rows, None] - c[:, None]).permute(0, 3, 1, 2).masked_fill(~seen, -torch.inf)
        return torch.einsum("nrok,ntok->nort", q, k) * self.key**-0.5, decay

    def natural_size(self, gradient: str) -> float:
        """Return the size of terms that cancel where every query sees one key.

        Inputs are standard normal: terms of dq and dk are of order 1, those of a gate sums of V products over T.
        """
        one_key = min(self.t, self.reach) == 1
        if not one_key or gradient not in ("q", "k", "log_g"):
            return 0.0
        return float((self.value * self.t) ** 0.5) if gradient == "log_g" else 1.0


def _spread(x: Tensor, heads: int) -> Tensor:
    """Repeat each head of [N, T, J, K] for the heads that share it."""
    return x.repeat_interleave(heads // x.shape[2], dim=2)


def _gate_sums(inputs: Tensors) -> Tensor:
    """Return the sums of log gates [N, T, G], zeros without gates."""
    return inputs["log_g"].cumsum(1) if "log_g" in inputs else torch.zeros_like(inputs["v"][..., 0])


def _chunk_linear(normalize: bool) -> Peer:
    def build(problem: Problem, device: torch.device) -> ContenderRun:
        linear = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn
        return lambda inputs: linear(*(inputs[name] for name in "qkv"), normalize=normalize)[0]

    return Peer("fla", build, same=normalize)


def _retention(problem: "MeasuredPower", device: torch.device) -> ContenderRun:
    retain = importlib.import_module("retention").power_retention
    chunk = 1024 if problem.t > 1024 else None  # as in the benchmarks of retention itself
    options = {"deg": problem.p, "scale": problem.key**-0.5, "chunk_size": chunk}
    return lambda inputs: retain(inputs["q"], inputs["k"], inputs["v"], inputs.get("log_g"), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredPower(ScoreProblem):
    """A problem of power attention."""

    op: ClassVar[str] = "power"
    impls: ClassVar[tuple[str, ...]] = get_args(PowerImpl)
    plain: ClassVar[tuple[str, ...]] = ("quadratic", "chunked")
    peers: ClassVar[Mapping[str, Peer]] = {
        **{name: sdpa_backend(backend, same=False) for name, backend in BACKENDS.items()},
        "fla": _chunk_linear(normalize=True),
        "fla unnormalised": _chunk_linear(normalize=False),
        "retention": Peer("retention", _retention),
    }

    p: int = 2
    normalize: Normalize = "sum"
    chunk: int | None = None
    initial: bool = False
    """Begin with a state."""
    states: bool = True
    """Compare the final state too."""

    @property
    def name(self) -> str:
        """Name of the operator with its power, normaliser and gates."""
        return f"power p={self.p}{' unnormalised' * (self.normalize == 'none')}{' gated' * self.gated}"

    def inputs(self, device: torch.device) -> Tensors:
        """Draw the inputs, and a state that a sequence leaves.

        With p = 1 and a normaliser queries and keys are absolute values, as after a feature map.
        """
        drawn = super().inputs(device)
        positive = self.p == 1 and self.normalize == "sum"
        if positive:
            drawn |= {name: drawn[name].abs() for name in "qk"}
        if self.initial:
            draw, kind = Draw(self.t, device), accumulation_dtype(self.dtype)
            past = draw.normal(self.n, PAST, self.groups, self.key)
            expanded = expand_tuples((past.abs() if positive else past).double(), self.p)
            values = draw.normal(self.n, PAST, self.groups, self.value).double()
            drawn["s"] = torch.einsum("ntgd,ntgv->ngdv", expanded, values).to(kind)
            if self.normalize == "sum":
                drawn["z"] = expanded.sum(1).to(kind)
        return drawn

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y by a form, and the final state where it is compared."""
        run = power_attention_with_state if self.states else power_attention
        made = run(
            inputs["q"], inputs["k"], inputs["v"], inputs.get("log_g"), p=self.p, normalize=self.normalize, eps=EPS,
            chunk=self.chunk, initial_state=PowerState(inputs["s"], inputs.get("z")) if self.initial else None,
            impl=cast(PowerImpl, impl),
        )  # fmt: skip
        if isinstance(made, Tensor):
            return {"y": made}
        y, (s, z) = made
        return {"y": y, "s": s} if z is None else {"y": y, "s": s, "z": z}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y [N, R, O, V] of the queries `index` by all scores, and the final state from the expansion."""
        scores, decay = self.scores(inputs, index)
        weights = decay.exp() * scores**self.p
        total = weights.sum(-1).transpose(1, 2)
        y = torch.einsum("nort,ntov->nrov", weights, _spread(inputs["v"], self.outputs))
        if self.initial:
            reach = expand_tuples(_spread(inputs["q"][:, index], self.outputs), self.p)
            c = _spread(_gate_sums(inputs)[:, index, :, None], self.outputs)
            reach = reach * c.exp() * self.key ** (-0.5 * self.p)
            s = inputs["s"].repeat_interleave(self.outputs // self.groups, dim=1)
            y = y + torch.einsum("nrod,nodv->nrov", reach, s)
            if "z" in inputs:
                z = inputs["z"].repeat_interleave(self.outputs // self.groups, dim=1)
                total = total + torch.einsum("nrod,nod->nro", reach, z)
        y = y / (total[..., None] + EPS) if self.normalize == "sum" else y
        return {"y": y, **self._final_state(inputs)} if self.states else {"y": y}

    def _final_state(self, inputs: Tensors) -> Tensors:
        c = _gate_sums(inputs)
        keys = expand_tuples(_spread(inputs["k"], self.groups), self.p) * (c[:, -1:] - c).exp()[..., None]
        last = c[:, -1].exp()
        s, z = torch.einsum("ntgd,ntgv->ngdv", keys, inputs["v"]), keys.sum(1)
        s = s + last[..., None, None] * inputs["s"] if self.initial else s
        z = z + last[..., None] * inputs["z"] if "z" in inputs else z
        return {"s": s, "z": z} if self.normalize == "sum" else {"s": s}

    def work(self) -> Work:
        """Count scores and their products with values, or, where that is less, chunks of 64 and the state."""
        width = self.key + self.value
        state = self.t * min(64, self.t) * width + 4 * self.t * expanded_width(self.key, self.p) * self.value
        return Work(float(self.n * self.outputs * min(self.t**2 * width, state)))

    def natural_size(self, gradient: str) -> float:
        """Return the size of terms that cancel where every query sees one key and no state."""
        return 0.0 if self.initial else super().natural_size(gradient)


def expand_tuples(x: Tensor, p: int) -> Tensor:
    """Return phi(x)_t = sqrt(p! / prod_k hist_k(t)!) x_i1 ... x_ip by its definition: [..., K] -> [..., D].

    The factor's square grows index by index: at index i by i / (number of times that index came so far).
    """
    columns = torch.combinations(torch.arange(x.shape[-1]), p, with_replacement=True)
    out, run, square = torch.ones_like(x[..., :1]), torch.ones(len(columns)), torch.ones(len(columns))
    for i in range(p):
        if i:
            run = torch.where(columns[:, i] == columns[:, i - 1], run + 1, 1)
        square = square * (i + 1) / run
        out = out * x.index_select(-1, columns[:, i].to(x.device))
    return out * square.double().sqrt().to(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredAttention(ScoreProblem):
    """A problem of softmax attention."""

    op: ClassVar[str] = "attention"
    impls: ClassVar[tuple[str, ...]] = get_args(AttentionImpl)
    plain: ClassVar[tuple[str, ...]] = ("torch",)
    peers: ClassVar[Mapping[str, Peer]] = {
        **{name: sdpa_backend(backend, same=True) for name, backend in BACKENDS.items()},
        "sdpa math": sdpa_backend("MATH", same=True),
        "flex": Peer("torch", flex_window),
    }

    window: int | None = None

    @property
    def name(self) -> str:
        """Name of the operator with its gates."""
        return f"{'softmax' if self.window is None else 'window'}{' gated' * self.gated}"

    @property
    def title(self) -> str:
        """Name, window and sizes."""
        name, _, sizes = super().title.partition(": ")
        return f"{name} {self.window:,}: {sizes}" if self.window else f"{name}: {sizes}"

    @property
    def reach(self) -> int:
        """Tokens that a query sees at most."""
        return self.window or self.t

    def run(self, impl: str, inputs: Tensors) -> Tensors:
        """Return y by a form."""
        made = attention(
            inputs["q"], inputs["k"], inputs["v"], inputs.get("log_g"), window=self.window,
            impl=cast(AttentionImpl, impl),
        )  # fmt: skip
        return {"y": made}

    def exact(self, inputs: Tensors, index: Tensor) -> Tensors:
        """Return y [N, R, H, V] of the queries `index` by all scores."""
        scores, decay = self.scores(inputs, index)
        weights = (scores + decay).softmax(-1)
        return {"y": torch.einsum("nort,ntov->nrov", weights, _spread(inputs["v"], self.outputs))}

    def work(self) -> Work:
        """Count the scores that are seen, their products with values, and an exponential for each."""
        seen = self.n * self.heads * (self.t * self.reach - self.reach * (self.reach - 1) // 2)
        return Work(2.0 * seen * (self.key + self.value), exponentials=float(seen))

    def takes(self, impl: str) -> bool:
        """Return whether a form serves this problem: PyTorch's attention has no gates."""
        return super().takes(impl) and not (impl == "sdpa" and self.gated)


def power_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems on which power attention is checked."""
    longest = lengths[-2:]
    for t, gated, p in itertools.product(lengths, (False, True), (1, 2)):
        base = MeasuredPower(t=t, dtype=dtype, gated=gated, p=p)
        yield base
        if t > 64:
            yield dataclasses.replace(base, chunk=64)
        if t in longest:
            heads = {"heads": 4, "groups": 2, "key_heads": 2, "key": 24, "value": 40}
            yield dataclasses.replace(base, chunk=64, initial=True).varied(heads)
    for t, gated in itertools.product((7, *longest), (False, True)):
        plain = MeasuredPower(t=t, dtype=dtype, key=16, value=16, gated=gated)
        odd = dataclasses.replace(plain, p=3, normalize="none")
        for one in (odd, dataclasses.replace(plain, p=4)):
            yield one
            yield dataclasses.replace(one, chunk=64)
    yield MeasuredPower(t=100, dtype=dtype, normalize="none", chunk=64, key=32, value=16)
    # without the state: its gradients of such keys leave the range of float16 themselves
    yield MeasuredPower(t=100, dtype=dtype, key=16, value=16, p=4, size=30.0, states=False)
    for p, gated in itertools.product((1, 2), (False, True)):  # one query and one key for all heads, and for two
        shared = MeasuredPower(t=100, dtype=dtype, p=p, gated=gated, normalize="none", key=32, value=16, chunk=64)
        yield dataclasses.replace(shared, heads=1, groups=4, key_heads=1)
        yield dataclasses.replace(shared, heads=4, groups=4, key_heads=2)


def attention_problems(dtype: torch.dtype, lengths: tuple[int, ...]) -> Iterator[Problem]:
    """Yield the problems on which attention is checked."""
    for t, gated in itertools.product(lengths, (False, True)):
        base = MeasuredAttention(t=t, dtype=dtype, gated=gated)
        yield base
        yield dataclasses.replace(base, window=50)
        if t in (100, 1000):
            yield dataclasses.replace(base, window=1)
            yield dataclasses.replace(base, heads=6, groups=2, key_heads=2, key=24, value=40)
        if t > 1056:
            yield dataclasses.replace(base, window=1056)


def power_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases of power attention on CUDA."""
    tokens = TABLE_TOKENS // 8 if quick else TABLE_TOKENS
    plain = _plain_power(tokens)
    short = dataclasses.replace(plain, n=tokens // 32, t=256, heads=2, groups=2, key_heads=2)
    mamba = dataclasses.replace(
        plain, n=tokens // 32, t=256, p=1, gated=True, normalize="none", heads=1, groups=8, key_heads=1, value=32
    )
    yield table_case(plain, "auto", "chunked", *BACKENDS, "retention")
    yield table_case(dataclasses.replace(plain, gated=True), "auto", "chunked", "retention")
    yield table_case(dataclasses.replace(plain, p=1), "auto", "chunked", "fla", "fla unnormalised")
    yield table_case(dataclasses.replace(plain, p=1, gated=True), "auto", "chunked")
    yield table_case(short, "auto", "quadratic", "chunked", *BACKENDS)
    yield table_case(mamba, "auto", "quadratic")
    yield table_case(dataclasses.replace(plain, t=2 * tokens), "auto", "retention")


def attention_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases of attention on CUDA."""
    tokens = TABLE_TOKENS // 8 if quick else TABLE_TOKENS
    window = MeasuredAttention(
        t=tokens, dtype=torch.bfloat16, heads=TABLE_HEADS, groups=TABLE_HEADS, key_heads=TABLE_HEADS, window=1056
    )
    yield table_case(window, "auto", "torch", "flex")
    softmax = dataclasses.replace(window, window=None, n=max(1, tokens // 16_384), t=min(tokens, 16_384))
    yield table_case(softmax, "triton", "torch", *BACKENDS)


def small_power_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases of power attention on a CPU."""
    plain = MeasuredPower(
        t=256 if quick else 1024, dtype=torch.float32, groups=2, key_heads=2, key=32, value=32, states=False
    )
    for p, gated in ((2, False), (2, True), (1, False)):
        peers = () if gated else ("sdpa flash",)
        yield table_case(dataclasses.replace(plain, p=p, gated=gated), "auto", "quadratic", "chunked", *peers)
    yield table_case(dataclasses.replace(plain, n=16, t=64), "auto", "quadratic", "chunked", "sdpa flash")


def small_attention_table(quick: bool) -> Iterator[Case]:
    """Yield the timed cases of attention on a CPU."""
    plain = MeasuredAttention(t=256 if quick else 1024, dtype=torch.float32, groups=2, key_heads=2, key=32, value=32)
    yield table_case(dataclasses.replace(plain, window=64), "auto", "torch", "sdpa")
    yield table_case(plain, "auto", "torch", "sdpa flash", "sdpa math")


def crossover_sweep(cpu: bool, quick: bool) -> Iterator[Case]:
    """Yield the lengths at which power attention is compared with softmax attention, by width."""
    lengths, tokens, heads, dtype = SWEEP_LENGTHS[: 3 if quick else None], TABLE_TOKENS, TABLE_HEADS, torch.bfloat16
    if cpu:
        lengths, tokens, heads, dtype = CPU_LENGTHS[: 2 if quick else None], CPU_TOKENS, 1, torch.float32
    for t, width in itertools.product(lengths, SWEEP_WIDTHS[:2] if quick or cpu else SWEEP_WIDTHS):
        title = f"crossover d={width}, T={t:,}"
        sizes = {"n": tokens // t, "heads": heads, "groups": heads, "key_heads": heads, "key": width, "value": width}
        for p in (1, 2):
            power = MeasuredPower(t=t, dtype=dtype, p=p, states=False).varied(sizes)
            yield Case(title, "crossover", power, ("auto",), (width, p))
        backends = ("sdpa flash",) if cpu else ("sdpa flash", "sdpa cudnn")
        yield Case(title, "crossover", MeasuredAttention(t=t, dtype=dtype).varied(sizes), backends, (width, None))


def _plain_power(tokens: int) -> MeasuredPower:
    heads = {"heads": TABLE_HEADS, "groups": TABLE_HEADS, "key_heads": TABLE_HEADS}
    return MeasuredPower(t=tokens, dtype=torch.bfloat16, states=False).varied(heads)
