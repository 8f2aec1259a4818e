"""The specification of a run: everything that decides its numbers, and nothing else.

A `RunSpec` has every default written out before it is hashed; the hash is the identity of the run. Device, engine,
fleet size and paths are no part of it.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from icl_bench.schema import READS_NONE, Frozen, Spec, Value, content_hash

Precision = Literal["float32", "bfloat16", "float16"]
Recipe = Literal[1, 2]
Canon = Annotated[
    Literal["none", "a", "b", "c", "d", "ab", "ac", "ad", "bc", "bd", "cd", "abc", "abd", "acd", "bcd", "abcd"],
    READS_NONE,
]
"""Places of canon layers: before the mixer (a), on queries, keys and values (b), before (c) and inside (d) the MLP."""
NEWEST_RECIPE: Recipe = 2
"""Training recipe of new runs."""

RUN_DOMAIN = "icl-bench/run/v1"
"""Prefix of the hashed text, which separates hashes of specifications from other hashes."""
ID_LENGTH = 16
"""Number of hexadecimal digits in the id of a run."""


class GrownSpec(Frozen):
    """Base of records that gained fields: one that has its `former` value is left out of the JSON, and so of the hash.

    Runs from before a field existed thus keep their ids.
    """

    former: ClassVar[Mapping[str, Any]] = {}
    """Values that newer fields had, in effect, before they existed."""

    @model_serializer(mode="wrap")
    def _leave_out_former(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if key not in self.former or value != self.former[key]}


class Component(GrownSpec):
    """A task or an architecture: its name, with every parameter written out."""

    former: ClassVar[Mapping[str, Any]] = {"source": None}

    name: str
    """Registry name, or `package.module:Class` for a layer from outside the package."""
    version: int = 1
    """Version of a task's data or of an architecture's numbers; it rises when equal parameters give others."""
    params: Mapping[str, Value]
    """Parameters, including defaults."""
    source: str | None = None
    """Digest of the source of a layer, an architecture or a task from outside the package; none for built-in ones."""
    label: str = Field(exclude=True)
    """Name in reports, with the parameters that differ from the defaults; no part of the identity."""


class ModelSpec(GrownSpec):
    """The model around the sequence mixers."""

    former: ClassVar[Mapping[str, Any]] = {"init": "fan-in", "canon": "none", "gain": 1.0}

    d_model: int = Field(default=64, ge=1, le=65_536)
    """Model width, C."""
    layers: int = Field(default=2, ge=1, le=1024)
    """Number of layers; a pattern of architectures `a+b` repeats until every layer has one."""
    mlp: float = Field(default=2.0, ge=0, le=1024)
    """Hidden width of the gated MLP of each layer, relative to the model width; 0 for no MLP."""
    tied: bool = True
    """Use the transpose of the embedding as the output head."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Standard deviation of the initial embedding, relative to 1 / sqrt(d_model)."""
    init: Literal["fan-in", "gpt-2", "published"] = "fan-in"
    """Start of weights: `fan-in`, std 1 / sqrt(inputs), `gpt-2`, std .02, or `published`, which lets the projections of
    each mixer start as in the code of its authors, and the rest as gpt-2; output projections are divided by
    sqrt(2 layers), and gates and decays start as their source has them."""
    canon: Canon = "none"
    """Places of canon layers x + conv(x), causal, of four taps for each channel: before the mixer (a), on its queries,
    keys and values (b), before the MLP (c), inside it (d); `acd`, `abcd`, or none."""
    gain: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on the initial weights of queries and of keys in multi-head mixers: scores start gain^2 times as large.
    Runs that differ in it train together, as those that differ in the learning rate do."""

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP; 0 for none."""
        return round(self.mlp * self.d_model)

    @model_validator(mode="after")
    def _check_canon(self) -> Self:
        if not self.mlp_width and {"c", "d"} & set(self.canon):
            raise ValueError(f"canon has places c and d only where there is an MLP; got {self.canon}; raise mlp")
        return self

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if self.init != "fan-in" and self.embedding_scale != 1.0:
            raise ValueError(
                f"embedding_scale belongs to init=fan-in, as {self.init} sets the embedding; got "
                f"{self.embedding_scale:g}; leave one of them out"
            )
        return self


