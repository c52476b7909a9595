"""python -m bench.reproduce: trains a model as it was published and prints its test log-likelihood beside that row.

The data is not part of the project. --data names an .npz file with the arrays train_data, valid_data and test_data,
(N, D) of 0 and 1, in the published split. What was measured so far is in docs/results.md.
"""

import argparse
import json
import math
import sys
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from ar_fast import orderings
from ar_fast._progress import progress_bar
from ar_fast.models import ARMLP, FVSBN, MADE, NADE, DeepNADE, Ensemble
from ar_fast.tasks import training
from ar_fast.tasks.training import Settings, Split, Training

from .run import environment

KEYS = ("train_data", "valid_data", "test_data")
Model = ARMLP | DeepNADE | FVSBN | MADE | NADE


@dataclass(frozen=True)
class Recipe:
    """A published row and the training that reproduces it. Chosen on the validation rows only: docs/results.md.

    published: the test log-likelihood in nats; source: the paper it is from. rows: of the training, validation and
    test parts. hidden_features: of a NADE; a tuple, of the layers of a MADE; None is an FVSBN. learning_rate and
    weight_decay are AdamW's: the rate rises over the first warmup steps and falls to zero with a cosine, the decay
    is on the weights but not on the biases. average: the decay per step of the moving average of the parameters,
    which is the model that is judged. ensembles: published rows of ensembles of orderings, by how many; the model
    is then an orderless one. direct and masks are of a MADE: whether inputs and outputs are connected directly, and
    how many sets of masks it has, each with random degrees and an order of its own: one after the other in training,
    a batch each, and the mean probability of all when it is judged.
    """

    dataset: str
    published: float
    source: str
    rows: tuple[int, int, int]
    variables: int
    hidden_features: int | tuple[int, ...] | None
    batch_size: int
    epochs: int
    learning_rate: float
    warmup: int
    weight_decay: float
    average: float
    seed: int = 0
    ensembles: dict[int, float] | None = None
    direct: bool = False
    masks: int = 1


