"""A stream that products add to, and norms whose gains are folded into matrices."""

import pytest
import torch

from icl_bench.architectures import backbone
from icl_bench.errors import ArgumentError
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.kernels.fleet import residual, rotation
from icl_bench.kernels.fleet.residual import fold_gains, project_onto, unit_rms
from tests.kernels.numerics import assert_forms_match_reference, draw

TASK = "text:corpus=example,length=16,extrapolate=[]"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 24), (1, 3, 11, 512)])
def test_unit_rms(shape, dtype):
    assert_forms_match_reference(lambda x, impl: unit_rms(x, impl=impl), [draw(*shape, dtype=dtype)], walk=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 33, 1100)])
def test_fold_gains(shape, dtype):
    inputs = [draw(*shape, dtype=dtype), 1 + draw(*shape[:2], seed=1) / 4]
    # a gradient of a gain is a sum over all columns
    assert_forms_match_reference(
        lambda weight, gain, impl: fold_gains(weight, gain, impl=impl), inputs, walk=shape[2] ** 0.5
    )


def test_project_onto():
    total, x, weight = draw(2, 6, 10), draw(2, 6, 4, seed=1), draw(2, 4, 10, seed=2)
    leaves = [part.double().requires_grad_() for part in (total, x, weight)]
    added = project_onto(leaves[0].clone(), *leaves[1:])
    assert torch.allclose(added, leaves[0] + leaves[1] @ leaves[2], rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda total, x, weight: project_onto(total.clone(), x, weight), leaves)
    with pytest.raises(ArgumentError, match=r"total .*\[M, N, C_out\]"):
        project_onto(total, x, weight[..., :8])


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter does on a CPU what a GPU does")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ["softmax:heads=2,conv=0", "window:w=5,rope=true,output_norm=true"])
def test_a_stream_in_place_has_the_gradients_of_sums(arch, recompute, monkeypatch):
    def differentiated():
        settings = ("model.d_model=32", "model.layers=3", "model.mlp=2", "train.batch=4")
        (run,) = expand_request(Request(TASK, [arch], precision="float32", settings=settings))
        trainer = Trainer([run], Machine(torch.device("cpu"), recompute=recompute))
        with torch.no_grad():  # gains of 1 would hide where they are applied
            for block in trainer.model.blocks:
                block.mixer_norm.weight.mul_(1.5)
                block.mlp_norm.weight.mul_(0.5)
        trainer.step()
        return trainer.take_means(1)[0], trainer.optimiser.buffers.gradients.clone()

    loss, wanted = differentiated()
    calls = []
    monkeypatch.setattr(backbone, "stands_alone", lambda x: calls.append(x.shape) is None)
    for module in (residual, rotation):
        monkeypatch.setattr(module, "takes_triton", lambda impl, x: True)
    monkeypatch.setattr(residual._ProjectionOnto, "forward", staticmethod(written_over))
    assert differentiated()[0] == pytest.approx(loss, rel=1e-6)
    # sums of 64 rows and 32 or 128 columns in another order, eps each
    assert float((differentiated()[1] - wanted).norm() / wanted.norm()) < 64 * torch.finfo(torch.float32).eps
    assert len(calls) >= 3


def written_over(ctx, total, x, weight):
    """Do on a CPU what a GPU does."""
    ctx.save_for_backward(x, weight)
    return total.detach().baddbmm_(x, weight)
