"""Interleaved timing: contenders take turns in one process, so that a busy machine slows all of them equally."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over `rounds` turns of `calls` calls each."""

    median: float
    lower: float
    upper: float
    rounds: int
    calls: int


def _elapsed(function: Callable[[], object], calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    min_rounds: int = 5,
    max_rounds: int = 50,
    turn_seconds: float = 2e-3,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Times the contenders in turns, after a warm-up, and returns the median time of a call.

    Args:
        contenders: name -> function of no arguments.
        seconds: time to spend per contender, unless `min_rounds` takes longer.
        min_rounds: smallest number of turns.
        max_rounds: largest number of turns.
        turn_seconds: a turn repeats a short call until it lasts about this long.
        device: synchronised around every turn if it is a CUDA device.
    """
    device = torch.device(device)
    calls, once = {}, {}
    for name, function in contenders.items():
        _elapsed(function, 1, device)
        first = _elapsed(function, 1, device)
        count = max(1, math.ceil(turn_seconds / max(first, 1e-7)))
        calls[name] = count
        once[name] = _elapsed(function, count, device) if count > 1 else first
    rounds = {name: min(max_rounds, max(min_rounds, int(seconds / max(once[name], 1e-7)))) for name in contenders}
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(max(rounds.values(), default=0)):
        # The order rotates, so that no contender always finds the caches as one particular other left them.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn < rounds[name]:
                turns[name].append(_elapsed(contenders[name], calls[name], device) / calls[name])
    result = {}
    for name, values in turns.items():
        lower, _, upper = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        result[name] = Timing(statistics.median(values), lower, upper, len(values), calls[name])
    return result