RECIPES = {
    "nade-mnist": Recipe(
        dataset="binarized MNIST (Larochelle's fixed binarization)",
        published=-88.33,
        source="Germain et al. 2015",
        rows=(50000, 10000, 10000),
        variables=784,
        hidden_features=500,
        batch_size=100,
        epochs=20,
        learning_rate=3e-2,
        warmup=300,
        weight_decay=0.06,
        average=0.9995,
    ),
    "made-mnist": Recipe(
        dataset="binarized MNIST (Larochelle's fixed binarization)",
        published=-88.40,
        source="Germain et al. 2015",
        rows=(50000, 10000, 10000),
        variables=784,
        hidden_features=(2000,),
        batch_size=100,
        epochs=8,
        learning_rate=5e-3,
        warmup=300,
        weight_decay=0.1,
        average=0.999,
        direct=True,
    ),
    "made-dna": Recipe(
        dataset="DNA",
        published=-79.66,
        source="Germain et al. 2015",
        rows=(1400, 600, 1186),
        variables=180,
        hidden_features=(500,),
        batch_size=100,
        epochs=240,
        learning_rate=2e-2,
        warmup=0,
        weight_decay=0.05,
        average=0.99,
        direct=True,
        masks=32,
    ),
    "made-mushrooms": Recipe(
        dataset="Mushrooms",
        published=-9.69,
        source="Germain et al. 2015",
        rows=(2000, 500, 5624),
        variables=112,
        hidden_features=(500,),
        batch_size=100,
        epochs=60,
        learning_rate=2e-2,
        warmup=0,
        weight_decay=0.2,
        average=0.99,
        direct=True,
    ),
    "nade-dna": Recipe(
        dataset="DNA",
        published=-84.81,
        source="Germain et al. 2015",
        rows=(1400, 600, 1186),
        variables=180,
        hidden_features=500,
        batch_size=100,
        epochs=100,
        learning_rate=5e-3,
        warmup=0,
        weight_decay=0.3,
        average=0.99,
    ),
    "nade-mushrooms": Recipe(
        dataset="Mushrooms",
        published=-9.81,
        source="Germain et al. 2015",
        rows=(2000, 500, 5624),
        variables=112,
        hidden_features=500,
        batch_size=100,
        epochs=60,
        learning_rate=2e-2,
        warmup=0,
        weight_decay=0.01,
        average=0.99,
    ),
    "nade-nips": Recipe(
        dataset="NIPS-0-12",
        published=-273.08,
        source="Germain et al. 2015",
        rows=(400, 100, 1240),
        variables=500,
        hidden_features=500,
        batch_size=100,
        epochs=120,
        learning_rate=5e-3,
        warmup=0,
        weight_decay=0.3,
        average=0.99,
    ),
    "nade-adult": Recipe(
        dataset="Adult",
        published=-13.19,
        source="Germain et al. 2015",
        rows=(5000, 1414, 26147),
        variables=123,
        hidden_features=500,
        batch_size=100,
        epochs=40,
        learning_rate=3e-3,
        warmup=0,
        weight_decay=0.03,
        average=0.99,
    ),
    "fvsbn-dna": Recipe(
        dataset="DNA",
        published=-83.64,
        source="Germain et al. 2015",
        rows=(1400, 600, 1186),
        variables=180,
        hidden_features=None,
        batch_size=100,
        epochs=100,
        learning_rate=0.1,
        warmup=0,
        weight_decay=0.2,
        average=0.99,
    ),
    "fvsbn-mushrooms": Recipe(
        dataset="Mushrooms",
        published=-10.27,
        source="Germain et al. 2015",
        rows=(2000, 500, 5624),
        variables=112,
        hidden_features=None,
        batch_size=100,
        epochs=100,
        learning_rate=0.2,
        warmup=0,
        weight_decay=0.003,
        average=0.99,
    ),
    "fvsbn-nips": Recipe(
        dataset="NIPS-0-12",
        published=-276.88,
        source="Germain et al. 2015",
        rows=(400, 100, 1240),
        variables=500,
        hidden_features=None,
        batch_size=100,
        epochs=60,
        learning_rate=1e-2,
        warmup=0,
        weight_decay=1.0,
        average=0.99,
    ),
    "fvsbn-adult": Recipe(
        dataset="Adult",
        published=-13.17,
        source="Germain et al. 2015",
        rows=(5000, 1414, 26147),
        variables=123,
        hidden_features=None,
        batch_size=100,
        epochs=40,
        learning_rate=0.1,
        warmup=0,
        weight_decay=0.03,
        average=0.99,
    ),
    "eonade-mnist": Recipe(
        dataset="binarized MNIST (Larochelle's fixed binarization)",
        published=-92.17,
        source="Uria et al. 2014",
        rows=(50000, 10000, 10000),
        variables=784,
        hidden_features=500,
        batch_size=100,
        epochs=110,
        learning_rate=4e-3,
        warmup=300,
        weight_decay=0.025,
        average=0.9995,
        ensembles={1: -92.17, 2: -90.69, 4: -89.86, 8: -89.16, 16: -88.61, 32: -88.25, 64: -87.95, 128: -87.71},
    ),
}


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"--data: must be an .npz file, got {path}, which is no file")
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array")
        with file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"--data: must be an .npz file of plain arrays, got {path}: {error}") from None


