"""A recurrent network that reads bytes: it learns a text, is measured on the part it has not read, writes more of it,
and shows which characters of a line surprise it.

Run: python examples/char_rnn.py [FILE]        any UTF-8 text; without one, the help texts that Python comes with
"""

import argparse
import math
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch

from ar_fast.models import CharRNN
from ar_fast.training import Settings, Text, Training, folded, train


def save_curve(path: str, history: list[dict]) -> None:
    from matplotlib import pyplot

    epochs = [entry["epoch"] for entry in history]
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.plot(epochs, [-entry["train"] for entry in history], label="training, mean of the epoch")
    axes.plot(epochs, [-entry["validation"] for entry in history], label="validation")
    axes.set(xlabel="epoch", ylabel="nats per byte")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def surprise(model: CharRNN, line: str) -> list[float]:
    """How many bits each character of the line costs, given those before it."""
    tokens = model.encode(line)
    with torch.no_grad():
        bits = -model.log_prob(tokens, per_token=True) / math.log(2)
    first = model.vocabulary.characters(tokens).long().cumsum(0) - 1
    return torch.zeros(len(line), dtype=bits.dtype).index_add(0, first, bits).tolist()


def shown(line: str, bits: list[float], coloured: bool) -> str:
    """The line, expected characters green and surprising ones red; without colours, a digit of bits below each."""
    if not coloured:
        return line + "\n" + "".join(str(min(9, round(cost))) for cost in bits)
    # Colours of the 6 x 6 x 6 cube of a terminal's palette, from green over yellow to red.
    levels = [min(10, round(cost)) for cost in bits]
    codes = [16 + 36 * min(5, level) + 6 * min(5, 10 - level) for level in levels]
    return "".join(f"\033[30;48;5;{code}m{c}" for c, code in zip(line, codes, strict=True)) + "\033[0m"


def main(
    file: str | None = None,
    *,
    epochs: int = 3,
    rows: int = 32,
    chunk: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.0,
    average: float = 0.0,
    hidden_features: int = 256,
    cell: str = "gru",
    num_layers: int = 1,
    dropout: float = 0.0,
    prompt: str = "The ",
    line: str = "The import statement finds a module, and then binds it to a name.",
    length: int = 400,
    temperature: float = 0.7,
    curve: str | None = None,
    save: str | None = None,
) -> float:
    """Returns bits per character of the last tenth of the text."""
    torch.manual_seed(0)
    text = Path(file).read_text(encoding="utf-8") if file else "\n".join(topics[name] for name in sorted(topics))
    model = CharRNN("bytes", hidden_features, cell=cell, num_layers=num_layers, dropout=dropout)
    tokens = model.encode(text)
    data = Text.split(tokens, chunk)
    print(f"{len(tokens):,} bytes, {model.count_parameters():,} parameters")
    settings = Settings(
        epochs, rows, learning_rate, weight_decay, patience=epochs, final_rate=0.0, average=average, clip=1.0
    )

    def report(so_far: Training, _: torch.nn.Module) -> None:
        line = "epoch {epoch}: {train:.3f} nats per byte, validation {validation:.3f}, {seconds:.0f} s"
        entry = so_far.history[-1]
        values = entry | {"train": -entry["train"], "validation": -entry["validation"]}
        print(line.format(**values), flush=True)

    history = train(model, data, settings, on_epoch=report).history
    model.eval()
    if curve:
        save_curve(curve, history)
    if save:
        model.save(save)

    held_out = folded(data.test, 16)
    nats, bits = math.log(model.perplexity(held_out)), model.bits_per_character(held_out)
    print(f"held-out tenth: {nats:.3f} nats per byte, {bits:.3f} bits per character\n")
    drawn, _ = model.sample(1, length, prompt=prompt, temperature=temperature, seed=0)
    print(prompt + model.decode(drawn[0]) + "\n")
    print(shown(line, surprise(model, line), sys.stdout.isatty()))
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a text in UTF-8")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="parts of the text that a step reads side by side")
    parser.add_argument("--chunk", type=int, default=64, help="bytes of each part that a step reads")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
    parser.add_argument("--average", type=float, default=0.0, help="decay per step of an average of the parameters")
    parser.add_argument("--hidden-features", type=int, default=256)
    parser.add_argument("--cell", choices=["gru", "lstm", "rnn"], default="gru")
    parser.add_argument("--num-layers", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0, help="probability of a zero between layers in training")
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--line", default="The import statement finds a module, and then binds it to a name.")
    parser.add_argument("--length", type=int, default=400, help="of what is drawn, in bytes")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--curve", metavar="FILE.png", help="write a picture of the nats per byte over the steps")
    parser.add_argument("--save", metavar="FOLDER", help="write the trained model")
    main(**vars(parser.parse_args()))
