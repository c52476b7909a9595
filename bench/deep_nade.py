"""python -m bench.deep_nade: what DeepNADE costs with one hidden layer and with two, beside the NADE of that size."""

import argparse
import sys
from pathlib import Path

import torch

from ar_fast import models
from ar_fast.tasks._timing import interleave

from . import data
from .cases import no_grad
from .run import environment
from .tables import duration, write_table

MODELS = {
    "NADE, 500": lambda d, h: models.NADE(d, h, "sigmoid"),
    "DeepNADE, [500]": lambda d, h: models.DeepNADE(d, [h], "sigmoid"),
    "DeepNADE, [500, 500]": lambda d, h: models.DeepNADE(d, [h, h], "sigmoid"),
}


def _gradient(model: torch.nn.Module, loss) -> None:
    model.zero_grad()
    loss().mean().backward()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.deep_nade", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="time per figure, at least three turns (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args()
    batch, hidden = (3, 5) if arguments.tiny else (20, 500)
    x, what = data.digits(batch)
    contenders = {}
    for name, make in MODELS.items():
        model = make(784, hidden)
        model.initialize_from_mean(x.double().mean(0))
        contenders[name, "log_prob"] = no_grad(lambda model=model: model.log_prob(x))
        contenders[name, "log_prob and gradients"] = lambda model=model: _gradient(model, lambda: model.log_prob(x))
        contenders[name, "sample"] = lambda model=model: model.sample(batch, seed=0)
        if name != "NADE, 500":
            contenders[name, "loss and gradients"] = lambda model=model: _gradient(model, lambda: model.loss(x))
    timings = interleave(contenders, seconds=arguments.seconds, min_rounds=3)
    columns = ["loss and gradients", "log_prob", "log_prob and gradients", "sample"]
    rows = [
        [name, *(duration(timings[name, column].median) if (name, column) in timings else "" for column in columns)]
        for name in MODELS
    ]
    note = f"{batch} events of 784 variables a call ({what}), float32; all take turns in one process, medians."
    where = environment(torch.device("cpu"))
    path = write_table(arguments.out, "cpu-deep_nade", "DeepNADE", where, ["model", *columns], rows, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
