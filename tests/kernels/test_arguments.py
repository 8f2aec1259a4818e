"""Messages of operators that refuse their arguments: the rule, the value and the way out."""

import re

import pytest
import torch

from icl_bench.errors import ArgumentError, KernelUnavailableError
from icl_bench.kernels.attention.api import attention, attention_step, empty_cache
from icl_bench.kernels.power.api import initial_power_state, power_attention, power_step
from icl_bench.kernels.power.records import PowerState

Q = torch.ones(2, 5, 4, 3)
K = torch.ones(2, 5, 2, 3)
V = torch.ones(2, 5, 2, 6)
GATE = torch.zeros(2, 5, 2)
TOKEN = (Q[:, 0], K[:, 0], V[:, 0], GATE[:, 0])

OWN_RULES = {  # attention: power attention lets fewer key heads than value heads be
    "shape of k": (
        (Q, K[:, :4], V, None),
        "k must be [N, T, G, K] = [2, 5, 2, 3]; got [2, 4, 2, 3]: reshape it to fit",
    ),
    "shape of v": (
        (Q, K, V[:, :, :1], None),
        "v must be [N, T, G, V] = [2, 5, 2, 6]; got [2, 5, 1, 6]: reshape it to fit",
    ),
    "heads": (
        (Q[:, :, :3], K, V, None),
        "H must be a multiple of G to share keys evenly; got H = 3, G = 2: change one of them",
    ),
}
SHARED_RULES = {
    "shape of k": (
        (Q, K[:, :4], V, None),
        "k must be [N, T, J, K] = [2, 5, 2, 3]; got [2, 4, 2, 3]: reshape it to fit",
    ),
    "heads of keys": (
        (Q, K, V[:, :, :1], None),
        "G must be a multiple of J to share keys evenly; got G = 1, J = 2: change one of them",
    ),
    "heads of queries": (
        (Q[:, :, :3], K, V, None),
        "H must be a multiple of G, or divide it, to share keys evenly; got H = 3, G = 2: change one of them",
    ),
    "no heads": (
        (Q, K[:, :, :0], V, None),
        "G must be a multiple of J to share keys evenly; got G = 2, J = 0: change one of them",
    ),
}
TENSORS = {
    "rank of q": ((Q[0], K, V, None), "q must have 4 axes [N, T, H, K]; got shape [5, 4, 3]: reshape it"),
    "rank of v": ((Q, K, V[..., 0], None), "v must have 4 axes [N, T, G, V]; got shape [2, 5, 2]: reshape it"),
    "widths": ((Q, K, V[..., :0], None), "K and V must be at least 1; got K = 3, V = 0: use wider heads"),
    "no token": (
        (Q[:, :0], K[:, :0], V[:, :0], None),
        "T must be at least 1; got q of shape [2, 0, 4, 3]: pass one token or more",
    ),
    "mixed types": (
        (Q, K, V.half(), None),
        "q, k and v must share one type of bfloat16, float16, float32 or float64; "
        "got torch.float32, torch.float32 and torch.float16: cast them to one",
    ),
    "integers": (
        (Q.int(), K.int(), V.int(), None),
        "q, k and v must share one type of bfloat16, float16, float32 or float64; "
        "got torch.int32, torch.int32 and torch.int32: cast them to one",
    ),
    "devices": (
        (Q, K, V.to("meta"), None),
        "q, k and v must be on one device; got cpu, cpu and meta: move them together",
    ),
    "shape of the gate": (
        (Q, K, V, torch.zeros(2, 5, 4)),
        "log_g must be [N, T, G] = [2, 5, 2]; got [2, 5, 4]: reshape it to fit",
    ),
    "type of the gate": (
        (Q, K, V, GATE.half()),
        "log_g must be float32, as its sums over T lose too much otherwise; got torch.float16: use log_g.float()",
    ),
    "device of the gate": (
        (Q, K, V, GATE.to("meta")),
        "log_g must be on the device of q, cpu; got meta: move it there",
    ),
}
POWER = {
    "p": (
        {"p": 0},
        "p must be an integer of at least 1; got 0: use p=2 for power attention or p=1 for linear attention",
    ),
    "fractional p": (
        {"p": 2.5},
        "p must be an integer of at least 1; got 2.5: use p=2 for power attention or p=1 for linear attention",
    ),
    "odd p": (
        {"p": 3},
        "normalize='sum' needs an even p (or p=1), as odd powers can sum to zero; got p=3: "
        "use normalize='none' or an even p",
    ),
    "chunk": ({"chunk": 0}, "chunk must be an integer of at least 1; got 0: leave it out to have it chosen"),
    "normalize": ({"normalize": "mean"}, "normalize must be one of sum, none; got 'mean': pick one of these"),
    "scale": ({"scale": -1.0}, "scale must be positive and finite; got -1.0: leave it out for 1/sqrt(K)"),
    "impl": (
        {"impl": "torch"},
        "impl must be one of auto, reference, quadratic, chunked, triton; got 'torch': pick one of these",
    ),
}
ATTENTION = {
    "window": (
        {"window": 0},
        "window must be an integer of at least 1; got 0: "
        "a window of 1 sees the token itself; leave it out to see all keys",
    ),
    "scale": ({"scale": 0.0}, "scale must be positive and finite; got 0.0: leave it out for 1/sqrt(K)"),
    "impl": (
        {"impl": "chunked"},
        "impl must be one of auto, reference, torch, sdpa, triton; got 'chunked': pick one of these",
    ),
}
STATES = {
    "another p": (
        initial_power_state(2, 2, 3, 6, p=4, normalize="sum", device="cpu", dtype=torch.float32),
        "state.s must be [N, G, D, V] = [2, 2, 6, 6]; got [2, 2, 15, 6]: reshape it to fit",
    ),
    "without a normaliser": (
        initial_power_state(2, 2, 3, 6, p=2, normalize="none", device="cpu", dtype=torch.float32),
        "state.z must be a tensor with normalize='sum' and None with 'none'; got normalize='sum' and None: "
        "make the state with the same normalize",
    ),
    "another normaliser": (
        PowerState(torch.zeros(2, 2, 6, 6), torch.zeros(2, 2, 5)),
        "state.z must be [N, G, D] = [2, 2, 6]; got [2, 2, 5]: reshape it to fit",
    ),
    "another type": (
        initial_power_state(2, 2, 3, 6, p=2, normalize="sum", device="cpu", dtype=torch.float64),
        "the state must be torch.float32 for inputs of torch.float32; got torch.float64: cast it",
    ),
}
CACHES = {
    "another width": (
        empty_cache(2, 2, 4, 6, gated=True, device="cpu", dtype=torch.float32),
        "cache.k must be [N, L, G, K] = [2, 0, 2, 3]; got [2, 0, 2, 4]: reshape it to fit",
    ),
    "without a gate": (
        empty_cache(2, 2, 3, 6, gated=False, device="cpu", dtype=torch.float32),
        "cache.decay must be a tensor with a gate and None without; got no decay and a log_g: "
        "make the cache with the same gated as the call",
    ),
}


