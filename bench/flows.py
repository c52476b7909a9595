"""python -m bench.flows: ar_fast.flows.MAF beside zuko's flows of the same sizes, as they are and accelerated."""

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import ar_fast
from ar_fast.flows import MAF
from ar_fast.tasks._timing import interleave

from . import data
from .cases import no_grad, relative_error
from .run import environment
from .tables import duration, write_table

# zuko's class, our univariate transform, D, hidden_features, how many transforms, and the batch sizes.
Sizes = tuple[str, str, int, tuple[int, ...], int, tuple[int, ...]]


def sizes(tiny: bool) -> Iterator[Sizes]:
    if tiny:
        yield "MAF", "affine", 3, (8, 8), 2, (2,)
        yield "NSF", "spline", 3, (8, 8), 2, (2,)
        return
    small = (1, 20, 64, 256, 1000)
    yield "MAF", "affine", 5, (50, 50), 5, small
    yield "MAF", "affine", 8, (64, 64), 3, small
    yield "MAF", "affine", 64, (512, 512), 5, (1, 64, 256)
    yield "NSF", "spline", 8, (64, 64), 3, small
    yield "NSF", "spline", 32, (128, 128), 3, (1, 64, 256)


def _step(flow, log_prob, x) -> None:
    flow.zero_grad()
    (-log_prob(flow, x).mean()).backward()


def rows(own: Sizes, seconds: float) -> Iterator[list[str]]:
    import zuko

    kind, univariate, variables, hidden, transforms, batches = own
    torch.manual_seed(0)
    theirs = getattr(zuko.flows, kind)(variables, transforms=transforms, hidden_features=hidden)
    ours = MAF(variables, 0, transforms, hidden, univariate)
    # Each flow: its density of x, and samples as many as x has rows.
    flows = {
        "zuko": (theirs, lambda flow, x: flow().log_prob(x), lambda flow, x: flow().sample((len(x),))),
        "accelerated": (
            ar_fast.accelerate(copy.deepcopy(theirs)),
            lambda flow, x: flow().log_prob(x),
            lambda flow, x: flow().sample((len(x),)),
        ),
        "ar_fast": (ours, lambda flow, x: flow.log_prob(x), lambda flow, x: flow.sample(len(x))),
    }
    exact = copy.deepcopy(ours).double()
    for batch in batches:
        x = data.normal(batch, variables, seed=1)
        error = relative_error([ours.log_prob(x)], [exact.log_prob(x.double())])
        assert error < 1e-4, f"{kind}, {variables} variables, B {batch}: off by {error}"
        contenders = {}
        for name, (flow, log_prob, sample) in flows.items():
            contenders[name, "log_prob"] = no_grad(lambda f=flow, call=log_prob, x=x: call(f, x))
            contenders[name, "step"] = lambda f=flow, call=log_prob, x=x: _step(f, call, x)
            contenders[name, "sample"] = no_grad(lambda f=flow, call=sample, x=x: call(f, x))
        timings = interleave(contenders, seconds=seconds, min_rounds=5)
        cells = []
        for work in ("log_prob", "step", "sample"):
            times = {name: timings[name, work].median for name in flows}
            shown = [f"{duration(own)} ({times['zuko'] / own:.2f}x)" for own in list(times.values())[1:]]
            cells.append(" / ".join([duration(times["zuko"]), *shown]))
        yield [kind, f"D {variables}, {hidden} x {transforms}", str(batch), *cells]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.flows", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure, at least five turns (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    chosen = parser.parse_args(arguments)
    found = [row for own in sizes(chosen.tiny) for row in rows(own, chosen.seconds)]
    header = ["flow", "sizes", "B", "log_prob", "training step", "sampling"]
    note = (
        "In each cell: zuko / zuko accelerated by ar_fast.accelerate / ar_fast.flows.MAF, float32, in turns in one "
        "process; medians, and how many times faster than zuko. A training step is the gradient of the mean log_prob."
    )
    title = "MAF of ar_fast and of zuko"
    path = write_table(chosen.out, "cpu-flows", title, environment(torch.device("cpu")), header, found, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
