"""Data-parallel training: several processes, a rank each, take parts of every batch and add up their gradients.

Row i of the batch of a step belongs to rank i modulo the number of ranks. Which examples these rows are depends on
seed, step and row alone, so that another number of ranks changes rounding, and nothing else. `torchrun` starts the
processes and tells each its rank in environment variables.

Every rank holds the same state after every step. The first rank alone has a store: it decides what is trained, writes
checkpoints and records, and sends the others the runs of each fleet.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from icl_bench.errors import RankLostError, SpecError
from icl_bench.harness.interruption import adopt, received_signal

RANK, RANKS, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
"""Environment variables of torchrun: index of the process, number of processes, and index on its machine."""
PATIENCE = timedelta(minutes=5)
"""Longest wait for another rank, which may be compiling kernels or writing a checkpoint."""


class Ranks:
    """This process among those of a data-parallel training; joins them at the start.

    Numbers in host memory travel through gloo, which notices at once when a process has ended; gradients on GPUs travel
    through NCCL. Raise RankLostError if the others do not come.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device
        with self.answering():
            distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=PATIENCE)
            self.gradients = distributed.new_group(backend="nccl", timeout=PATIENCE) if device.type == "cuda" else None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Raise RankLostError where a call inside the block finds that another rank does not answer."""
        try:
            yield
        except RuntimeError as error:
            reason = " ".join(str(error).split()).rpartition("] ")[2][:200]
            raise RankLostError(
                f"all {self.size} ranks train together; rank {self.rank} lost another one ({reason}); start the same "
                "command again: it continues from the last checkpoint"
            ) from error

    def part(self, batch: int) -> int:
        """Return the rows of each rank of a batch; raise SpecError unless all ranks have as many."""
        if batch % self.size:
            raise SpecError(
                f"every rank takes as many rows of a batch; got train.batch={batch} for {self.size} ranks; make it a "
                "multiple"
            )
        return batch // self.size

    def own(self, rows: Tensor) -> Tensor:
        """Return the rows of this rank."""
        return rows[self.rank :: self.size]

    def add(self, values: Tensor) -> None:
        """Add up values on the device over all ranks, in place; never waits for the device of a GPU."""
        with self.answering():
            distributed.all_reduce(values, group=self.gradients)

    def leave(self) -> None:
        """Leave the other ranks, after all of them have done their last work together."""
        distributed.destroy_process_group()

    def hear(self) -> None:
        """Take over the signal that any rank has received, so that all stop after the same step."""
        heard = torch.tensor(received_signal() or 0)
        with self.answering():
            distributed.all_reduce(heard, op=distributed.ReduceOp.MAX)
        if number := int(heard):
            adopt(number)

    def share(self, data: bytes) -> bytes:
        """Return the bytes of the first rank; the other ranks give any, which are ignored."""
        length = torch.tensor(len(data))
        with self.answering():
            distributed.broadcast(length, src=0)
            if not length:
                return b""
            own = self.rank == 0
            values = torch.frombuffer(bytearray(data if own else int(length)), dtype=torch.uint8)
            distributed.broadcast(values, src=0)
        return values.numpy().tobytes()


def joined_ranks(device: torch.device) -> Ranks | None:
    """Join the processes that torchrun started, if it started several; raise SpecError for variables that say nothing.

    On GPUs each process takes the one of its index on the machine.
    """
    size = rank_variable(RANKS, "1")
    if size == 1:
        return None
    if device.type == "cuda":
        index = rank_variable(LOCAL_RANK, "0")
        if index >= torch.cuda.device_count():
            raise SpecError(
                f"every rank has a GPU of its own; rank {index} of this machine has none of its "
                f"{torch.cuda.device_count()}; start fewer processes, or add --device cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return Ranks(rank_variable(RANK, ""), size, device)


def rank_variable(name: str, default: str) -> int:
    """Return a variable of torchrun; raise SpecError if it is no number."""
    text = os.environ.get(name, default)
    if not text.isascii() or not text.isdigit():
        raise SpecError(f"{name} is a number that torchrun sets; got {text!r}; start the command by torchrun")
    return int(text)
