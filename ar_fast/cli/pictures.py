"""Pictures: grids of images and the learning curve."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor


def grid(images: Tensor, columns: int, *, zoom: int = 2, gap: int = 2, marked_rows: int | None = None) -> np.ndarray:
    """(N, height, width) of 0 and 1 -> one grey picture, dark ink on light paper, `columns` images to a line.

    The first `marked_rows` rows of every image are tinted: they were given, not drawn.
    """
    values = images.detach().float().cpu().numpy()
    shades = 255 - values * 225
    if marked_rows:
        shades[:, :marked_rows] = 215 - values[:, :marked_rows] * 115
    return image_grid(shades, columns, zoom=zoom, gap=gap)


def image_grid(shades: np.ndarray, columns: int | None = None, *, zoom: int | None = None, gap: int = 2) -> np.ndarray:
    """(N, height, width) or (N, height, width, 3), 0 ... 255 -> one picture, `columns` images to a line.

    One image becomes the picture without a frame and without a zoom. None for columns is about a square; None for zoom
    makes small images larger.
    """
    count, height, width = shades.shape[:3]
    if count == 1 and columns is None:
        return shades[0].astype(np.uint8, copy=False)
    columns = columns or min(count, max(1, round((count * height / width) ** 0.5)))
    zoom = zoom or max(1, 56 // max(height, width))
    lines = -(-count // columns)
    canvas = np.full((lines * (height + gap) + gap, columns * (width + gap) + gap, *shades.shape[3:]), 238, np.uint8)
    for index, image in enumerate(shades):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas.repeat(zoom, 0).repeat(zoom, 1)


def save_grid(path: Path, images: Tensor, columns: int, **options) -> None:
    from PIL import Image

    Image.fromarray(grid(images, columns, **options)).save(path, optimize=True)


def save_learning_curve(
    path: Path, history: Sequence[dict], baseline: float | None = None, unit: str = "nats per image"
) -> None:
    """history: one entry per epoch with `epoch`, `train` and `validation` in nats; baseline: of independent pixels."""
    from matplotlib.figure import Figure

    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, [-entry["train"] for entry in history], label="training")
    axes.plot(epochs, [-entry["validation"] for entry in history], label="validation")
    best = max(history, key=lambda entry: entry["validation"])
    axes.plot(best["epoch"], -best["validation"], "o", color="black", label=f"kept: {-best['validation']:.2f} nats")
    if baseline is not None:
        axes.axhline(-baseline, color="grey", linestyle=":", label=f"independent pixels: {-baseline:.1f} nats")
        low = min(min(-entry["train"], -entry["validation"]) for entry in history)
        axes.set_ylim(low * 0.95, max(-baseline, -best["validation"]) * 1.05)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(f"negative log-likelihood, {unit}")
    axes.legend()
    figure.savefig(path, dpi=120)
