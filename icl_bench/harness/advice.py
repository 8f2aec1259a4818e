"""Notes before training on runs that will show little: a window that sees nearly all, a state that holds all."""

from collections.abc import Iterator, Sequence

from icl_bench.architectures.base import Architecture
from icl_bench.architectures.softmax import Softmax
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.runs.spec import RunSpec

NEARLY_ALL = 0.75
"""Share of the context, in tokens or in elements of state, from which a run is remarked on."""
SEES_ALL = "little can be lost from its window; a smaller one, or a longer task, tells more"
HOLDS_ALL = (
    "softmax attention keeps all {length} tokens in {full:,}, so that cells may saturate; a smaller state, or a longer "
    "task, tells more"
)
MOST_NAMES = 3
"""Most architectures that one note names."""


def advice(runs: Sequence[RunSpec]) -> list[str]:
    """Return a note for each way in which runs will show little, with the architectures that it concerns."""
    found: dict[str, dict[str, str]] = {}
    for run in {run.fleet_key(): run for run in runs}.values():
        for kind, fact in remarks(run):
            found.setdefault(kind, {})[run.arch_label] = fact
    return [f"{some_of(list(facts.values()))}: {kind}" for kind, facts in found.items()]


def some_of(facts: Sequence[str]) -> str:
    """Join the first few facts, and count the others."""
    more = f", and {len(facts) - MOST_NAMES} more" if len(facts) > MOST_NAMES else ""
    return ", ".join(facts[:MOST_NAMES]) + more


def remarks(run: RunSpec) -> Iterator[tuple[str, str]]:
    """Yield a kind of note and the fact about the architecture of a run."""
    length = max(cell.length for cell in make_task(run.task).eval_cells)
    layers = [make_arch(component) for component in run.layer_components]
    mixers = [layer for layer in layers if not layer.declaration().short_range]
    if not mixers:
        return
    reaches = [layer.reach for layer in mixers]
    if all(reach is not None and NEARLY_ALL * length <= reach for reach in reaches):
        seen = min(length, *(reach for reach in reaches if reach is not None))
        yield SEES_ALL, f"{run.arch_label} sees {seen} of {length} tokens"
        return
    own = fixed_elements(run, layers, length)
    full = fixed_elements(run, with_attention(run, layers), length, grows=True)
    if own is not None and full is not None and own >= NEARLY_ALL * full:
        yield HOLDS_ALL.format(full=full, length=length), f"{run.arch_label} carries {own:,} state elements"


def with_attention(run: RunSpec, layers: Sequence[Architecture]) -> list[Architecture]:
    """Return the layers with softmax attention in place of every mixer that reaches far."""
    full = Softmax().resolved(run.model.d_model)
    return [layer if layer.declaration().short_range else full for layer in layers]


def fixed_elements(run: RunSpec, layers: Sequence[Architecture], length: int, grows: bool = False) -> int | None:
    """Return the state elements after `length` tokens; None where unknown, or where they grow and may not."""
    model = run.model
    sizes = [Footprint(layers, model.d_model, n, model.canon, model.mlp_width).state for n in (length, 2 * length)]
    if sizes[0] is None or sizes[1] is None or (not grows and sizes[0].elements != sizes[1].elements):
        return None
    return sizes[0].elements