def load(path: Path, recipe: Recipe) -> Split:
    """Reads the three parts, (N, D) of 0 and 1 in uint8, and checks that they are the recipe's. Nothing is unpickled.

    Raises:
        ValueError: if the file is missing or no .npz archive, or an array is missing, of another shape, or holds
            anything but 0 and 1.
    """
    arrays = _read(path)
    if not set(KEYS) <= set(arrays):
        raise ValueError(f"--data: {path} must hold the arrays {', '.join(KEYS)}, got {', '.join(sorted(arrays))}")
    parts = [arrays[key] for key in KEYS]
    for key, part, rows in zip(KEYS, parts, recipe.rows, strict=True):
        if part.shape != (rows, recipe.variables):
            raise ValueError(
                f"--data: {key} of {recipe.dataset} must have shape {(rows, recipe.variables)}, got {part.shape}"
            )
        wrong = np.argwhere((part != 0) & (part != 1))
        if len(wrong):
            row, variable = wrong[0]
            raise ValueError(f"--data: {key} must hold 0 and 1, got {part[row, variable]} at [{row}, {variable}]")
    return Split(*(torch.from_numpy(part.astype(np.uint8)) for part in parts))


def make_model(recipe: Recipe, train: Tensor) -> Model:
    """In the order of the columns, or in the first of an ensemble's; the output bias starts at the means."""
    torch.manual_seed(recipe.seed)
    hidden = recipe.hidden_features
    if recipe.ensembles is not None:
        model = DeepNADE(recipe.variables, [hidden], "sigmoid", order=_order(recipe, 0))
    elif hidden is None:
        model = FVSBN(recipe.variables)
    elif isinstance(hidden, tuple):
        model = MADE(
            recipe.variables,
            hidden,
            degrees="even" if recipe.masks == 1 else "random",
            degree_seed=recipe.seed,
            n_masks=recipe.masks,
            n_orders=recipe.masks,
            direct=recipe.direct,
        )
    else:
        model = NADE(recipe.variables, hidden)
    model.initialize_from_mean(train.double().mean(0))
    return model


def _order(recipe: Recipe, number: int) -> Tensor:
    """An ordering of an ensemble."""
    return orderings.random(recipe.variables, seed=1000 * recipe.seed + number)


def _loss(model: Model | Ensemble, x: Tensor, generator: torch.Generator) -> Tensor:
    """What is minimised, in nats per row; the generator is of an orderless model's random sets."""
    return model.loss(x, generator=generator) if isinstance(model, DeepNADE) else -model.log_prob(x)


@torch.no_grad()
def log_likelihoods(model: Model, x: Tensor) -> Tensor:
    """log p(x) in nats of every row, (N) in float64; of a MADE that of the mean of all sets of masks; of an orderless
    model an estimate by the same sets at each call, whose mean is that over all orderings."""
    if isinstance(model, MADE) and model.n_masks > 1:
        model = model.ensemble()
    generator = torch.Generator().manual_seed(0)
    return torch.cat([-_loss(model, rows, generator).double() for rows in x.split(500)])


@torch.no_grad()
def ensemble_log_likelihoods(model: DeepNADE, x: Tensor, recipe: Recipe) -> dict[int, Tensor]:
    """log p(x) in nats of every row, (N) in float64, under the ensembles of the first 1, 2, 4 ... orderings."""
    results, total = {}, torch.full((len(x),), -float("inf"), dtype=torch.float64)
    for number in progress_bar(range(max(recipe.ensembles)), unit="ordering", desc="evaluating"):
        member = model.in_order(_order(recipe, number))
        total = torch.logaddexp(total, torch.cat([member.log_prob(rows).double() for rows in x.split(500)]))
        if number + 1 in recipe.ensembles:
            results[number + 1] = total - math.log(number + 1)
    return results


