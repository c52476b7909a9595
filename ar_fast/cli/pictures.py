"""The demo's pictures: grids of binary images and the learning curve."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor


def grid(images: Tensor, columns: int, *, zoom: int = 2, gap: int = 2, marked_rows: int | None = None) -> np.ndarray:
    """(N, height, width) of 0 and 1 -> one grey picture, dark ink on light paper, `columns` images to a line.

    The first `marked_rows` rows of every image are tinted: they were given, not drawn.
    """
    values = images.detach().float().cpu().numpy()
    count, height, width = values.shape
    lines = -(-count // columns)
    shades = 255 - values * 225
    if marked_rows:
        shades[:, :marked_rows] = 215 - values[:, :marked_rows] * 115
    canvas = np.full((lines * (height + gap) + gap, columns * (width + gap) + gap), 238.0)
    for index, image in enumerate(shades):
        top = gap + index // columns * (height + gap)
        left = gap + index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return np.kron(canvas, np.ones((zoom, zoom))).astype(np.uint8)


def save_grid(path: Path, images: Tensor, columns: int, **options) -> None:
    from PIL import Image

    Image.fromarray(grid(images, columns, **options)).save(path, optimize=True)


def save_learning_curve(path: Path, history: Sequence[dict], baseline: float) -> None:
    """history: one entry per epoch with `epoch`, `train` and `validation` in nats per image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    epochs = [entry["epoch"] for entry in history]
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    axes.plot(epochs, [-entry["train"] for entry in history], label="training")
    axes.plot(epochs, [-entry["validation"] for entry in history], label="validation")
    best = max(history, key=lambda entry: entry["validation"])
    axes.plot(best["epoch"], -best["validation"], "o", color="black", label=f"kept: {-best['validation']:.2f} nats")
    axes.axhline(-baseline, color="grey", linestyle=":", label=f"independent pixels: {-baseline:.1f} nats")
    axes.set_xlabel("epoch")
    axes.set_ylabel("negative log-likelihood, nats per image")
    low = min(min(-entry["train"], -entry["validation"]) for entry in history)
    axes.set_ylim(low * 0.95, max(-baseline, -best["validation"]) * 1.05)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
