"""Layers of flash-linear-attention beside the same mixers here: accuracy in one store, and the ratio of their speeds.

    python benchmarks/fla_layers.py FOLDER [--part speed] [--only delta-net] [--seconds 240] [--configuration 0]

Needs a GPU and flash-linear-attention 0.6.0 with fla-core 0.6.0. The part `train`, the default, trains every layer in a
process of its own, all at once; FOLDER/store then makes one report (`icl-bench report FOLDER/store`). `speed` times
training steps, one layer after the other once all are compiled, launched one by one and as a captured graph; its device
should be quiet. A row for each layer is written to FOLDER/train.jsonl and FOLDER/speed.jsonl as it comes. The kernels
there take one configuration with four warps, since compiling all that are tried by default takes minutes.
RWKV-6 is there twice: the layer of the package starts without a token shift and with decays of 1/e a token, in place of
the ramps of its authors' code; `fla_layers:started_rwkv_6` is that layer with the first weights of `rwkv-6` here. GLA,
HGRN2 and retention run by the recurrent kernel of the package, as their chunked ones have ended in illegal accesses to
memory; the class of retention trains by the chunked one alone, so that `fla_layers:recurrent_retention` changes that.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from icl_bench.architectures.base import LayerContext
from icl_bench.architectures.fla_layer import CachedLayer
from icl_bench.architectures.initialisation import initialise
from icl_bench.harness.resolve import Request, expand_request
from icl_bench.harness.training.trainer import Machine, Trainer
from tests.architectures.test_contract import architecture
from tests.architectures.test_fla_layers import rwkv_6_weights

PAIRS = {
    "delta-net:heads=2": ("fla:DeltaNet:num_heads=2",),
    "kda:heads=2": ("fla:KimiDeltaAttention:num_heads=2,head_dim=32,safe_gate=true,lower_bound=-5.0",),
    "rwkv-7:heads=2,value_residual=false": ("fla:RWKV7Attention:head_dim=32,num_hidden_layers=2",),
    "gated-conv+ret-net:heads=2": ("gated-conv+fla_layers:recurrent_retention",),
    "gated-conv+based:heads=2,d_key=16": (
        "gated-conv+fla:BasedLinearAttention:num_heads=2,num_key_value_heads=2,feature_dim=16",
    ),
    "gated-conv+fox:heads=2,pro=false": ("gated-conv+fla:ForgettingAttention:num_heads=2",),
    "gla:heads=2,conv=4": ("fla:GatedLinearAttention:num_heads=2,use_short_conv=true,mode=fused_recurrent",),
    "hgrn2:heads=2,conv=4": ("fla:HGRN2Attention:expand_ratio=32,use_short_conv=true,mode=fused_recurrent",),
    "rwkv-6:heads=2": ("fla:RWKV6Attention:num_heads=2,expand_k=1.0", "fla_layers:started_rwkv_6"),
    "mamba-2:heads=2,d_key=16": ("fla:Mamba2:num_heads=2,head_dim=64,state_size=16",),
}
"""Mixers here with the layers there that have equal parameters; Mamba2 runs in operators of torch there."""
TASK = "assoc-recall:length=128,pairs=4,vocab=64"
"""Whole chunks of 64 tokens: at 72, with one configuration, two layers there ended in illegal accesses to memory."""
SEEDS = range(4)
SETTINGS = {"model.d_model": 64, "train.lr": 0.005, "evaluation.points": 2}
WARM_STEPS, TIMED_STEPS = 6, 30
SPAWN = multiprocessing.get_context("spawn")


def started_rwkv_6(d_model: int) -> torch.nn.Module:
    """Return the RWKV-6 layer of the package with the first weights of `rwkv-6` in the first of two layers."""
    from fla.layers import RWKV6Attention

    mixer = architecture("rwkv-6:heads=2").build(1, d_model, LayerContext(0, 2))
    initialise(mixer, [torch.initial_seed()])
    layer = RWKV6Attention(hidden_size=d_model, num_heads=2, expand_k=1.0)
    weights = rwkv_6_weights({name: own[0].detach() for name, own in mixer.named_parameters()})
    layer.load_state_dict({name: own.clone() for name, own in weights.items()})
    return CachedLayer(layer)


def recurrent_retention(d_model: int) -> torch.nn.Module:
    """Return the retention of the package, two heads, with its recurrent kernel in the place of the chunked one."""
    module: Any = importlib.import_module("fla.layers.multiscale_retention")
    module.chunk_retention = module.fused_recurrent_retention
    return CachedLayer(module.MultiScaleRetention(hidden_size=d_model, num_heads=2))


def keep_one_configuration(place: int) -> None:
    """Leave one configuration to every autotuner of Triton made from now on: that place among those of four warps."""
    from triton.runtime.autotuner import Autotuner

    made = Autotuner.__init__

    def make(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        wide = [one for one in configs or [] if one.num_warps == 4] or list(configs or [])
        made(self, fn, arg_names, wide[place % len(wide) :][:1] if wide else wide, *rest, **named)

    Autotuner.__init__ = make


def train(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the seeds of a layer; return their test accuracies and the state of the layer."""
    import icl_bench

    session = icl_bench.Session(device="cuda", graphs=not options.no_graphs, fleet=len(SEEDS), quiet=True)
    started = time.perf_counter()
    runs = icl_bench.run(
        TASK, arch, seeds=SEEDS, settings={**SETTINGS, "train.steps": options.updates}, precision="bfloat16",
        store=options.folder / "store", keep=(), session=session,
    )  # fmt: skip
    state = runs[0].result.state
    return {
        "arch": arch,
        "updates": options.updates,
        "accuracy": [round(run.accuracy, 4) for run in runs],
        "outcome": [run.outcome for run in runs],
        "state": None if state is None else state.elements,
        "seconds": round(time.perf_counter() - started, 1),
    }


