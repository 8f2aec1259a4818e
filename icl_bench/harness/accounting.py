"""State, parameters and work of an architecture, without training it."""

from icl_bench.harness.resolve import arch_components, make_arch
from icl_bench.runs.record import Account


def account(text: str, d_model: int, layers: int, length: int) -> Account:
    """Count an architecture as typed.

    Raises:
        IclBenchError: where the text names no architecture or one that cannot be counted.
    """
    components = arch_components(text, d_model)
    pattern = [make_arch(component) for component in components]
    stack = [pattern[i % len(pattern)] for i in range(layers)]
    sizes = [layer.state_size(d_model, length) for layer in stack]
    flops = [layer.flops(d_model, length) for layer in stack]
    weights, state = sum(f.weights for f in flops), sum(f.state for f in flops)
    return Account(
        arch="+".join(component.label for component in components),
        elements=sum(size.elements for size in sizes),
        bytes=sum(size.bytes(2) for size in sizes),
        length=length,
        params=sum(p.numel() for layer in stack for p in layer.build(1, d_model, 1.0, "auto").parameters()),
        weight_flops=weights,
        state_flops=state,
        ratio=weights / state if state else None,
    )
