"""The functions that the kernels approximate themselves, over all of float32: their errors in units in the last place.

One process has one instruction set, so that bench.numerics runs this file once for each: it prints JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import ar_fast
from ar_fast import Mask, functional

# Every 32768th float32 of either sign, and as many numbers evenly over where the functions change.
STEP, DENSE = 32_768, 100_000


@dataclass(frozen=True)
class Error:
    """name: the function and the op that computes it. ulp: the largest error as a multiple of the distance between the
    numbers of float32 there, where the result is normal; at: for which x; torch: the same of torch's function. below:
    the largest error where the result is smaller than the smallest normal number. Where a function is x times another,
    or a difference from x, the distance is that at x where x is larger than the result."""

    name: str
    ulp: float
    at: float
    torch: float
    below: float


def _points(step: int, dense: int) -> Tensor:
    bits = torch.arange(0, 0x7F800000, step, dtype=torch.int64).int().view(torch.float32)
    return torch.cat([bits, -bits, torch.linspace(-110, 110, dense)])


def _nade(activation: str) -> Callable[[Tensor], Tensor]:
    """One hidden unit: its parameter is f(in_bias)."""

    def run(x: Tensor) -> Tensor:
        one, zero = torch.ones(1, 1), torch.zeros(1)
        return functional.nade(torch.zeros(len(x), 1), one, x[:, None], one, zero, activation=activation)[:, 0]

    return run


def _layer(activation: str) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        return functional.masked_linear(x[:, None], torch.ones(1, 1), Mask.dense(1, 1), activation=activation)[:, 0]

    return run


def _log_sigmoid(x: Tensor) -> Tensor:
    return functional.head_log_prob(x[:, None], torch.ones(len(x), 1))[:, 0]


def _exact_softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


# name -> ours, the function in torch (whose softplus is not exact), and whether x itself is a term of the result.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], bool]] = {
    "sigmoid of a NADE's state": (_nade("sigmoid"), torch.sigmoid, False),
    "tanh of a NADE's state": (_nade("tanh"), torch.tanh, False),
    "sigmoid of a masked layer": (_layer("sigmoid"), torch.sigmoid, False),
    "tanh of a masked layer": (_layer("tanh"), torch.tanh, False),
    "elu of a masked layer": (_layer("elu"), F.elu, False),
    "softplus of a masked layer": (_layer("softplus"), F.softplus, False),
    "silu of a masked layer": (_layer("silu"), F.silu, True),
    "gelu of a masked layer": (_layer("gelu"), F.gelu, True),
    "log sigmoid of the Bernoulli head": (_log_sigmoid, F.logsigmoid, True),
}


def _ulp(got: Tensor, want: Tensor, term: Tensor) -> tuple[Tensor, Tensor]:
    """Errors in units in the last place of want, or of a term if it is larger, where want is normal and finite, and
    absolute errors where it is smaller."""
    normal = (want.abs() >= torch.finfo(torch.float32).tiny) & (want.abs() <= torch.finfo(torch.float32).max)
    exponent = torch.frexp(torch.where(normal, torch.maximum(want.abs(), term), 1.0))[1]
    difference = (got.double() - want).abs()
    return torch.where(normal, difference / torch.ldexp(torch.ones_like(want), exponent - 24), 0.0), torch.where(
        want.abs() < torch.finfo(torch.float32).tiny, difference, 0.0
    )


def measure(step: int = STEP, dense: int = DENSE) -> list[Error]:
    x, errors = _points(step, dense), []
    for name, (ours, theirs, of_input) in FUNCTIONS.items():
        want = (_exact_softplus if theirs is F.softplus else theirs)(x.double())
        term = x.double().abs() if of_input else torch.zeros_like(want)
        ulp, below = _ulp(ours(x), want, term)
        worst = int(ulp.argmax())
        errors.append(
            Error(
                name,
                float(ulp[worst]),
                float(x[worst]),
                float(_ulp(theirs(x), want, term)[0].max()),
                float(below.max()),
            )
        )
    return errors


def by_instruction_set() -> dict[str, list[dict]]:
    """The errors with every instruction set that this build has and that runs here."""
    found = {}
    for name in ar_fast.info()["cpu_instruction_sets"].split(", "):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": name.lower()}
        done = subprocess.run(
            [sys.executable, "-m", "bench.numerics_functions"], capture_output=True, text=True, env=environment,
            cwd=Path(__file__).parents[1], check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"bench.numerics_functions failed with {name}: {done.stderr[-1000:]}")
        found[name] = json.loads(done.stdout)
    return found


def table(found: dict[str, list[dict]]) -> str:
    sets = list(found)
    lines = ["| function of float32 | " + " | ".join(sets) + " | torch's | result below 1.2e-38 |"]
    lines.append("|---|" + "---:|" * (len(sets) + 2))
    for row in zip(*found.values(), strict=True):
        figures = [f"{own['ulp']:.2g}" for own in row]
        below = max(own["below"] for own in row)
        lines.append(
            f"| {row[0]['name']} | {' | '.join(figures)} | {row[-1]['torch']:.2g} | "
            + ("exact |" if below == 0 else f"{below:.0e} |" if math.isfinite(below) else "not finite |")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps([asdict(own) for own in measure()]))
