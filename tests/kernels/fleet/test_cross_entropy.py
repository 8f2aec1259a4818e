"""Cross-entropy without logits: both forms against the definition in float64."""

from types import SimpleNamespace

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.fleet.cross_entropy import cross_entropy
from tests.kernels.numerics import DEVICE

IMPLS = pytest.mark.parametrize("impl", ["torch", "triton"])


def make_case(m=2, r=21, w=75, c=20, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(m * 1000 + r + w + c)
    x = torch.randn(m, r, c, generator=generator) * scale * 4 / c**0.5
    weight = torch.randn(m, w, c, generator=generator)
    targets = torch.randint(w, (m, r), generator=generator)
    gradient = torch.rand(m, r, generator=generator) + 0.5
    return x.to(dtype).to(DEVICE), weight.to(dtype).to(DEVICE), targets.to(DEVICE), gradient.to(DEVICE)


def relative(found, wanted) -> float:
    assert found.isfinite().all()
    return float((found.detach().double() - wanted.detach()).norm() / wanted.detach().norm())


def assert_close_to_definition(x, weight, targets, gradient, impl, bound, **options) -> None:
    """Loss, hit and both gradients; `bound` is relative, in the root mean square."""
    leaves = [part.detach().requires_grad_() for part in (x, weight)]
    exact = [part.detach().double().requires_grad_() for part in (x, weight)]
    losses, hits = cross_entropy(*leaves, targets, impl=impl, **options)
    wanted, wanted_hits = cross_entropy(*exact, targets, impl="reference")
    assert relative(losses, wanted) <= bound and torch.equal(hits.double(), wanted_hits)
    found = torch.autograd.grad(losses, leaves, gradient.to(losses.dtype))
    for own, right in zip(found, torch.autograd.grad(wanted, exact, gradient.double()), strict=True):
        assert own.shape == right.shape and relative(own, right) <= bound


# Root-mean-square rounding: a logit sums C products whose rounding is eps / 2 each, exp() carries the error of a logit
# of up to ten over to a weight, and a gradient sums such weights: some ten eps.
@IMPLS
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2, 1), (2, 21, 75, 20), (1, 64, 64, 32), (3, 33, 130, 16), (1, 5, 300, 130), (2, 21, 1100, 260)],
    ids=str,
)
def test_matches_the_definition(shape, impl):
    case = make_case(*shape)
    assert_close_to_definition(*case, impl, 20 * torch.finfo(torch.float32).eps)


# Weights and both gradients are rounded to the type, at eps / 2 each.
@pytest.mark.parametrize("shape", [(2, 70, 200, 32), (2, 70, 200, 260), (2, 128, 192, 32)], ids=str)
def test_half_precision_matches_the_definition(shape):
    """Of whole and of broken tiles, the former copied by the hardware."""
    case = make_case(*shape, dtype=torch.float16, scale=0.3)
    assert_close_to_definition(*case, "triton", 2 * torch.finfo(torch.float16).eps)