def train(model: Model, data: Split, recipe: Recipe) -> tuple[Model, list[dict]]:
    """Trains model in place, and prints a line per epoch.

    Returns:
        The model, with the moving average of the parameters as it was after the epoch with the best validation
        log-likelihood, and an entry per epoch: epoch, train and validation (nats, of the moving average; train on the
        first rows, as many as validation has), seconds.
    """
    some = data.train[: len(data.validation)]

    def report(so_far: Training, average: Model) -> None:
        entry = so_far.history[-1]
        entry["train"] = log_likelihoods(average, some).mean().item()
        line = "epoch {epoch}: train {train:.2f}, validation {validation:.2f} nats, {seconds:.0f} s"
        tqdm.write(line.format(**entry), file=sys.stdout)
        sys.stdout.flush()

    settings = Settings(
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        patience=recipe.epochs,
        seed=recipe.seed,
        warmup=recipe.warmup,
        final_rate=0.0,
        decay_biases=False,
        average=recipe.average,
    )
    return model, training.train(model, data, settings, judge=log_likelihoods, on_epoch=report).history


def save_curve(path: Path, title: str, history: Sequence[dict], recipe: Recipe) -> None:
    epochs = [entry["epoch"] for entry in history]
    best = max(history, key=lambda entry: entry["validation"])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, [-entry["train"] for entry in history], label="training")
    axes.plot(epochs, [-entry["validation"] for entry in history], label="validation")
    axes.plot(best["epoch"], -best["validation"], "o", color="black", label=f"kept: {-best['validation']:.2f} nats")
    axes.axhline(
        -recipe.published, color="grey", linestyle=":", label=f"published, on test: {-recipe.published:.2f} nats"
    )
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("negative log-likelihood, nats")
    low = min(-recipe.published, *(min(-entry["train"], -entry["validation"]) for entry in history))
    axes.set_ylim(low * 0.98, max(-recipe.published, -best["validation"]) * 1.12)
    axes.legend()
    figure.savefig(path, dpi=100)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=RECIPES, help="which published row")
    parser.add_argument("--data", type=Path, required=True, help="the .npz file")
    parser.add_argument("--seed", type=int, help="of the first parameters and the batches (default: the recipe's)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    start = time.perf_counter()
    arguments = _arguments(given)
    recipe = RECIPES[arguments.experiment]
    if arguments.seed is not None:
        recipe = replace(recipe, seed=arguments.seed)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        data = load(arguments.data, recipe)
    except ValueError as error:
        print(f"bench.reproduce: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    where = environment(torch.device("cpu"))
    print(f"{where['device']}, {where['cpu_capability']}, {where['threads']} threads, torch {where['torch']}")
    print(", ".join(f"{name} {value}" for name, value in asdict(recipe).items()), flush=True)

    model, history = train(make_model(recipe, data.train), data, recipe)
    best = max(history, key=lambda entry: entry["validation"])
    # The only look at the test rows.
    if recipe.ensembles is None:
        ensembles = {1: log_likelihoods(model, data.test)}
    else:
        ensembles = ensemble_log_likelihoods(model, data.test, recipe)
    test = {
        count: {
            "log_likelihood_nats": each.mean().item(),
            "standard_error_nats": each.std().item() / len(each) ** 0.5,
            "published_nats": recipe.ensembles[count] if recipe.ensembles else recipe.published,
        }
        for count, each in ensembles.items()
    }
    seconds = time.perf_counter() - start

    path = arguments.out / f"{arguments.experiment}.json"
    results = {
        "experiment": arguments.experiment,
        "test": test[1],
        **({"ensembles": test} if recipe.ensembles else {}),
        "validation_nats": best["validation"],
        "kept_epoch": best["epoch"],
        "seconds": seconds,
        "recipe": asdict(recipe),
        "environment": where,
        "history": history,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    save_curve(path.with_suffix(".png"), arguments.experiment, history, recipe)
    print(f"kept epoch {best['epoch']}: validation {best['validation']:.2f} nats; {seconds:.0f} s")
    print(f"written to {path} and {path.with_suffix('.png')}")
    for count, row in test.items():
        nats, error, published = row.values()
        title = f"test, {count} orderings," if recipe.ensembles else "test"
        print(f"{title} {nats:.2f} ± {error:.2f} nats; published {published:.2f} ({recipe.source})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
