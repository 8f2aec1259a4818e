"""Linear attention: gradients of its feature maps, and the identity of runs whose numbers have changed."""

import pytest
import torch
from torch import Tensor

from icl_bench.architectures.linear import FEATURE_MAPS, FeatureMap
from icl_bench.harness.resolve import Request, arch_component, expand_request
from icl_bench.kernels.power.api import power_attention

WIDTH, LENGTH, STEP = 4, 9, 1e-5


def tensors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, LENGTH, 1, WIDTH, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("normalize", ["sum", "none"])
@pytest.mark.parametrize("name", list(FEATURE_MAPS))
def test_gradient_of_a_feature_map_through_attention_is_that_of_differences(name: FeatureMap, normalize) -> None:
    features = FEATURE_MAPS[name]
    weights, v, *qk = tensors(4)
    leaves = [x.requires_grad_() for x in qk]

    def loss(q: Tensor, k: Tensor) -> Tensor:
        y = power_attention(features(q), features(k), v, p=1, normalize=normalize)
        return (y * weights).sum()

    gradients = torch.autograd.grad(loss(*leaves), leaves)
    with torch.no_grad():
        for place, gradient in enumerate(gradients):
            directions = STEP * torch.eye(gradient.numel(), dtype=torch.float64).view(-1, *gradient.shape)
            moved = [
                [torch.add(x, direction, alpha=sign) if i == place else x for i, x in enumerate(qk)]
                for direction in directions
                for sign in (1, -1)
            ]
            values = torch.stack([loss(*arguments) for arguments in moved]).view(-1, 2)
            differences = ((values[:, 0] - values[:, 1]) / (2 * STEP)).view_as(gradient)
            # a central difference has an error of h^2 = 1e-10 times third derivatives, and rounding of 1e-16 / h
            assert (gradient - differences).norm() <= 1e-7 * differences.norm()


def test_the_offset_of_exp_is_part_of_the_function_of_a_key() -> None:
    q, k, v = tensors(3)
    shifted = FEATURE_MAPS["exp"](k)
    assert torch.equal(shifted.amax(dim=-1), torch.ones(1, LENGTH, 1, dtype=torch.float64))
    with_offset = power_attention(q.exp(), shifted, v, p=1)
    without = power_attention(q.exp(), k.exp(), v, p=1)
    assert (with_offset - without).abs().max() > 0.1


def test_runs_of_exp_before_its_gradient_was_right_have_other_ids() -> None:
    (run,) = expand_request(Request("copy", ["linear:feature_map=exp"]))
    assert run.arch[0].version == 2
    old = run.model_copy(update={"arch": (run.arch[0].model_copy(update={"version": 1}),)})
    assert old.id != run.id
    assert all(
        arch_component(f"linear:feature_map={name}", 64).version == 1
        for name in ("identity", *FEATURE_MAPS)
        if name != "exp"
    )