@pytest.mark.parametrize("shape", [(2, 70, 200, 32), (2, 128, 192, 32)], ids=str)
def test_an_evaluation_has_the_losses_of_training(shape):
    """It has programs of its own, which make no gradient."""
    x, weight, targets, _ = make_case(*shape, dtype=torch.float16, scale=0.3)
    trained = cross_entropy(x.clone().requires_grad_(), weight, targets, impl="triton")
    evaluated = cross_entropy(x, weight, targets, impl="triton")
    assert relative(evaluated[0], trained[0]) <= 20 * 2**-23 and torch.equal(evaluated[1], trained[1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy warns of infinities
@pytest.mark.parametrize("full_device", [1, 128], ids=["one part", "parts"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_every_tile_matches_the_definition_near_and_far(monkeypatch, scale, held, full_device):
    """At a scale of 30, logits are beyond those whose sums need no base: some two hundred."""
    from icl_bench.kernels.fleet.triton import cross_entropy as fused
    from icl_bench.kernels.fleet.triton import entropy_tiles

    for name in ("entropy_tile", "table_tile"):
        monkeypatch.setattr(entropy_tiles, name, lambda *_: entropy_tiles.EntropyTile(32, 32, 4, 2, held=held))
    monkeypatch.setattr(fused, "FULL_DEVICE", full_device)
    assert_close_to_definition(*make_case(2, 40, 130, 32, scale=scale), "triton", scale * 20 * 2**-23)


@IMPLS
def test_a_confident_row_keeps_its_gradient(impl):
    """Where the target has all but 1e-5 of the probability, the gradient is not lost in rounding."""
    _, weight, targets, gradient = make_case()
    rows = weight.gather(1, targets[..., None].expand(-1, -1, weight.shape[-1]))
    confident = rows * (14 / rows.square().sum(-1, keepdim=True).sqrt())  # margins of over ten
    assert_close_to_definition(confident, weight, targets, gradient, impl, 100 * torch.finfo(torch.float32).eps)


@IMPLS
def test_an_untied_head_is_read_in_place(impl):
    x, weight, targets, gradient = make_case()
    head = weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close_to_definition(x, head, targets, gradient, impl, 20 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("at_once", [1, 2 * 75 * 4, 2 * 75 * 20])
@pytest.mark.parametrize("impl,width", [("torch", 20), ("triton", 260)])
def test_chunks_do_not_show(impl, width, at_once):
    case = make_case(c=width)
    assert_close_to_definition(*case, impl, 20 * torch.finfo(torch.float32).eps, at_once=at_once)


def test_a_second_backward_pass_gives_the_same_bits():
    """The first one overwrites the logits that it kept."""
    x, weight, targets, gradient = make_case(c=260)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    losses, _ = cross_entropy(*leaves, targets, impl="triton")
    first, second = (torch.autograd.grad(losses, leaves, gradient, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_tie_is_no_hit():
    x, weight, targets, _ = make_case()
    weight[:, 1] = weight[:, 0]
    _, hits = cross_entropy(x, weight, torch.zeros_like(targets), impl="torch")
    assert not hits.any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy warns of infinities
@IMPLS
def test_what_is_not_finite_stays_with_its_member(impl):
    x, weight, targets, gradient = make_case()
    broken = weight.clone()
    broken[1, 3] = torch.inf
    results = []
    for part in (weight, broken):
        leaves = [x.clone().requires_grad_(), part.clone().requires_grad_()]
        losses, hits = cross_entropy(*leaves, targets, impl=impl)
        results.append((losses, hits, *torch.autograd.grad(losses, leaves, gradient)))
    assert not results[1][0][1].isfinite().all()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(*results, strict=True))


@IMPLS
def test_gradients_are_the_same_bits_again(impl):
    x, weight, targets, gradient = make_case()
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    first, second = (
        torch.autograd.grad(cross_entropy(*leaves, targets, impl=impl)[0], leaves, gradient) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_float64_is_differentiated_as_defined():
    x, weight, targets, _ = make_case(1, 4, 7, 3, dtype=torch.float64)
    targets = targets.cpu()
    leaves = [x.cpu().requires_grad_(), weight.cpu().requires_grad_()]
    assert torch.autograd.gradcheck(lambda *parts: cross_entropy(*parts, targets, impl="torch")[0], leaves)


def test_refuses_what_does_not_fit():
    x, weight, targets, _ = make_case()
    with pytest.raises(ArgumentError, match="weight must be"):
        cross_entropy(x, weight[..., :-1], targets)
    with pytest.raises(ArgumentError, match="share a floating type"):
        cross_entropy(x, weight.double(), targets)
    with pytest.raises(KernelUnavailableError, match="takes float32"):
        cross_entropy(x.double(), weight.double(), targets, impl="triton")


def test_the_hardware_copies_no_tiles_before_hopper(monkeypatch):
    entropy_tiles = pytest.importorskip("icl_bench.kernels.fleet.triton.entropy_tiles")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert entropy_tiles.described(SimpleNamespace(is_cuda=True, device=torch.device("cuda")), 64) is None
