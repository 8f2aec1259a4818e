"""Conformance of an architecture or of a layer of one's own: one check for each promise, with the number found.

A layer of one's own is checked in float32, the type of its training; every other architecture in float64.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from icl_bench import random
from icl_bench.architectures.base import LayerContext, Mixer
from icl_bench.architectures.causality import ROUNDING, Influence, example_influence, later_influence, nudge
from icl_bench.architectures.initialisation import initialise
from icl_bench.architectures.plain import Plain, PlainMixer
from icl_bench.errors import SpecError
from icl_bench.harness.resolve import Request, arch_components, expand_request, make_arch
from icl_bench.harness.training.loop import TrainingLoop
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.isolation import isolated
from icl_bench.outside import first_line, guarded, place_of

CPU = torch.device("cpu")
MEMBERS, BATCH = 2, 3
LENGTH = 70
"""Tokens of an input: more than 64, the length of chunks in most layers."""
SHORT_LENGTHS = (1, 2, 3)
STATE_LENGTHS = (64, 256, 1024)
LARGEST_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference of both forms relative to the largest output: sums of thousands of rounded terms."""
RECALL = Request(
    task="assoc-recall:length=20,pairs=4,vocab=64",
    archs=(),
    preset="quick",
    settings=("train.batch=32", "model.mlp=0", "evaluation.points=1"),
)
ATTEMPTS = ((0.005, 300), (0.01, 600))
"""Rate and updates of each training on recall, until one succeeds: state spaces learn at narrow ranges of rates."""
FRONT = "gated-conv"
"""Layer in front of the checked one in the recall: it joins each value to its key, as many layers alone cannot."""

LONGEST_CHECK = 3600.0
"""Seconds in which the checks of a layer from outside must end."""

Outcome = Literal["passed", "failed", "not applicable"]
Verdict = tuple[bool | None, str]
"""Passed, failed or, for None, not applicable; and what was found."""


class ConformanceCheck(NamedTuple):
    """The outcome of one check."""

    name: str
    outcome: Outcome
    found: str


class Recurrence(NamedTuple):
    """Both forms of a layer with a recurrent form, [..., T, C] -> [..., T, C] and token by token."""

    parallel: Callable[[Tensor], Tensor]
    initial_state: Callable[[int], Any]
    step: Callable[[Tensor, Any, int], tuple[Tensor, Any]]
    x: Tensor
    """Input of the longest length; `sequences` of them."""
    sequences: int

    def run(self, length: int) -> tuple[Tensor, Any]:
        """Run the first tokens one by one; return the outputs and the state that is carried after them."""
        state, rows = self.initial_state(BATCH), []
        for t in range(length):
            y, state = self.step(self.x[..., t, :], state, t)
            rows.append(y)
        return torch.stack(rows, dim=-2), state


class Subject:
    """An architecture under check, at a model width on a device; raise IclBenchError for a wrong spec."""

    def __init__(self, text: str, d_model: int, device: torch.device = CPU) -> None:
        components = arch_components(text, d_model)
        if len(components) > 1:
            raise SpecError(f"one architecture is checked at a time; got {text!r}; check its parts one by one")
        self.text, self.d_model, self.device = text, d_model, device
        self.architecture = make_arch(components[0])
        self.own = isinstance(self.architecture, Plain)
        self.dtype = torch.float32 if self.own else torch.float64

    def mixer(self, seeds: tuple[int, ...] = tuple(range(MEMBERS))) -> Mixer:
        """Make the layer with a member for each seed."""
        layer = self.architecture.build(len(seeds), self.d_model, LayerContext(0, layers=3))
        initialise(layer, seeds)
        return layer.to(self.device, self.dtype)

    def draw(self, name: str, length: int = LENGTH) -> Tensor:
        """Draw an input [M, B, T, C]; another name gives another one."""
        shape = (MEMBERS, BATCH, length, self.d_model)
        return random.normal_by_name(0, name, math.prod(shape)).view(shape).to(self.device, self.dtype)

    def recurrence(self) -> Recurrence | None:
        """Return both forms of the layer, None where it has no recurrent one."""
        x = self.draw("x")
        if isinstance(self.architecture, Plain):
            module: Any = self.architecture.make(self.d_model).to(self.device).requires_grad_(False).eval()
            if not (hasattr(module, "step") and hasattr(module, "initial_state")):
                return None
            return Recurrence(module, module.initial_state, module.step, x[0], BATCH)
        layer = vary(self.mixer()).requires_grad_(False).eval()
        if not layer.recurrent:
            return None
        return Recurrence(layer, layer.initial_state, layer.step, x, MEMBERS * BATCH)


def check_architecture(text: str, d_model: int, device: torch.device = CPU) -> list[ConformanceCheck]:
    """Check an architecture as typed, `name:key=value` or `package.module:Class`, at a model width.

    A layer from outside is checked in a process of its own where calls are isolated. Raise IclBenchError for a wrong
    spec, and OutsideCodeError if that process ends.
    """
    if any(component.source is not None for component in arch_components(text, d_model)):
        return isolated(f"the check of {text} failed", run_checks, text, d_model, device, seconds=LONGEST_CHECK)
    return run_checks(text, d_model, device)


