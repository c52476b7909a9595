"""Several processes that train one model, as torchrun starts them; with one process everything here does nothing.

Every process holds the model and all of the data, and computes its share of each batch; torch's
DistributedDataParallel means the gradients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor, distributed

__all__ = ["any_rank", "group", "joined", "rank_and_size", "share", "total", "wait"]


def rank_and_size() -> tuple[int, int]:
    """This process's number, and how many there are: (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


@contextlib.contextmanager
def group() -> Iterator[int]:
    """The process group that torchrun's environment describes, if it does, while the scope lasts; gives the rank.

    Tensors on the CPU go over gloo, on GPUs over NCCL; the device "cuda" is then the GPU of the local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield rank_and_size()[0]
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group()
    try:
        yield distributed.get_rank()
    finally:
        distributed.destroy_process_group()


def wait() -> None:
    """Until all processes are here."""
    if rank_and_size()[1] > 1:
        distributed.barrier()


def share(count: int, rank: int | None = None) -> slice:
    """A process's part of so many rows, this one's by default. Parts follow each other and differ by a row at most."""
    own, size = rank_and_size()
    rank = own if rank is None else rank
    return slice(count * rank // size, count * (rank + 1) // size)


def joined(rows: Tensor, count: int, dim: int = 0) -> Tensor:
    """The rows of all processes, each of which has its ``share`` of count rows."""
    _, size = rank_and_size()
    if size == 1:
        return rows
    most = -(-count // size)
    own = rows.movedim(dim, 0).contiguous()
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(parts, padded)
    shares = [share(count, rank) for rank in range(size)]
    whole = [part[: each.stop - each.start] for part, each in zip(parts, shares, strict=True)]
    return torch.cat(whole).movedim(0, dim)


def total(value: float, device: torch.device) -> float:
    """The sum of the processes' values."""
    if rank_and_size()[1] == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(summed)
    return summed.item()


def any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Of each flag, whether it is set in any process."""
    if rank_and_size()[1] == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]
