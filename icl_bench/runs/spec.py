"""What a run is: everything that decides its numbers, and nothing else.

A `RunSpec` is written out to all its defaults before it is hashed; the hash is the run's identity. Device, engine,
fleet size and paths are not part of it.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from icl_bench.schema import Frozen, Spec, Value, content_hash

Precision = Literal["float32", "bfloat16"]

RUN_DOMAIN = "icl-bench/run/v1"
ID_LENGTH = 16


class Component(Frozen):
    """A task or an architecture by name, with every parameter written out."""

    name: str
    """Registry name, or `package.module:Class` for a layer of one's own."""
    version: int = 1
    """Data version of a task; raised when the same parameters give other data."""
    params: Mapping[str, Value]
    """Parameters, defaults included."""
    label: str = Field(exclude=True)
    """How reports name it: the parameters that differ from the defaults. Not part of the identity."""


class ModelSpec(Frozen):
    """The model around the mixers."""

    d_model: int = Field(default=64, ge=1)
    """Model width, C."""
    layers: int = Field(default=2, ge=1)
    """Number of layers; a pattern of architectures `a+b` repeats until they are filled."""
    mlp: float = Field(default=2.0, ge=0)
    """Hidden width of the gated MLP of a layer, relative to the model width; 0 for none."""
    tied: bool = True
    """Whether the output head is the transpose of the embedding."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Standard deviation of the embedding at the start, relative to 1 / sqrt(d_model)."""


class TrainSpec(Frozen):
    """Optimiser (AdamW), schedule and budget."""

    steps: int = Field(default=300, ge=1)
    """Updates."""
    batch: int = Field(default=64, ge=1)
    """Examples of an update."""
    lr: float = Field(default=1e-2, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, on every parameter."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises linearly to its peak."""
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the cosine, relative to the peak."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean squared gradient."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of a model's gradient; none for no clipping."""
    examples: int | None = Field(default=None, ge=1)
    """Size of a fixed training set, shared out over the cells and cycled; none for fresh examples throughout."""


class EvalSpec(Frozen):
    """What is measured, and when."""

    examples: int = Field(default=1024, ge=1)
    """Test examples of each cell, used once, at the end."""
    validation: int = Field(default=256, ge=1)
    """Validation examples of each cell."""
    points: int = Field(default=10, ge=1)
    """Validations, evenly spread over training; the last is at its end."""


class RunSpec(Frozen):
    """One run: a task, an architecture, a model, a budget, a seed and a precision."""

    task: Component
    """The task."""
    arch: tuple[Component, ...]
    """Architectures of successive layers, repeated until all layers have one."""
    model: ModelSpec
    """The model around the mixers."""
    train: TrainSpec
    """Optimiser, schedule and budget."""
    evaluation: EvalSpec
    """What is measured."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initial parameters."""
    data_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the data; the run's seed unless told otherwise."""
    precision: Precision = "float32"
    """Arithmetic of the forward and backward pass; parameters and optimiser are float32."""

    @model_validator(mode="after")
    def _check_pattern(self) -> Self:
        if len(self.arch) > self.model.layers:
            raise ValueError(
                f"a pattern of architectures has at most as many parts as there are layers, {self.model.layers}; got "
                f"{len(self.arch)} in {self.arch_label}; shorten it or raise model.layers"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the specification, 64 hexadecimal digits."""
        return content_hash(self.model_dump(mode="json"), RUN_DOMAIN)

    @property
    def id(self) -> str:
        """The run's identity: the first 16 digits of the digest."""
        return self.digest[:ID_LENGTH]

    @property
    def arch_label(self) -> str:
        """The architecture as reports name it: `a+b` for a pattern of layers."""
        return "+".join(component.label for component in self.arch)

    @property
    def layer_components(self) -> list[Component]:
        """The architecture of each layer."""
        return [self.arch[i % len(self.arch)] for i in range(self.model.layers)]

    def labelled(self) -> dict[str, Any]:
        """The specification as JSON for another process: with the labels, which the store leaves out."""
        document = self.model_dump(mode="json")
        for component, own in zip([document["task"], *document["arch"]], [self.task, *self.arch], strict=True):
            component["label"] = own.label
        return document

    def fleet_key(self) -> str:
        """Equal for runs that can train as members of one fleet: all but seeds, learning rate and weight decay."""
        shared = self.model_dump(
            mode="json", exclude={"seed": True, "data_seed": True, "train": {"lr", "weight_decay"}}
        )
        return content_hash(shared, "icl-bench/fleet/v1")


def label_of(spec: Spec, params: Mapping[str, Value], defaults: Mapping[str, Value], shown: tuple[str, ...]) -> str:
    """The spec with the parameters always shown, then the typed ones that differ from their defaults."""
    typed = {key for key in spec.params if params[key] != defaults[key]}
    named = (*shown, *(key for key in params if key in typed and key not in shown))
    return str(Spec(spec.name, {key: params[key] for key in named}))
