"""python -m bench.sbi: posteriors of sbi, as they are and accelerated: draws, densities, training of an estimator."""

import argparse
import contextlib
import copy
import functools
import io
import logging
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import ar_fast
from ar_fast.tasks._timing import interleave

from .cases import no_grad, relative_error
from .run import environment
from .tables import duration, write_table

MODELS = ("maf", "maf_rqs", "zuko_maf")
WORKS = ("draws", "contexts", "log_prob", "slice", "train")
HEADER = ["estimator", "D", "work", "sbi", "accelerated", "speed-up", "commit"]


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


class Estimators:
    """One of sbi's estimators for simulations of D variables: what its works need, each made where one first asks.

    Args:
        model: sbi's name of it.
        variables: D.
        limit: seconds for a row.
        tiny: the smallest sizes.
    """

    def __init__(self, model: str, variables: int, limit: float, tiny: bool) -> None:
        torch.manual_seed(0)
        self.model, self.limit, self.tiny = model, limit, tiny
        self.prior, self.theta, self.x = simulate(variables, 200 if tiny else 2000)

    @functools.cached_property
    def epochs(self) -> int:
        """How many epochs of train() are timed: fewer where those of the posterior took too long."""
        return 1 if self.tiny else 40 if self._posterior[1] < self.limit / 3 else 10

    @functools.cached_property
    def _posterior(self) -> tuple[object, float]:
        start = time.perf_counter()
        trainer = train(self.prior, self.theta, self.x, self.model, 1 if self.tiny else 40)
        return trainer.build_posterior(), time.perf_counter() - start

    @functools.cached_property
    def posteriors(self) -> dict[str, object]:
        """sbi's posterior and its accelerated copy, whose densities agree."""
        original = self._posterior[0]
        fast = ar_fast.accelerate(copy.deepcopy(original))
        print(str(ar_fast.acceleration_report(fast)).splitlines()[0], file=sys.stderr)
        found = [own.posterior_estimator.log_prob(self.theta[None, :20], self.x[:20]) for own in (fast, original)]
        error = relative_error(found[:1], found[1:])
        assert error < 1e-3, f"{self.model}: off by {error}"
        return {"sbi": original, "ar_fast": fast}

    @functools.cached_property
    def chains(self) -> dict[str, object]:
        """The same of a likelihood, whose posterior is sampled by Markov chains."""
        trainer = train(self.prior, self.theta, self.x, self.model, 1 if self.tiny else 40, likelihood=True)
        original = trainer.build_posterior(sample_with="mcmc", mcmc_method="slice_np_vectorized")
        return {"sbi": original, "ar_fast": ar_fast.accelerate(copy.deepcopy(original))}

    def works(self) -> dict[str, Callable[[], tuple[str, dict[str, Callable[[], object]]]]]:
        """By their names: what makes a row's title and what is timed for it, of sbi and of ar_fast."""
        return {
            "draws": self._draws,
            "contexts": self._contexts,
            "log_prob": self._log_prob,
            "slice": self._slice,
            "train": self._train,
        }

    def _draws(self):
        def draw(posterior: object, count: int) -> object:
            return posterior.sample((count,), x=self.x[:1], show_progress_bars=False)

        count = self._count(200 if self.tiny else 100_000, functools.partial(draw, self.posteriors["sbi"]))
        return f"{count:,} draws, one context", _calls(self.posteriors, lambda own: draw(own, count))

    def _contexts(self):
        most, contexts = (20, 5) if self.tiny else (1000, 1000)

        def draw(posterior: object, count: int) -> object:
            return posterior.sample_batched((count,), x=self.x[:contexts], show_progress_bars=False)

        count = self._count(most, functools.partial(draw, self.posteriors["sbi"]))
        return f"{count:,} draws, {contexts:,} contexts", _calls(self.posteriors, lambda own: draw(own, count))

    def _log_prob(self):
        def log_prob(posterior: object) -> Tensor:
            return posterior.posterior_estimator.log_prob(self.theta[None, :20], self.x[:20])

        return "log_prob, B 20", _calls(self.posteriors, log_prob)

    def _slice(self):
        def draw(posterior: object, count: int) -> object:
            # With sbi's default for the 1,000 samples: it warms up each chain by 200 steps.
            return posterior.sample((count,), x=self.x[:1], warmup_steps=max(1, count // 5), show_progress_bars=False)

        count = self._count(20 if self.tiny else 1000, functools.partial(draw, self.chains["sbi"]))
        return f"NLE, {count:,} slice samples", _calls(self.chains, lambda own: draw(own, count))

    def _train(self):
        from ar_fast.interop.sbi import builder

        # After accelerate has measured layers of these shapes, as it does once in a process.
        title, _ = f"train(), {len(self.theta):,} pairs, {self.epochs} epochs", self.posteriors
        return title, {
            "sbi": lambda: train(self.prior, self.theta, self.x, self.model, self.epochs),
            "ar_fast": lambda: train(self.prior, self.theta, self.x, builder(self.model), self.epochs),
        }

    def _count(self, most: int, call: Callable[[int], object]) -> int:
        """``most``, or a tenth, a hundredth ... of it, so that a call takes a third of the limit at the most."""
        count, before = max(1, most // 1000), (0, 0.0)
        while count < most:
            start = time.perf_counter()
            with torch.no_grad():
                call(count)
            took, following = time.perf_counter() - start, min(most, 10 * count)
            # A call has costs of its own, so what a draw adds is known from the second call on.
            each = (took - before[1]) / (count - before[0]) if before[0] else took / (9 * count)
            if took + (following - count) * each > self.limit / 3:
                break
            count, before = following, (count, took)
        return count


def _calls(posteriors: dict[str, object], call: Callable[[object], object]) -> dict[str, Callable[[], object]]:
    return {who: no_grad(lambda own=own: call(own)) for who, own in posteriors.items()}


def compare(contenders: dict[str, Callable[[], object]], seconds: float, limit: float) -> dict[str, float]:
    """The median time of each; those that take long get as many turns, fifteen at most, as fit into the limit."""
    turns: dict[str, list[float]] = {who: [] for who in contenders}
    begin = time.perf_counter()
    for turn in range(15):
        for who in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            contenders[who]()
            turns[who].append(time.perf_counter() - start)
        spent = time.perf_counter() - begin
        if turn == 0 and spent < 0.2:
            timings = interleave(contenders, seconds=seconds, min_rounds=3)
            return {who: own.median for who, own in timings.items()}
        if spent * (turn + 2) / (turn + 1) > limit:
            break
    return {who: statistics.median(own) for who, own in turns.items()}


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a table that was written before; none where there is none, or one with other columns."""
    lines = path.read_text().splitlines() if path.exists() else []
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return cells[2:] if cells[:1] == [HEADER] else []


def put(found: list[list[str]], row: list[str]) -> list[list[str]]:
    """The rows with one more, in the place of that of the same estimator, D and kind of work."""

    def kind(own: list[str]) -> tuple[str, ...]:
        return own[0], own[1], re.sub(r"[\d,]+", "", own[2])

    if kind(row) in map(kind, found):
        return [row if kind(own) == kind(row) else own for own in found]
    return sorted([*found, row], key=lambda own: (MODELS.index(own[0]) if own[0] in MODELS else 9, own[0], int(own[1])))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sbi", description=f"{__doc__} Each row is written once it is measured; others are kept."
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time for a figure of short calls (default: 1)")
    parser.add_argument(
        "--limit",
        type=float,
        default=90.0,
        help="seconds for a row of long calls, beside the training of the posterior: draws, epochs and turns are fewer "
        "where they would take longer (default: 90)",
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"sbi's estimators (default: {' '.join(MODELS)})")
    parser.add_argument("--variables", type=int, nargs="+", default=(2, 5, 10, 30), help="D (default: 2 5 10 30)")
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS, help="which rows (default: all)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    where, path = environment(torch.device("cpu")), chosen.out / "cpu-sbi.md"
    note = (
        "NPE with sbi's default sizes (5 transforms of two layers of 50 units), float32. The posterior and its "
        "accelerated copy take turns in one process; medians. Draws include sbi's own work around the flow. train() "
        "includes what accelerate checks first. The lines at the top are of the last run, and each row has the commit "
        "that it was measured at."
    )
    for model in chosen.models:
        for variables in (2,) if chosen.tiny else chosen.variables:
            own = Estimators(model, variables, chosen.limit, chosen.tiny)
            for work in chosen.works:
                start = time.perf_counter()
                title, contenders = own.works()[work]()
                ready = time.perf_counter()
                seconds = compare(contenders, chosen.seconds, chosen.limit)
                before, after = seconds["sbi"], seconds["ar_fast"]
                figures = [duration(before), duration(after), f"{before / after:.2f}x"]
                # Read again each time, so that two runs of different rows can write the same table.
                found = put(read_rows(path), [model, str(variables), title, *figures, where["commit"]])
                write_table(chosen.out, path.stem, "Posteriors of sbi", where, HEADER, found, note)
                now = time.perf_counter()
                print(
                    f"{model}, D {variables}, {title}: {' '.join(figures)} "
                    f"(prepared in {ready - start:.0f} s, measured in {now - ready:.0f} s)",
                    file=sys.stderr,
                    flush=True,
                )
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
