"""python -m bench.text: trains a CharRNN on a text and prints the nats per character of its last tenth.

The text is not part of the project: --data names tinyshakespeare, or any file in UTF-8. The last tenth is read once, at
the end; 3% before it choose the epoch. --resume goes on with a run that was stopped. Results: docs/results.md.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ar_fast.models import CharRNN
from ar_fast.tasks.training import Checkpoint, Settings, Text, Training, train

from .run import environment

SETTINGS = Settings(
    epochs=14,
    batch_size=32,
    learning_rate=2e-3,
    weight_decay=0.0,
    patience=14,
    warmup=200,
    final_rate=0.02,
    average=0.998,
    clip=1.0,
)
MODEL = {"hidden_features": 512, "cell": "gru", "num_layers": 2, "dropout": 0.5, "readout_dropout": 0.2}
CHUNK = 64


def save_curve(path: Path, history: Sequence[dict], test: float) -> None:
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(epochs, [-entry["train"] for entry in history], label="training, with dropout")
    axes.plot(epochs, [-entry["validation"] for entry in history], label="validation, of the average")
    axes.axhline(test, color="grey", linestyle=":", label=f"the last tenth: {test:.3f}")
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("nats per character")
    axes.legend()
    figure.savefig(path, dpi=100)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a text in UTF-8")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="where the state is kept while it trains")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--hidden-features", type=int, help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    options = parser.parse_args(given)
    if options.threads:
        torch.set_num_threads(options.threads)
    begun = time.perf_counter()
    settings = Settings(**{**asdict(SETTINGS), **({"epochs": options.epochs} if options.epochs else {})})
    made = MODEL | ({"hidden_features": options.hidden_features} if options.hidden_features else {})
    content = options.data.read_text(encoding="utf-8")
    vocabulary = "".join(sorted(set(content)))
    torch.manual_seed(settings.seed)
    model = CharRNN(vocabulary, **made)
    text = Text.split(model.encode(content), CHUNK)
    print(f"{len(vocabulary)} symbols; {', '.join(str(len(p)) for p in (text.train, text.validation, text.test))}")

    def report(so_far: Training, _: torch.nn.Module) -> None:
        entry = so_far.history[-1]
        line = "epoch {epoch}: train {train:.3f}, validation {validation:.3f} nats, {seconds:.0f} s"
        tqdm.write(line.format(**entry), file=sys.stdout)
        sys.stdout.flush()

    checkpoint = None if options.resume is None else Checkpoint(options.resume, 60.0)
    result = train(model, text, settings, on_epoch=report, checkpoint=checkpoint)
    test = -text.judge(model.eval(), text.test).item()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gru-text.json"
    results = {
        "test_nats_per_character": test,
        "validation_nats_per_character": -max(entry["validation"] for entry in result.history),
        "kept_epoch": result.best_epoch,
        "training_seconds": result.seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model": made,
        "settings": asdict(settings) | {"chunk": CHUNK},
        "environment": environment(torch.device("cpu")),
        "history": result.history,
    }
    path.write_text(json.dumps(results, indent=1) + "\n")
    save_curve(path.with_suffix(".png"), result.history, test)
    model.save(options.out / "gru-text")
    print(f"test {test:.4f} nats per character; {time.perf_counter() - begun:.0f} s; written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