def run_checks(text: str, d_model: int, device: torch.device) -> list[ConformanceCheck]:
    """Check an architecture in this process."""
    subject = Subject(text, d_model, device)
    done: list[ConformanceCheck] = []
    for name, check in CHECKS.items():
        if done and done[0].outcome == "failed":
            done.append(ConformanceCheck(name, "not applicable", f"needs {done[0].name}"))
        else:
            done.append(run_check(name, check, subject))
    return done


def run_check(name: str, check: Callable[[Subject], Verdict], subject: Subject) -> ConformanceCheck:
    """Run one check; whatever the layer raises is a failure of it."""
    try:
        with guarded(f"{subject.text} failed"):
            passed, found = check(subject)
    except Exception as error:  # a layer from outside may raise anything, and that is what the check found
        passed, found = False, first_line(error.__cause__ or error) + place_of(error.__cause__ or error)
    outcomes: dict[bool | None, Outcome] = {True: "passed", False: "failed", None: "not applicable"}
    return ConformanceCheck(name, outcomes[passed], found)


def check_shapes(subject: Subject) -> Verdict:
    """Check that every output has the shape of its input and is finite."""
    layer = subject.mixer()
    for length in (*SHORT_LENGTHS, LENGTH):
        x = subject.draw("x", length)
        y = layer(x)
        if y.shape != x.shape:
            return False, f"{list(x.shape)} became {list(y.shape)}"
        if not bool(y.isfinite().all()):
            return False, f"an output of {length} tokens is not finite"
    return True, f"[{MEMBERS}, {BATCH}, T, {subject.d_model}] for T = 1, 2, 3, {LENGTH}"


def check_causality(subject: Subject) -> Verdict:
    """Check that no output changes with a later token."""
    if not check_examples(subject)[0]:
        return None, "needs examples apart"
    layer = vary(subject.mixer()).eval()
    found = later_influence(layer, subject.draw("x"), subject.draw("fresh"))
    return judge(found, f"output {found.output} reads token {found.token}", subject.dtype)


def check_examples(subject: Subject) -> Verdict:
    """Check that no output changes with another example, or with another member of the fleet."""
    layer = vary(subject.mixer()).eval()
    found = example_influence(layer, subject.draw("x"), subject.draw("fresh"))
    return judge(found, f"output {found.output} reads other examples", subject.dtype)


def judge(found: Influence, place: str, dtype: torch.dtype) -> Verdict:
    """Return the verdict on the largest change of outputs that should not change; `place` says what is read where."""
    if found.change == 0:
        return True, "bit-equal"
    rounding = found.change <= ROUNDING[dtype]
    return rounding, f"outputs change by {found.change:.2g} of the largest, {'as by rounding' if rounding else place}"


def check_gradients(subject: Subject) -> Verdict:
    """Check that every parameter of every member gets a gradient, and that gradients are finite.

    Parameters are also moved off their initial values, since a factor that starts at 0 keeps gradients from the other.
    """
    if not parameter_names(subject.mixer()):
        return None, "no parameters"
    missing = None
    for layer in (subject.mixer(), vary(subject.mixer())):
        (layer(subject.draw("x")) * subject.draw("weights")).sum().backward()
        gradients = dict(zip(parameter_names(layer), (p.grad for p in layer.parameters()), strict=True))
        for name, gradient in gradients.items():
            if gradient is not None and not bool(gradient.isfinite().all()):
                return False, f"not finite in {name}"
        without = {name for name, gradient in gradients.items() if gradient is None or lacks_member(gradient)}
        missing = without if missing is None else missing & without
    if missing:
        return False, f"none in {', '.join(sorted(missing))}"
    return True, f"finite in {len(gradients)} parameters"


def lacks_member(gradient: Tensor) -> bool:
    """Return True if the gradient of a member is 0 everywhere."""
    return not bool(gradient.reshape(len(gradient), -1).abs().sum(1).all())


def parameter_names(layer: Mixer) -> list[str]:
    """Return the names of the parameters; of a layer of one's own, as its class has them."""
    return layer.names if isinstance(layer, PlainMixer) else [name for name, _ in layer.named_parameters()]


def vary(layer: Mixer) -> Mixer:
    """Move every parameter off its initial value, so that gains of 1 and biases of 0 are read too."""
    for name, parameter in layer.named_parameters():
        parameter.data = nudge(name, parameter.data)
    return layer