def refuses(message, error=ArgumentError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize("given, message", TENSORS.values(), ids=TENSORS)
def test_both_operators_refuse_tensors_that_do_not_fit(given, message):
    with refuses(message):
        power_attention(*given, p=2)
    with refuses(message):
        attention(*given)


@pytest.mark.parametrize("given, message", OWN_RULES.values(), ids=OWN_RULES)
def test_attention_refuses_heads_that_do_not_fit(given, message):
    with refuses(message):
        attention(*given)


@pytest.mark.parametrize("given, message", SHARED_RULES.values(), ids=SHARED_RULES)
def test_power_refuses_heads_that_do_not_fit(given, message):
    with refuses(message):
        power_attention(*given, p=2)


@pytest.mark.parametrize("options, message", POWER.values(), ids=POWER)
def test_power_refuses_options(options, message):
    with refuses(message):
        power_attention(Q, K, V, **{"p": 2, **options})


@pytest.mark.parametrize("options, message", ATTENTION.values(), ids=ATTENTION)
def test_attention_refuses_options(options, message):
    with refuses(message):
        attention(Q, K, V, **options)


@pytest.mark.parametrize("state, message", STATES.values(), ids=STATES)
def test_power_refuses_states_of_another_kind(state, message):
    with refuses(message):
        power_attention(Q, K, V, p=2, initial_state=state)
    with refuses(message):
        power_step(*TOKEN, state, p=2)


@pytest.mark.parametrize("cache, message", CACHES.values(), ids=CACHES)
def test_attention_step_refuses_caches_of_another_kind(cache, message):
    with refuses(message):
        attention_step(*TOKEN, cache)


def test_steps_refuse_sequences():
    state = initial_power_state(2, 2, 3, 6, p=2, normalize="sum", device="cpu", dtype=torch.float32)
    with refuses("q must have 3 axes [N, H, K]; got shape [2, 5, 4, 3]: reshape it"):
        power_step(Q, K, V, GATE, state, p=2)
    with refuses(ATTENTION["window"][1].replace("got 0", "got -1")):
        attention_step(*TOKEN, empty_cache(2, 2, 3, 6, gated=True, device="cpu", dtype=torch.float32), window=-1)


@pytest.mark.parametrize("call", [lambda **x: power_attention(Q, K, V, p=2, **x), lambda **x: attention(Q, K, V, **x)])
def test_triton_is_refused_where_it_cannot_run(call, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = (
        "impl='triton' needs CUDA tensors or Triton's interpreter; got tensors on cpu: "
        "use impl='auto', or set TRITON_INTERPRET=1"
    )
    with refuses(message, KernelUnavailableError):
        call(impl="triton")


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("icl_bench.kernels.backends._INSTALLED", False)
    message = "impl='triton' needs the package triton, which is not installed: use impl='auto'"
    with refuses(message, KernelUnavailableError):
        power_attention(Q, K, V, p=2, impl="triton")


def test_forms_that_do_not_exist_are_refused():
    with refuses("impl='sdpa' has no gate; got log_g: use impl='auto' or impl='torch'", KernelUnavailableError):
        attention(Q, K, V, GATE, impl="sdpa")
