"""The two ends of a model: tokens and vectors."""

import pytest
import torch

from icl_bench.architectures import ARCHITECTURES
from icl_bench.architectures.backbone import Backbone
from icl_bench.architectures.interface import Interface, Tokens, Vectors
from icl_bench.runs.spec import ModelSpec

MODEL = ModelSpec(d_model=8, mlp=0, tied=False)


def grade(answers: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    errors = (answers - targets).square().mean(-1)
    return errors, (errors < 1).float()


@pytest.mark.parametrize("interface", [Tokens(7), Vectors(3, 5, grade)], ids=["tokens", "vectors"])
def test_a_batch_in_its_layout_is_scored_position_by_position(interface: Interface) -> None:
    model = Backbone([0, 1], interface, [ARCHITECTURES["softmax"]()], MODEL, "auto")
    inputs, positions, targets = (
        torch.zeros(2, 4, *shape, dtype=interface.dtype) for shape in interface.batch_shapes(6, 3)
    )
    scores = model.scores(inputs, positions.long(), targets)
    assert scores.losses.shape == scores.hits.shape == (2, 4, 3)
    assert scores.losses.dtype == torch.float32 and scores.losses.requires_grad and not scores.hits.requires_grad


def test_losses_of_tokens_are_the_cross_entropies_of_the_logits() -> None:
    model = Backbone([0, 1], Tokens(7), [ARCHITECTURES["softmax"]()], MODEL, "auto")
    ids, positions = torch.arange(2 * 3 * 5).view(2, 3, 5) % 7, torch.arange(5).expand(2, 3, 5)
    expected = torch.nn.functional.cross_entropy(model(ids, positions).flatten(0, 2), ids.flatten(), reduction="none")
    torch.testing.assert_close(model.scores(ids, positions, ids).losses.flatten(), expected)


def test_a_tied_head_is_the_transpose_of_the_embedding_and_vectors_have_none() -> None:
    tied = MODEL.model_copy(update={"tied": True})
    layers = [ARCHITECTURES["softmax"]()]
    assert Backbone([0], Tokens(7), layers, tied, "auto").head is None
    assert Backbone([0], Vectors(3, 5, grade), layers, tied, "auto").head is not None