def check_state_law(subject: Subject) -> Verdict:
    """Tell whether the state is constant or grows with the length."""
    sizes = [subject.architecture.state_size(subject.d_model, length) for length in STATE_LENGTHS]
    counts = [size.elements for size in sizes if size is not None]
    if len(counts) < len(sizes):
        return None, "unknown: the layer has no method state_elements(length)"
    if min(counts) == max(counts):
        return True, f"constant: {counts[0]:,} elements"
    listed = ", ".join(f"{count:,}" for count in counts)
    return counts == sorted(counts), f"{listed} elements at T = {', '.join(map(str, STATE_LENGTHS))}"


def check_state_count(subject: Subject) -> Verdict:
    """Check that the declared size of the state is what `step` carries."""
    recurrence = subject.recurrence()
    if recurrence is None:
        return None, "no recurrent form"
    carried = 0
    for length in (*SHORT_LENGTHS, LENGTH):
        _, state = recurrence.run(length)
        carried = sum(part.numel() for part in state_tensors(state)) // recurrence.sequences
        size = subject.architecture.state_size(subject.d_model, length)
        if size is None:
            return None, f"step carries {carried:,} elements; the layer has no method state_elements(length)"
        if size.elements != carried:
            return False, f"{size.elements:,} declared, {carried:,} carried after {length} tokens"
    return True, f"{carried:,} elements after {LENGTH} tokens"


def state_tensors(state: object) -> Iterator[Tensor]:
    """Return every tensor of a state, through nested tuples."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for part in state:
            yield from state_tensors(part)


def check_forms(subject: Subject) -> Verdict:
    """Check that the recurrent form gives the outputs of the parallel form."""
    recurrence = subject.recurrence()
    if recurrence is None:
        return None, "no recurrent form"
    parallel, (stepped, _) = recurrence.parallel(recurrence.x), recurrence.run(LENGTH)
    error = float((parallel - stepped).abs().max() / parallel.abs().max())
    bound = LARGEST_ERROR[subject.dtype]
    return error <= bound, f"largest difference {error:.1e} of the largest output, bound {bound:.0e}"


def check_seeds(subject: Subject) -> Verdict:
    """Check that a seed gives the same parameters in any fleet, and that a call repeats."""
    fleet, again, alone = subject.mixer((0, 1)), subject.mixer((0, 1)), subject.mixer((1,))
    for name, first, second, own in zip(
        parameter_names(fleet), fleet.parameters(), again.parameters(), alone.parameters(), strict=True
    ):
        if not (torch.equal(first, second) and torch.equal(first[1:], own)):
            return False, f"a seed gives different values of {name}"
    fleet.eval()
    again.eval()
    with torch.no_grad():
        x = subject.draw("x")
        y = fleet(x)
        if not torch.equal(y, fleet(x)):
            return False, "two calls on the same input differ: the layer draws random numbers"
        if not torch.equal(y, again(x)):
            return False, "a seed gives different outputs: the layer draws numbers that are no parameters or buffers"
    return True, "parameters and outputs are bit-equal"


def check_recall(subject: Subject) -> Verdict:
    """Train behind a short convolution on four pairs; a sanity check, half of the way from the floor to 1."""
    if subject.architecture.reach is not None or subject.architecture.short_range:
        return None, "reaches a fixed number of tokens back"
    if not subject.architecture.holds_pairs:
        return None, "a vector of state learns pairs in thousands of updates alone"
    later = subject.architecture.build(1, subject.d_model, LayerContext(1, layers=3))
    arch = subject.text if later.asks_first_layer else f"{FRONT}+{subject.text}"
    verdict: Verdict = False, ""
    for rate, steps in ATTEMPTS:
        verdict = learn_recall(subject, arch, rate, steps)
        if verdict[0]:
            break
    return verdict


def learn_recall(subject: Subject, arch: str, rate: float, steps: int) -> Verdict:
    """Train layers on recall once, at a rate."""
    settings = (*RECALL.settings, f"model.d_model={subject.d_model}", f"train.lr={rate}", f"train.steps={steps}")
    (run,) = expand_request(RECALL._replace(archs=(arch,), settings=settings))
    loop = TrainingLoop(Trainer([run], Machine(subject.device)), lambda progress: None, lambda member, point: None)
    member = loop.run().members[0]
    if member.diverged_at:
        return False, f"diverged at step {member.diverged_at}, at a rate of {rate}"
    (cell,) = member.cells
    floor = cell.floor or 0.0
    found = f"accuracy {cell.accuracy:.2f}, floor {floor:.2f}, after {steps} steps at a rate of {rate}"
    return cell.accuracy >= (1 + floor) / 2, found + ("" if arch == subject.text else f" behind {FRONT}")


CHECKS: dict[str, Callable[[Subject], Verdict]] = {
    "shapes": check_shapes,
    "examples apart": check_examples,
    "causality": check_causality,
    "gradients": check_gradients,
    "state by length": check_state_law,
    "state count": check_state_count,
    "parallel = recurrent": check_forms,
    "seeds repeat": check_seeds,
    "four-pair recall (sanity)": check_recall,
}
"""Checks by name, in order; the first decides whether the others can be made."""