class TrainSpec(GrownSpec):
    """The optimiser, its schedule and the training budget."""

    former: ClassVar[Mapping[str, Any]] = {
        "recipe": 1, "optimiser": "adamw", "loss_scale": 1.0, "eps": 1e-8, "curriculum": 0.0,
        "clip_by": "model", "stop_above": None,
    }  # fmt: skip

    recipe: Recipe = 1
    """Version of the training: 1 applies weight decay to every parameter, 2 to matrices and tables alone; new runs take
    the newest unless they set another, and a specification without this field is of recipe 1."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: orthogonalised momentum for the matrices between activations, AdamW for the rest."""
    steps: int = Field(default=300, ge=1, le=10**7)
    """Number of updates."""
    batch: int = Field(default=64, ge=1, le=2**20)
    """Number of examples in an update."""
    lr: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay; `recipe` says of which parameters."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the updates during which the learning rate rises linearly to its peak."""
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the cosine schedule, relative to the peak."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay rate of the running mean of the gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay rate of the running mean of the squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """Number that AdamW adds to the root of the mean squared gradient: smaller gradients move nothing."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient of a model; none to clip nothing."""
    clip_by: Literal["model", "tensor"] = "model"
    """Gradient whose norm `clip` limits: that of a `model`, or that of each `tensor` of its parameters."""
    curriculum: float = Field(default=0.0, ge=0, le=1)
    """Share of the updates in which power attention of degree p >= 3 rises from degree p - 2 to p; 0 for p from the
    start. Validation and test always see degree p."""
    stop_above: float | None = Field(default=None, ge=0, lt=1)
    """Validation accuracy, the mean over cells, above which a run ends at once; none to make all updates. The rates are
    those of all updates."""
    loss_scale: float = Field(default=1.0, ge=1, le=2**24)
    """Factor on the loss while it is differentiated, which the gradient then loses in float32: with float16, small
    gradients do not vanish. A gradient beyond 65,504 in float16 ends the run as diverged."""
    examples: int | None = Field(default=None, ge=1, le=10**9)
    """Size of a fixed training set, divided among the cells and read in cycles; none to draw fresh examples always."""


FORMER_VALUES: Mapping[str, str] = {
    f"{section}.{name}": str(value)
    for section, model in (("model", ModelSpec), ("train", TrainSpec))
    for name, value in model.former.items()
}
"""Values of the fields that a stored specification leaves out, by dotted path, as text."""


class EvalSpec(Frozen):
    """The number of validation and test examples, and of validations."""

    examples: int = Field(default=1024, ge=1, le=10**7)
    """Number of test examples per cell, used once, after training."""
    validation: int = Field(default=256, ge=1, le=10**7)
    """Number of validation examples per cell."""
    points: int = Field(default=10, ge=1, le=10**5)
    """Number of validations, evenly spaced over training; the last is at its end."""


class RunSpec(Frozen):
    """One run: a task, an architecture, a model, a budget, a seed and a precision."""

    task: Component
    """Task."""
    arch: tuple[Component, ...]
    """Architectures of successive layers, repeated until every layer has one."""
    model: ModelSpec
    """Model around the sequence mixers."""
    train: TrainSpec
    """Optimiser, schedule and training budget."""
    evaluation: EvalSpec
    """Validation and test examples."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial parameters."""
    data_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the data; equal to `seed` unless it is set."""
    precision: Precision = "float32"
    """Arithmetic of the forward and backward pass; parameters and optimiser state are float32."""

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if len(self.arch) > self.model.layers:
            raise ValueError(
                f"a pattern of architectures has at most as many parts as there are layers, {self.model.layers}; got "
                f"{len(self.arch)} in {self.arch_label}; shorten it or raise model.layers"
            )
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the specification, 64 hexadecimal digits."""
        return content_hash(self.model_dump(mode="json"), RUN_DOMAIN)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values, which are not validated, and with a digest of its own."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("digest", None)  # pydantic copies what was computed too
        return copied

    @property
    def id(self) -> str:
        """Identity of the run: the first 16 digits of the digest."""
        return self.digest[:ID_LENGTH]

    @property
    def arch_label(self) -> str:
        """Label of the architecture in reports: `a+b` for a pattern of layers."""
        return "+".join(component.label for component in self.arch)

    @property
    def layer_components(self) -> list[Component]:
        """Architecture of each layer."""
        return [self.arch[i % len(self.arch)] for i in range(self.model.layers)]

    @property
    def from_outside(self) -> bool:
        """Run code from outside the package: its task or one of its layers."""
        return any(component.source is not None for component in (self.task, *self.arch))

    def labelled(self) -> dict[str, Any]:
        """Return the specification as JSON for another process, including the labels, which the store leaves out."""
        document = self.model_dump(mode="json")
        for component, own in zip([document["task"], *document["arch"]], [self.task, *self.arch], strict=True):
            component["label"] = own.label
        return document

    def fleet_key(self) -> str:
        """Return a key that is equal for runs which differ in seeds, learning rate, weight decay and gain alone."""
        own: dict[str, Any] = {"seed": True, "data_seed": True, "train": {"lr", "weight_decay"}, "model": {"gain"}}
        shared = self.model_dump(mode="json", exclude=own)
        return content_hash(shared, "icl-bench/fleet/v1")


def label_of(spec: Spec, params: Mapping[str, Value], defaults: Mapping[str, Value], shown: tuple[str, ...]) -> str:
    """Return the spec with the parameters in `shown`, then the typed parameters that differ from their defaults."""
    typed = {key for key in spec.params if params.get(key) != defaults.get(key)}
    named = (*shown, *(key for key in params if key in typed and key not in shown))
    return str(Spec(spec.name, {key: params[key] for key in named}))