def trainer_of(arch: str, graphs: bool) -> Trainer:
    """Make the trainer of all seeds of a layer, and take its first steps, which compile."""
    settings = tuple(f"{name}={value}" for name, value in {**SETTINGS, "train.steps": 100_000}.items())
    specs = expand_request(Request(TASK, [arch], seeds=SEEDS, precision="bfloat16", settings=settings))
    trainer = Trainer(specs, Machine(torch.device("cuda"), graphs=graphs))
    for _ in range(WARM_STEPS):
        trainer.step()
    torch.cuda.synchronize()
    return trainer


def speed(arch: str, trainer: Trainer, graphs: bool) -> dict[str, Any]:
    """Time training steps of four members; the examples of all members count."""
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        trainer.step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    rate = len(trainer.specs) * trainer.specs[0].train.batch / seconds
    return {"arch": arch, "graphs": graphs, "ms": round(1e3 * seconds, 3), "examples_per_second": round(rate)}


def attempt(arch: str, make: Callable[[], Any]) -> Any:
    """Return what a call makes, or a row with the reason why it fails: a layer from outside may raise anything."""
    try:
        return make()
    except Exception as error:
        return {"arch": arch, "failed": f"{type(error).__name__}: {error}"[:300]}


def write_row(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Print a row and append it to the file of the part."""
    print(json.dumps(row), flush=True)
    with (options.folder / f"{options.part}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def work(arch: str, options: argparse.Namespace, ready: Any, turn: Any) -> None:
    """Write the row of the training of a layer, or those of its speeds once all processes are ready."""
    if options.configuration is not None:
        keep_one_configuration(options.configuration)
    if options.part == "train":
        write_row(attempt(arch, partial(train, arch, options)), options)
        return
    modes = (False,) if options.no_graphs else (True, False)
    made = {graphs: attempt(arch, partial(trainer_of, arch, graphs)) for graphs in modes}
    meet(ready, options)
    while options.start and not options.start.exists():
        time.sleep(0.1)
    for graphs, trainer in made.items():
        with turn:
            failed = isinstance(trainer, dict)
            write_row(trainer if failed else attempt(arch, partial(speed, arch, trainer, graphs)), options)
        meet(ready, options)  # graphs of all layers come first: steps launched one by one take twenty times as long


def meet(ready: Any, options: argparse.Namespace) -> None:
    """Wait for the processes of the other layers, where these are in time."""
    with contextlib.suppress(threading.BrokenBarrierError):
        ready.wait(options.seconds / 2)


def main() -> None:
    """Train or time the layers of all pairs, or of some, until the time is out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=["train", "speed"], default="train")
    parser.add_argument("--only", action="append", help="the name of a mixer here; repeatable")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--start", type=Path, help="time nothing before this file is there")
    parser.add_argument("--configuration", type=int, default=0, help="place of the one kept; -1 for the last")
    parser.add_argument("--all-configurations", dest="configuration", action="store_const", const=None)
    parser.add_argument("--no-graphs", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    chosen = {own: there for own, there in PAIRS.items() if not options.only or own.split(":")[0] in options.only}
    archs = [arch for own, there in chosen.items() for arch in (*there, own)]
    ready, turn = SPAWN.Barrier(len(archs)), SPAWN.Lock()
    processes = [SPAWN.Process(target=work, args=(arch, options, ready, turn)) for arch in archs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


if __name__ == "__main__":
    main()
