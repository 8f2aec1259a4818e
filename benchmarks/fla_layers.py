"""Layers of flash-linear-attention beside the same mixers here: accuracy in one store, and the ratio of their speeds.

    python benchmarks/fla_layers.py FOLDER [--part speed] [--only delta-net] [--seconds 240] [--all-configurations]

Needs a GPU and flash-linear-attention 0.6.0 with fla-core 0.6.0. The part `train`, the default, trains every layer in a
process of its own, all at once; FOLDER/store then makes one report (`icl-bench report FOLDER/store`). `speed` times
training steps, one layer after the other, launched one by one and as a captured graph; its device should be quiet. A
row for each layer is written to FOLDER/train.jsonl and FOLDER/speed.jsonl as it comes. The kernels there take the first
configuration with four warps, since compiling all that are tried by default takes minutes.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

PAIRS = {
    "delta-net:heads=2": "fla:DeltaNet:num_heads=2",
    "kda:heads=2": "fla:KimiDeltaAttention:num_heads=2,head_dim=32,safe_gate=true,lower_bound=-5.0",
    "rwkv-7:heads=2,value_residual=false": "fla:RWKV7Attention:head_dim=32,num_hidden_layers=2",
    "gla:heads=2,conv=4": "fla:GatedLinearAttention:num_heads=2,use_short_conv=true",
    "hgrn2:heads=2,conv=4": "fla:HGRN2Attention:expand_ratio=32,use_short_conv=true",
    "rwkv-6:heads=2": "fla:RWKV6Attention:num_heads=2,expand_k=1.0",
    "mamba-2:heads=2,d_key=16": "fla:Mamba2:num_heads=2,head_dim=64,state_size=16",
}
"""Mixers here with the layers there that have equal parameters; Mamba2 runs in operators of torch there."""
TASK = "assoc-recall:length=72,pairs=4,vocab=64"
SEEDS = range(4)
SETTINGS = {"model.d_model": 64, "train.lr": 0.005, "evaluation.points": 2}
WARM_STEPS, TIMED_STEPS = 6, 30
SPAWN = multiprocessing.get_context("spawn")


def keep_one_configuration() -> None:
    """Leave one configuration to every autotuner of Triton made from now on."""
    from triton.runtime.autotuner import Autotuner

    made = Autotuner.__init__

    def make(self: Any, fn: Any, arg_names: Any, configs: Any, *rest: Any, **named: Any) -> None:
        kept = [one for one in configs or [] if one.num_warps == 4][:1] or (configs or [])[:1]
        made(self, fn, arg_names, kept, *rest, **named)

    Autotuner.__init__ = make


def train(arch: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the seeds of a layer; return their test accuracies and the state of the layer."""
    import icl_bench

    session = icl_bench.Session(device="cuda", graphs=not arch.startswith("fla:"), fleet=len(SEEDS), quiet=True)
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


def speed(arch: str, graphs: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Time training steps of four members; the examples of all members count."""
    from icl_bench.harness.resolve import Request, expand_request
    from icl_bench.harness.training.trainer import Machine, Trainer

    settings = tuple(f"{name}={value}" for name, value in {**SETTINGS, "train.steps": 100_000}.items())
    specs = expand_request(Request(TASK, [arch], seeds=SEEDS, precision="bfloat16", settings=settings))
    trainer = Trainer(specs, Machine(torch.device("cuda"), graphs=graphs))
    for _ in range(WARM_STEPS):
        trainer.step()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        trainer.step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / TIMED_STEPS
    rate = len(specs) * specs[0].train.batch / seconds
    return {"arch": arch, "graphs": graphs, "ms": round(1e3 * seconds, 3), "examples_per_second": round(rate)}


def work(part: str, arch: str, options: argparse.Namespace) -> None:
    """Write the rows of one layer, or the reason why there is none."""
    if not options.all_configurations:
        keep_one_configuration()
    rows = []
    for graphs in (False, True) if part == "speed" else (False,):
        try:
            row = speed(arch, graphs, options) if part == "speed" else train(arch, options)
        except Exception as error:  # whatever a layer from outside raises is its row
            row = {"arch": arch, "graphs": graphs, "failed": f"{type(error).__name__}: {error}"[:300]}
        rows.append(row)
        print(json.dumps(row), flush=True)
        with (options.folder / f"{part}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Train or time the layers of all pairs, or of some, until the time is out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=["train", "speed"], default="train")
    parser.add_argument("--only", action="append", help="the name of a mixer here; repeatable")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--all-configurations", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    chosen = {own: there for own, there in PAIRS.items() if not options.only or own.split(":")[0] in options.only}
    archs = [arch for pair in chosen.items() for arch in reversed(pair)]
    processes = [SPAWN.Process(target=work, args=(options.part, arch, options)) for arch in archs]
    for group in [processes] if options.part == "train" else [[one] for one in processes]:
        for process in group:
            process.start()
        for process in group:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


if __name__ == "__main__":
    main()
