"""Simulation-based inference with sbi on the two moons, and the same posterior accelerated.

Needs sbi. Run: python examples/sbi_two_moons.py
"""

import math
import time
from collections.abc import Callable

import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform
from torch import Tensor

import ar_fast


def simulator(theta: Tensor) -> Tensor:
    """(B, 2) -> (B, 2): a crescent, shifted so that two values of theta explain the same x."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)
    shift = torch.stack([-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)
    return crescent + shift


def seconds(call: Callable[[], Tensor], turns: int = 3) -> float:
    """The median time of a call, after one that warms up."""
    times = []
    for _ in range(turns + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[turns // 2]


def main(simulations: int = 2000, epochs: int = 50, draws: int = 100_000, contexts: int = 200) -> float:
    """Returns how many times faster draws for one observation became."""
    torch.manual_seed(0)
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    theta = prior.sample((simulations,))
    x = simulator(theta)
    trainer = NPE(prior, density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=epochs)
    posterior = trainer.build_posterior()

    observed, several = torch.zeros(1, 2), simulator(prior.sample((contexts,)))
    work = {
        f"{draws} draws for one observation": lambda: posterior.sample((draws,), x=observed, show_progress_bars=False),
        f"100 draws for each of {contexts}": lambda: posterior.sample_batched(
            (100,), x=several, show_progress_bars=False
        ),
        "log_prob of 1000 parameters": lambda: posterior.log_prob(theta[:1000], x=observed),
    }
    before = {name: seconds(call) for name, call in work.items()}
    ar_fast.accelerate(posterior)
    after = {name: seconds(call) for name, call in work.items()}
    print(str(ar_fast.acceleration_report(posterior)).splitlines()[0])
    for name in work:
        ratio = before[name] / after[name]
        print(f"{name}: {1e3 * before[name]:.1f} ms, accelerated {1e3 * after[name]:.1f} ms ({ratio:.2f}x)")

    # The draws are where the density is: x = 0 has two explanations, which differ by the sign of theta.
    drawn = posterior.sample((1000,), x=observed, show_progress_bars=False)
    share = (drawn.sum(1) > 0).float().mean()
    print(f"share of draws with positive sum: {share:.2f} (two moons: 0.5)")
    return before[next(iter(work))] / after[next(iter(work))]


if __name__ == "__main__":
    main()
