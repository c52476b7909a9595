"""From which batch sizes on one of two paths is faster, measured on this machine."""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Crossover", "measured"]

# The batch sizes that are tried, and how long one path may take in all for one of them.
ROWS = (1, 8, 64, 256, 1024)
_SECONDS = 1e-3
# A larger batch size is tried only where one call of the original took at most this long.
_LONGEST = 4e-3
_LONG = 50e-3
# Ours must take at most this part of the original's time, since a measurement of a few milliseconds is not exact.
_MARGIN = 0.88
# And this many seconds at some batch size: choosing a path takes some ten microseconds in a program whose other work
# fills the caches. At the other batch sizes, where the choice is made in any case, a part of that is enough.
_WORTH_A_CHOICE, _WORTH_A_CALL = 50e-6, 10e-6


@dataclass(frozen=True)
class Crossover:
    """At which of the batch sizes tried our path was faster; other sizes follow the next smaller one tried.

    Attributes:
        rows: the batch sizes tried, ascending.
        ratios: the original's time divided by ours.
        saved: the seconds that ours saves in a call; None is enough of them.
    """

    rows: tuple[int, ...]
    ratios: tuple[float, ...]
    saved: tuple[float, ...] | None = None

    @functools.cached_property
    def choices(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The batch sizes from the second one tried on, and whether ours runs below the first of them, between, and
        above."""
        saved = self.saved or (math.inf,) * len(self.ratios)

        def faster(least: float) -> tuple[bool, ...]:
            pairs = zip(self.ratios, saved, strict=True)
            return tuple(ratio * _MARGIN > 1 and seconds > least for ratio, seconds in pairs)

        worth = faster(_WORTH_A_CHOICE)
        return self.rows[1:], faster(_WORTH_A_CALL) if any(worth) else worth

    def ours(self, rows: int) -> bool:
        starts, choices = self.choices
        return choices[bisect.bisect_right(starts, rows)]

    @property
    def least(self) -> float:
        """The smallest batch size at which ours runs, infinite if there is none."""
        starts, choices = self.choices
        return next((rows for rows, ours in zip((0, *starts), choices, strict=True) if ours), math.inf)

    @property
    def never(self) -> bool:
        return not any(self.choices[1])

    def __str__(self) -> str:
        return ", ".join(f"B {rows} {ratio:.2f}x" for rows, ratio in zip(self.rows, self.ratios, strict=True))


def measured(
    original: Callable[[int], Callable[[], object]],
    ours: Callable[[int], Callable[[], object]],
    device: torch.device,
    rows: tuple[int, ...] = ROWS,
    seconds: float = _SECONDS,
    longest: float = _LONGEST,
) -> Crossover:
    """Times two paths in turn at a few batch sizes; each argument makes the call for a number of rows."""
    tried, ratios, saved, last = [], [], [], 0.0
    for count in rows:
        if last > longest:
            break
        calls = original(count), ours(count)
        for call in calls:
            call()
        times: tuple[list[float], list[float]] = ([], [])
        # Three turns, or one where the clock's noise is small beside a long call, or two where it is beside what one
        # path saves: a single call may have waited for another program.
        while len(times[0]) < 3 or (sum(times[0]) < seconds and len(times[0]) < 50):
            if times[0] and times[0][0] > _LONG:
                break
            if len(times[0]) > 1 and _decided(min(times[0]), min(times[1])):
                break
            for call, own in zip(calls, times, strict=True):
                _wait(device)
                begin = time.perf_counter()
                call()
                _wait(device)
                own.append(time.perf_counter() - begin)
        last = min(times[0])
        tried.append(count)
        ratios.append(last / min(times[1]))
        saved.append(last - min(times[1]))
    return Crossover(tuple(tried), tuple(ratios), tuple(saved))


def _decided(original: float, ours: float) -> bool:
    return max(original, ours) > 1e-3 and not 0.5 < original / ours < 2


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
