"""Time the cross-entropy kernels with every tile, from which `entropy_tile` chooses, beside operators of torch.

    python benchmarks/cross_entropy_tiles.py [--shapes 1x1024,32x1024,32x16384] [--width 128] [--vocab 8192]

A shape is members x rows. The forward pass makes two products a tile, and so does the gradient of the table; an
evaluation makes one, so that its rate is half of the printed rate.
"""

import argparse
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn import functional

from icl_bench.kernels.fleet.triton import cross_entropy, entropy_tiles
from icl_bench.kernels.fleet.triton.entropy_tiles import EntropyTile

TILES = [
    EntropyTile(128, 64, 8, 3),
    EntropyTile(128, 64, 8, 4),
    EntropyTile(128, 64, 4, 3),
    EntropyTile(128, 128, 8, 2),
    EntropyTile(128, 128, 8, 3),
    EntropyTile(64, 64, 4, 3),
    EntropyTile(64, 64, 4, 4),
    EntropyTile(64, 128, 4, 3),
    EntropyTile(64, 32, 4, 4),
]
MILLISECONDS = {"warmup": 3, "rep": 12, "return_mode": "median"}


def draw(members: int, rows: int, width: int, words: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw rows, the table of tokens, targets and gradients of the losses."""
    x = torch.randn(members, rows, width, device="cuda").mul(0.2).bfloat16()
    weight = torch.randn(members, words, width, device="cuda").bfloat16()
    targets = torch.randint(words, (members, rows), device="cuda")
    return x, weight, targets, torch.rand(members, rows, device="cuda")


def line(name: str, seconds: dict[str, float], products: float) -> str:
    """Return the microseconds and TFLOP/s of each part as a line."""
    parts = [f"{part} {1e3 * taken:8.0f} us {products / taken / 1e9:5.0f} TF" for part, taken in seconds.items()]
    return f"  {name:34} " + "   ".join(parts)


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Run forward and backward with all logits in memory."""
    leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
    logits = torch.bmm(leaves[0], leaves[1].transpose(1, 2)).float()
    functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()


def time_tile(tile: EntropyTile, case: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Time the forward pass with and without the gradient, and the gradient of the table, in milliseconds."""
    x, weight, targets, gradient = case
    result: Any = cross_entropy.launch_entropy(x, weight, targets, True)
    bench = triton.testing.do_bench
    return {
        "forward": bench(lambda: cross_entropy.launch_entropy(x, weight, targets, True), **MILLISECONDS),
        "evaluation": bench(lambda: cross_entropy.launch_entropy(x, weight, targets, False), **MILLISECONDS),
        "words": bench(
            lambda: cross_entropy.launch_table_gradient(x, weight, result.facts, gradient),
            **MILLISECONDS,
        ),
    }


def main() -> None:
    """Print a line for each shape and tile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="1x1024,32x1024,32x16384")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=8192)
    options = parser.parse_args()
    names, chosen = ("entropy_tile", "table_tile"), (entropy_tiles.entropy_tile, entropy_tiles.table_tile)
    for shape in options.shapes.split(","):
        members, rows = (int(part) for part in shape.split("x"))
        case = draw(members, rows, options.width, options.vocab)
        products = 4.0 * members * rows * options.width * options.vocab
        tiles = chosen[0](torch.bfloat16, options.width, True), chosen[1](torch.bfloat16, options.width)
        print(f"M={members} R={rows}: {tiles}", flush=True)
        if members * rows * options.vocab < 1 << 30:
            taken = triton.testing.do_bench(lambda case=case: plain(*case[:3]), **MILLISECONDS)
            print(line("plain torch, both ways", {"all": taken}, products * 1.5), flush=True)
        for tile in TILES:
            for name in names:
                setattr(entropy_tiles, name, lambda *_, tile=tile: tile)
            try:
                print(line(str(tuple(tile)), time_tile(tile, case), products), flush=True)
            except triton.runtime.errors.OutOfResources as error:
                print(f"  {tuple(tile)!s:34} {error}", flush=True)
        for name, tile_of in zip(names, chosen, strict=True):
            setattr(entropy_tiles, name, tile_of)


if __name__ == "__main__":
    main()
