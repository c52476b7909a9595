"""python -m bench.untied: FVSBN, ARMLP and NADE on the same binary digits: parameters, seconds per epoch, test nats.

Without --data they are scikit-learn's 8 x 8 digits, binarized. --data names an .npz file of 28 x 28 digits as
bench.reproduce nade-mnist takes it. What it printed is in docs/untied_and_tied.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ar_fast.models import ARMLP, FVSBN, NADE
from ar_fast.tasks.training import Split

from . import reproduce
from .run import environment
from .tables import write_table


@dataclass(frozen=True)
class Entry:
    """A model and its training."""

    name: str
    hidden_features: int | None
    learning_rate: float
    weight_decay: float
    epochs: int
    warmup: int = 0

    def make(self, variables: int, mean: torch.Tensor) -> reproduce.Model:
        torch.manual_seed(0)
        models = {"FVSBN": FVSBN, "ARMLP": ARMLP, "NADE": NADE}
        sizes = () if self.hidden_features is None else (self.hidden_features,)
        model = models[self.name](variables, *sizes)
        model.initialize_from_mean(mean)
        return model


# Chosen on the validation rows, from a few learning rates and weight decays each.
SMALL = [
    Entry("FVSBN", None, learning_rate=0.1, weight_decay=0.1, epochs=60),
    Entry("ARMLP", 16, learning_rate=0.06, weight_decay=0.1, epochs=60),
    Entry("NADE", 100, learning_rate=0.03, weight_decay=0.1, epochs=60),
]
# Those of FVSBN and NADE the best of a few pairs on the validation rows; ARMLP's was the only one tried.
LARGE = [
    Entry("FVSBN", None, learning_rate=0.03, weight_decay=0.06, epochs=10),
    Entry("ARMLP", 16, learning_rate=0.02, weight_decay=0.1, epochs=10),
    Entry("NADE", 500, learning_rate=0.03, weight_decay=0.1, epochs=10, warmup=100),
]


def small_digits() -> Split:
    """1,200, 297 and 300 of scikit-learn's digits: a pixel is 1 where at least half of it is ink."""
    from sklearn.datasets import load_digits

    images = (torch.from_numpy(load_digits().data) >= 8).to(torch.uint8)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    return Split(*images.split([1200, 297, 300]))


def compare(data: Split, entries: Sequence[Entry], recipe: reproduce.Recipe) -> list[list[str]]:
    rows = []
    for entry in entries:
        model = entry.make(recipe.variables, data.train.double().mean(0))
        training = asdict(entry)
        training.pop("name")
        kept, history = reproduce.train(model, data, replace(recipe, **training))
        test = reproduce.log_likelihoods(kept, data.test)
        rows.append([
            entry.name,
            str(entry.hidden_features or ""),
            f"{model.count_parameters():,}",
            f"{history[-1]['seconds'] / entry.epochs:.3g}",
            f"{max(line['validation'] for line in history):.2f}",
            f"{test.mean().item():.2f} ± {test.std().item() / len(test) ** 0.5:.2f}",
        ])  # fmt: skip
    return rows


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.untied", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="an .npz file of 28 x 28 digits")
    parser.add_argument("--rows", type=int, help="train on the first so many rows (default: all)")
    parser.add_argument("--epochs", type=int, help="instead of each model's own number")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    arguments = parser.parse_args(given)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = reproduce.RECIPES["nade-mnist"]
    try:
        data = small_digits() if arguments.data is None else reproduce.load(arguments.data, recipe)
    except ValueError as error:
        print(f"bench.untied: {error}", file=sys.stderr)
        return 2
    data = replace(data, train=data.train[: arguments.rows])
    recipe = replace(recipe, variables=data.train.shape[1], average=0.99)
    entries = SMALL if arguments.data is None else LARGE
    if arguments.epochs:
        entries = [replace(entry, epochs=arguments.epochs) for entry in entries]
    where = environment(torch.device("cpu"))
    rows = compare(data, entries, recipe)
    title = "FVSBN, ARMLP and NADE on digits of " + ("8 x 8" if arguments.data is None else "28 x 28") + " pixels"
    header = ["model", "H", "parameters", "seconds per epoch", "validation nats", "test nats"]
    note = (
        f"{len(data.train):,} training rows. Parameters are those that have an effect; an epoch includes judging as "
        "many training and validation rows as there are of the latter. Nats are mean log-likelihoods, of the moving "
        "average of the parameters after the best epoch on the validation rows."
    )
    name = "untied-8x8" if arguments.data is None else "untied-28x28"
    path = write_table(arguments.out, name, title, where, header, rows, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
