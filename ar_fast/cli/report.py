"""The demo's report: a table for people."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..tasks._table import aligned


def environment(device: torch.device) -> dict:
    """The environment that the figures depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return ["  ".join(row) for row in aligned(rows)]


def _speed(name: str, times: dict) -> tuple[str, ...]:
    plain, fast = times["plain"], times["fast"]
    return name, _milliseconds(plain), _milliseconds(fast), f"{plain / fast:.1f}x"


def table(metrics: dict, out: Path) -> str:
    """The results, the speed beside plain PyTorch, and where the files are."""
    test, baseline, training = metrics["test"], metrics["independent_pixels"], metrics["training"]
    step, sampling, where = metrics["training_step_seconds"], metrics["sampling_seconds"], metrics["environment"]
    batch, model = metrics["settings"]["batch_size"], metrics["model"]
    quality = [
        (f"test log-likelihood ({metrics['data']['test']} images)", "nats per image", "bits per dimension"),
        (
            f"{model['name']}, H = {model['hidden_features']}",
            f"{test['log_likelihood_nats']:.2f} ± {test['standard_error_nats']:.2f}",
            f"{test['bits_per_dimension']:.4f}",
        ),
        (
            "independent pixels",
            f"{baseline['log_likelihood_nats']:.2f}",
            f"{baseline['bits_per_dimension']:.4f}",
        ),
    ]
    speed = [
        ("median time, taken in turns", "plain PyTorch", "ar_fast", "ratio"),
        _speed(f"training step, batch {batch}", step),
        _speed(f"drawing {sampling['count']} images", sampling),
    ]
    ending = "stopped early" if training["stopped_early"] else "ran to the end"
    lines = [
        "",
        *_aligned(quality),
        "",
        *_aligned(speed),
        "",
        f"the losses of both agree to {step['loss_difference']:.0e} (relative) over the first {step['steps']} steps",
        f"epoch {training['best_epoch']} of {len(training['history'])} was kept ({ending}); training took "
        f"{training['seconds']:.0f} s, everything {metrics['total_seconds']:.0f} s",
        f"{where['device']} ({where['cpu_capability']}), {where['threads']} threads, {where['dtype']}, "
        f"torch {where['torch']}",
        f"written to {out}/: samples.png, completions.png, learning_curve.png, metrics.json, model/",
    ]
    return "\n".join(lines)
