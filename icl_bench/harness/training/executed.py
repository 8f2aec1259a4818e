"""Operations that the kernels of a run execute for a token, beside those that its specification implies."""

import torch
from torch import Tensor

from icl_bench.architectures import Architecture
from icl_bench.architectures.power import Power
from icl_bench.architectures.softmax import Softmax
from icl_bench.architectures.window import Window
from icl_bench.harness.accounting import Footprint
from icl_bench.harness.resolve import make_arch, make_task
from icl_bench.harness.training.precision import WORKING_TYPES
from icl_bench.harness.training.trainer import Machine
from icl_bench.kernels.attention.records import AttentionInputs, check_attention
from icl_bench.kernels.executed import attention_operations, last_product_operations, power_operations
from icl_bench.kernels.power.records import PowerInputs, check_options
from icl_bench.runs.spec import RunSpec

COUNTED = (Power, Softmax, Window)
"""Architectures whose kernels are counted."""
PASSES = 3
"""Products of a training step for each one of the forward pass: itself, and the gradients of both its factors."""


def executed_operations(spec: RunSpec, machine: Machine, members: int = 1) -> float | None:
    """Return the operations of matrix products in a training step for a token of the longest trained row.

    Products with weights, convolutions included, whether folded into weights or not, are counted three times; those
    with the state in the form that kernels take on the device (`kernels.executed`); those with the vocabulary with the
    logits that are made again. Norms and the optimiser are left out. None for tasks that are not graded by bits, for
    layers that are not in `COUNTED` or have parts beside the kernel's own, for a degree that rises, and where
    activations are computed again.
    """
    task, model = make_task(spec.task), spec.model
    if not task.interface.graded_by_bits or spec.from_outside or machine.recompute or spec.train.curriculum:
        return None
    layers = [make_arch(component).resolved(model.d_model) for component in spec.layer_components]
    if not all(is_counted(layer) for layer in layers):
        return None
    cell = max(task.train_cells, key=lambda cell: cell.length)
    kind = WORKING_TYPES[spec.precision] or torch.float32
    like = torch.empty(1, dtype=kind, device=machine.device)
    size = Footprint(layers, model.d_model, cell.length, model.canon, model.mlp_width)
    weights = size.flops.weights + 6.0 * model.layers * model.d_model * model.mlp_width
    state = sum(layer_operations(layer, cell.length, like, machine.impl) for layer in layers)
    examples = max(1, spec.train.batch // (machine.accumulate * (machine.ranks.size if machine.ranks else 1)))
    rows = like.expand(members, examples * cell.scored, model.d_model)
    head = last_product_operations(rows, task.vocabulary) / (members * examples)
    return PASSES * weights + (state + head) / cell.length


def is_counted(layer: Architecture) -> bool:
    """Return whether a resolved layer is one plain call of attention or of power attention, each head with its own."""
    if not isinstance(layer, COUNTED) or layer.heads != layer.key_value_heads:
        return False
    if isinstance(layer, Power):
        return (layer.spectrum, layer.offset, layer.degrees, layer.relative_eps) == ("none", "none", (), False)
    return not (isinstance(layer, Softmax) and layer.sinks)


def layer_operations(layer: Architecture, length: int, like: Tensor, impl: str) -> float:
    """Return the operations of the kernels of a resolved layer on one sequence, forward and backward."""
    assert isinstance(layer, COUNTED)

    def heads(count: int, *width: int) -> Tensor:
        return like.expand(1, length, count, *width)

    groups, key_width, value_width = layer.sizes
    q, k, v = heads(layer.heads, key_width), heads(groups, key_width), heads(groups, value_width)
    log_g = heads(groups).float() if layer.gate or (not isinstance(layer, Power) and layer.alibi) else None
    if isinstance(layer, Power):
        inputs, sums = PowerInputs(q, k, v, log_g, None), layer.sums
        return power_operations(inputs, check_options(inputs, sums.p, sums.scale, sums.normalize, sums.eps, None), impl)
    given = AttentionInputs(q, k, v, log_g)
    return attention_operations(given, check_attention(given, layer.reach, None), impl)
