"""Two processes under DistributedDataParallel, over gloo."""

import copy
import re
from functools import partial

import torch
import torch.multiprocessing
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ar_fast import models


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return -self.model.log_prob(x).mean()


def made():
    torch.manual_seed(0)
    return models.MADE(6, [8], "tanh", degrees="random", n_masks=4, n_orders=2, dtype=torch.float64)


REAL = torch.tensor([[40.0, 50.0, 70.0]], dtype=torch.float64)


def standardised(rank):
    torch.manual_seed(rank)
    model = models.RNADE(3, 4, 2, dtype=torch.float64)
    if rank == 0:
        model.standardize(mean=torch.full((3,), 50.0), std=torch.full((3,), 20.0))
    return model


def events(rank):
    return torch.rand(5, 6, generator=torch.Generator().manual_seed(rank)).round().double()


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def run(rank, address, results):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    # Rank 1 takes what rank 0 holds, the standardisation too.
    real = DistributedDataParallel(Loss(standardised(rank)))
    results.put((rank, "standardised", real(REAL).item()))

    # All ranks count on: the same set of masks in every step.
    model = made()
    parallel, gradients = DistributedDataParallel(Loss(model)), []
    for _ in range(3):
        model.next_mask().zero_grad()
        parallel(events(rank)).backward()
        gradients.append(gradient(model).tolist())
    results.put((rank, "counted", gradients))

    # One rank alone looks at another set, and goes back: the other one sees nothing of it.
    if rank == 0:
        with torch.no_grad():
            index = model.mask_index
            model.use_mask((index + 1) % 4).log_prob(events(rank))
            model.use_mask(index)
    model.next_mask().zero_grad()
    parallel(events(rank)).backward()
    results.put((rank, "after a look", gradient(model).tolist()))

    # Sets of their own, seen in training and by next_mask, of a model and of a copy of it, which are compared apart.
    copied = copy.deepcopy(model).use_mask(rank)
    results.put((rank, "use_mask", error_of(partial(model.use_mask(rank).log_prob, events(0)))))
    results.put((rank, "next_mask", error_of(copied.next_mask)))
    members = model.ensemble()
    results.put((rank, "ensemble", error_of(partial(members.log_prob, events(0)))))
    distributed.barrier()
    distributed.destroy_process_group()


def error_of(call):
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def test_two_ranks(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=run, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = {}
    for _ in range(12):
        rank, name, value = queue.get(timeout=300)
        results[name, rank] = value
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0

    want = Loss(standardised(0))(REAL).item()
    assert results["standardised", 0] == results["standardised", 1] == want

    def single(index, rank):
        model = made().use_mask(index)
        Loss(model)(events(rank)).backward()
        return gradient(model)

    counted = torch.stack([(single(index, 0) + single(index, 1)) / 2 for index in (1, 2, 3, 0)])
    for rank in range(2):
        got = [*results["counted", rank], results["after a look", rank]]
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), counted)
        assert results["ensemble", rank] == ""
    # The rank that comes later says so, and none waits.
    for name, turns in (("use_mask", 4), ("next_mask", 5)):
        first, later = sorted(results[name, rank] for rank in range(2))
        assert first == ""
        assert re.fullmatch(
            r"MADE: mask_index must be the same in all ranks, got \d in rank \d and \d in rank \d, "
            f"after {turns} calls of next_mask",
            later,
        )
