"""Time gradient descent of inner models: operators of torch beside kernels, and other tiles of the kernels.

    python benchmarks/inner_descent.py [--widths 32,64,128] [--layers 1,2] [--members 4] [--batch 256] [--time 256]
        [--heads 2] [--tiles 8,32x4x2] [--operators]

Printed are milliseconds of a forward pass and of both for each width of keys and depth of the inner model, as JSON
lines. `--tiles` names columns of a tile of the hidden layer, warps and stages of loads for two layers, and warps alone
for one layer. `--operators` times the operators of torch too. `--compile` compiles the kernels alone.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from icl_bench.kernels.backends import FleetImpl
from icl_bench.kernels.fleet.inner_descent import InnerLayer, InnerNorm, inner_descent
from icl_bench.kernels.fleet.triton import inner_descent as one_layer
from icl_bench.kernels.fleet.triton import inner_network as two_layers

REPEATS = 3


def operands(shape: tuple[int, int, int, int], width: int, layers: int) -> list[Tensor]:
    """Return tokens and parameters of inner models of a shape [M, B, T, H]."""
    members, _, _, heads = shape
    widths = [width, *[4 * width] * (layers - 1), width]
    made = [torch.randn(*shape, width, dtype=torch.bfloat16) for _ in range(3)]
    made += [torch.rand(*shape) / width, torch.rand(members, 16) / 4]
    for pair in itertools.pairwise(widths):
        made += [0.02 * torch.randn(members, 1, heads, *pair), torch.zeros(members, 1, heads, 1, pair[1])]
    made += [torch.ones(members, 1, heads, 1, width), torch.zeros(members, 1, heads, 1, width)]
    return [part.requires_grad_() for part in made]


def descend(given: list[Tensor], impl: FleetImpl) -> Tensor:
    """Return y of the tokens."""
    q, k, v, rates, factors, *layers, gain, shift = given
    model = tuple(InnerLayer(*layers[i : i + 2]) for i in range(0, len(layers), 2))
    return inner_descent(q, k, v, rates, factors, (model, InnerNorm(gain, shift)), impl=impl)


def measure(given: list[Tensor], impl: FleetImpl, repeats: int) -> dict[str, float]:
    """Return milliseconds of a forward pass and of both."""
    times = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        y = descend(given, impl)
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        torch.autograd.grad(y, given, torch.ones_like(y))
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[0]))
    return {name: round(1e3 * min(pair[i] for pair in times), 3) for i, name in enumerate(("forward", "both"))}


def tiled(width: int, layers: int, tiles: list[str]) -> Iterator[str]:
    """Yield the name of each tile while it is in use, the chosen one first."""
    yield "chosen"
    tables: list[dict[int, Any]] = (
        [two_layers.FORWARD_TILES, two_layers.GRADIENT_TILES] if layers > 1 else [one_layer.WARPS]
    )
    chosen = [table[width] for table in tables]
    for tile in tiles:
        numbers = tuple(int(part) for part in tile.split("x"))
        if (len(numbers) > 1) == (layers > 1):
            for table in tables:
                table[width] = numbers if layers > 1 else numbers[0]
            yield tile
    for table, own in zip(tables, chosen, strict=True):
        table[width] = own


def main() -> None:
    """Time all forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64,128")
    parser.add_argument("--layers", default="1,2")
    for name, size in (("members", 4), ("batch", 256), ("time", 256), ("heads", 2)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--tiles", default="")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_default_device("cuda")
    for width, layers in itertools.product(
        *([int(n) for n in part.split(",")] for part in (options.widths, options.layers))
    ):
        batch = min(options.batch, 16) if options.compile else options.batch
        given = operands((options.members, batch, options.time, options.heads), width, layers)
        for name in tiled(width, layers, [tile for tile in options.tiles.split(",") if tile]):
            measure(given, "triton", 1)
            row = {"width": width, "layers": layers, "tile": name, **measure(given, "triton", REPEATS)}
            print(json.dumps(row), flush=True)
        if options.operators and not options.compile:
            print(
                json.dumps({"width": width, "layers": layers, "tile": "torch", **measure(given, "torch", 2)}),
                flush=True,
            )


if __name__ == "__main__":
    main()
