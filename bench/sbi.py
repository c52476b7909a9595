"""python -m bench.sbi: posteriors of sbi, as they are and accelerated: draws, densities, training of an estimator."""

import argparse
import contextlib
import copy
import io
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import ar_fast
from ar_fast.tasks._timing import interleave

from .cases import no_grad, relative_error
from .run import environment
from .tables import duration, write_table

MODELS = ("maf", "maf_rqs", "zuko_maf")


def simulate(variables: int, rows: int) -> tuple[object, Tensor, Tensor]:
    """A prior, parameters, and data: the parameters with noise. A prior without bounds, so that no draw is rejected."""
    prior = torch.distributions.MultivariateNormal(torch.zeros(variables), torch.eye(variables))
    theta = prior.sample((rows,))
    return prior, theta, theta + 0.3 * torch.randn_like(theta)


def train(
    prior: object, theta: Tensor, x: Tensor, density_estimator: object, epochs: int, likelihood: bool = False
) -> object:
    """sbi's own training of a posterior or of a likelihood, for a number of epochs; the trainer."""
    from sbi.inference import NLE, NPE

    torch.manual_seed(0)
    trainer = (NLE if likelihood else NPE)(prior, density_estimator=density_estimator, show_progress_bars=False)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.append_simulations(theta, x).train(max_num_epochs=epochs, stop_after_epochs=epochs + 1)
    return trainer


def rows(model: str, variables: int, seconds: float, each: int, tiny: bool) -> Iterator[list[str]]:
    from ar_fast.interop.sbi import builder

    torch.manual_seed(0)
    prior, theta, x = simulate(variables, 200 if tiny else 2000)
    epochs = 1 if tiny else 40
    original = train(prior, theta, x, model, epochs).build_posterior()
    fast = ar_fast.accelerate(copy.deepcopy(original))
    print(str(ar_fast.acceleration_report(fast)).splitlines()[0], file=sys.stderr)
    draws, contexts = (200, 5) if tiny else (100_000, 1000)
    each, few = 20 if tiny else each, 20
    estimators = {"sbi": original.posterior_estimator, "ar_fast": fast.posterior_estimator}
    error = relative_error(
        [estimators["ar_fast"].log_prob(theta[None, :few], x[:few])],
        [estimators["sbi"].log_prob(theta[None, :few], x[:few])],
    )
    assert error < 1e-3, f"{model}: off by {error}"

    def work(posterior: object) -> dict[str, object]:
        own = posterior.posterior_estimator
        return {
            f"{draws:,} draws, one context": lambda: posterior.sample((draws,), x=x[:1], show_progress_bars=False),
            f"{each:,} draws, {contexts:,} contexts": lambda: posterior.sample_batched(
                (each,), x=x[:contexts], show_progress_bars=False
            ),
            f"log_prob, B {few}": lambda: own.log_prob(theta[None, :few], x[:few]),
        }

    jobs = {"sbi": work(original), "ar_fast": work(fast)}
    for name in jobs["sbi"]:
        contenders = {who: no_grad(own[name]) for who, own in jobs.items()}
        # The largest takes a minute in sbi.
        turns = 1 if "contexts" in name else 3
        yield _row(model, variables, name, interleave(contenders, seconds=seconds, min_rounds=turns))
    original = train(prior, theta, x, model, epochs, likelihood=True).build_posterior(
        sample_with="mcmc", mcmc_method="slice_np_vectorized"
    )
    chains = {"sbi": original, "ar_fast": ar_fast.accelerate(copy.deepcopy(original))}
    few = 20 if tiny else 1000
    seconds_of = {}
    for who, own in chains.items():
        # Half a minute of many calls: timed once.
        start = time.perf_counter()
        with torch.no_grad():
            own.sample((few,), x=x[:1], show_progress_bars=False)
        seconds_of[who] = time.perf_counter() - start
    yield _cells(model, variables, f"NLE, {few:,} slice samples", seconds_of["sbi"], seconds_of["ar_fast"])
    contenders = {
        "sbi": lambda: train(prior, theta, x, model, epochs),
        "ar_fast": lambda: train(prior, theta, x, builder(model), epochs),
    }
    name = f"train(), {len(theta):,} pairs, {epochs} epochs"
    yield _row(model, variables, name, interleave(contenders, seconds=seconds, min_rounds=3))


def _row(model: str, variables: int, name: str, timings: dict) -> list[str]:
    return _cells(model, variables, name, timings["sbi"].median, timings["ar_fast"].median)


def _cells(model: str, variables: int, name: str, before: float, after: float) -> list[str]:
    return [model, str(variables), name, duration(before), duration(after), f"{before / after:.2f}x"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.sbi", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure, at least three turns (default: 1)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="sbi's names of the estimators")
    parser.add_argument("--variables", type=int, nargs="+", default=(5, 10), help="D (default: 5 10)")
    parser.add_argument("--each", type=int, default=1000, help="draws for each of 1,000 contexts (default: 1000)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sizes = (2,) if chosen.tiny else chosen.variables
    found = []
    for model in chosen.models:
        for variables in sizes:
            found += rows(model, variables, chosen.seconds, chosen.each, chosen.tiny)
    header = ["estimator", "D", "work", "sbi", "accelerated", "speed-up"]
    note = (
        "NPE with sbi's default sizes (5 transforms of two layers of 50 units), float32. The posterior and its "
        "accelerated copy take turns in one process; medians. Draws include sbi's own work around the flow. train() "
        "includes what accelerate measures first, some tenths of a second."
    )
    title = "Posteriors of sbi"
    path = write_table(chosen.out, "cpu-sbi", title, environment(torch.device("cpu")), header, found, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
