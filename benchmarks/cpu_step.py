"""Training speed on the CPU: this package's step against a plain loop over one model, in examples a second.

    python benchmarks/cpu_step.py [--threads 2] [--seconds 10] [--d-model 64] [--length 64] [--pairs 4] [--vocab 8192]

The plain loop is what a first script does: the same layers with logits at every position, cross-entropy with the
positions that are not scored ignored, `torch.optim.AdamW`, gradients clipped, a batch made for each step.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from icl_bench.runs.spec import RunSpec

CPU = torch.device("cpu")
IGNORED = -100


def spec(options: argparse.Namespace) -> RunSpec:
    """Return one run of the size asked for."""
    task = f"assoc-recall:variant=zoology,length={options.length},pairs={options.pairs},vocab={options.vocab}"
    settings = [f"model.d_model={options.d_model}", f"train.batch={options.batch}", "train.steps=100000"]
    return expand_request(Request(task, [options.arch], settings=settings))[0]


def plain_step(run: RunSpec) -> Callable[[], None]:
    """Return a function that makes one update of the plain loop."""
    trainer = Trainer([run], Machine(CPU))
    model, stream, train = trainer.model, trainer.queues[0].stream, run.train
    parameters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)
    done = 0

    def step() -> None:
        nonlocal done
        batch = stream.batch(torch.arange(done, done + train.batch))
        done += train.batch
        labels = torch.full_like(batch.inputs, IGNORED).scatter_(2, batch.positions, batch.targets)
        everywhere = torch.arange(batch.inputs.shape[2]).expand(batch.inputs.shape)
        own = dict(zip(names, parameters, strict=True))
        logits: Tensor = torch.func.functional_call(model, own, (batch.inputs, everywhere))
        loss = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)
        optimiser.zero_grad()
        loss.backward()
        if train.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, train.clip)
        optimiser.step()
        loss.item()

    return step


def examples_per_second(step: Callable[[], None], batch: int, seconds: float) -> float:
    """Time steps for about `seconds`, after one to warm up."""
    step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - started)


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="gated-conv+softmax")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    run = spec(options)
    plain = examples_per_second(plain_step(run), options.batch, options.seconds)
    print(f"plain loop   {plain:9.0f} examples/s   {1e3 * options.batch / plain:8.2f} ms a step", flush=True)
    own = examples_per_second(Trainer([run], Machine(CPU)).step, options.batch, options.seconds)
    print(f"icl-bench    {own:9.0f} examples/s   {1e3 * options.batch / own:8.2f} ms a step   {own / plain:.1f}x")


if __name__ == "__main__":
    main()
