"""python -m bench.orders: NADE, MADE, RNN and FVSBN in eight orders of the pixels, on the same digits: test nats.

scikit-learn's 8 x 8 digits, binarized. The orders are raster, reversed, snake and five random ones. Each model is
trained anew in each order, with the sizes and settings of `python -m ar_fast compare`, the same first parameters and
the same batches. What it printed is in docs/lecture/README.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ar_fast import orderings
from ar_fast.cli.compare import RECIPES
from ar_fast.tasks.training import Split, log_likelihoods, train

from .run import environment
from .tables import write_table
from .untied import small_digits

MODELS = ("FVSBN", "NADE", "MADE", "RNN")
SHAPE = (8, 8)


def orders() -> dict[str, Tensor]:
    found = {name: getattr(orderings, name)(SHAPE) for name in ("raster", "reversed", "snake")}
    return found | {f"random {seed}": orderings.random(SHAPE, seed) for seed in range(5)}


def measure(name: str, order: Tensor, data: Split, epochs: int | None = None) -> Tensor:
    """Trains a model in an order; log p of every test image."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    model = recipe.make(SHAPE, order=order, **recipe.arguments)
    model.initialize_from_mean(data.train.double().mean(0).clamp(1e-3, 1 - 1e-3))
    settings = replace(recipe.settings, epochs=epochs or recipe.settings.epochs)
    train(model, data, settings, progress=False)
    return log_likelihoods(model, data.test)


def summary(found: dict[str, Tensor]) -> list[str]:
    """Cells of a table from log p of every test image in every order."""
    nats = torch.stack(list(found.values()))
    error = (nats[0].std() / nats.shape[1] ** 0.5).item()
    # The same images in two orders: their difference is known better than either mean.
    paired = ((nats[1:] - nats[0]).std(1) / nats.shape[1] ** 0.5).mean().item()
    means = nats.mean(1)
    return [
        *(f"{mean:.2f}" for mean in means.tolist()),
        f"{means[3:].std().item():.2f}",
        f"{error:.2f}",
        f"{paired:.2f}",
    ]


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.orders", description=__doc__)
    parser.add_argument("--rows", type=int, help="train on the first so many images (default: all 1,200)")
    parser.add_argument("--epochs", type=int, help="instead of each model's own number")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    data = small_digits()
    data = Split(*(part.reshape(-1, *SHAPE) for part in (data.train[: arguments.rows], data.validation, data.test)))
    where = environment(torch.device("cpu"))
    rows = []
    for name in MODELS:
        found = {order: measure(name, tensor, data, arguments.epochs) for order, tensor in orders().items()}
        rows.append([name, *summary(found)])
        print("  ".join(rows[-1]), flush=True)
    header = ["model", *orders(), "spread", "standard error", "of a difference"]
    note = (
        f"Mean log-likelihood of {len(data.test)} test images in nats, of the epoch that is best on the validation "
        f"images; {len(data.train):,} training images. Spread: standard deviation over the five random orders. "
        "Standard error: of the mean in raster order, over test images. Of a difference: standard error of the mean "
        "difference between another order and raster on the same images, averaged over the seven."
    )
    path = write_table(arguments.out, "orders-8x8", "Eight orders of 8 x 8 pixels", where, header, rows, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
