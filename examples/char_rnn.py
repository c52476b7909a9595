"""A recurrent network that reads bytes: it learns a text, is measured on the part it has not read, writes more of it,
and shows which characters of a line surprise it.

Run: python examples/char_rnn.py [FILE]        any UTF-8 text; without one, the help texts that Python comes with
"""

import argparse
import math
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch

from ar_fast.models import CharRNN


def folded(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """(T) -> (rows, T / rows): so many parts of the text, side by side."""
    return tokens[: len(tokens) // rows * rows].reshape(rows, -1)


def nats(model: CharRNN, tokens: torch.Tensor) -> float:
    """For each byte of a text, which is read in 16 parts side by side."""
    return math.log(model.eval().perplexity(folded(tokens, 16)))


def train(
    model: CharRNN,
    tokens: torch.Tensor,
    held_out: torch.Tensor,
    steps: int,
    rows: int = 32,
    chunk: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.0,
) -> list[tuple[int, float, float]]:
    """Each step reads the next ``chunk`` bytes of ``rows`` parts of the text and goes on from their states.

    Gradients end where a step begins: backpropagation is truncated. The held-out text is measured about 15 times, at
    least 100 steps apart. Returns for each time the step and the nats per byte of the steps since the last time and of
    the held-out text.
    """
    streams = folded(tokens, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begin, state, started = 0, None, time.perf_counter()
    history, losses = [], []
    interval = max(100, steps // 15)
    for step in range(1, steps + 1):
        if begin + chunk > streams.shape[1]:
            begin, state = 0, None
        model.train()
        log_prob, state = model.log_prob(streams[:, begin : begin + chunk], state=state, return_state=True)
        begin, state = begin + chunk, state.detach()
        loss = -log_prob.mean() / chunk
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % interval == 0 or step == steps:
            history.append((step, sum(losses) / len(losses), nats(model, held_out)))
            losses = []
            seconds = time.perf_counter() - started
            print("step {}: {:.3f} nats per byte, held out {:.3f}, {:.0f} s".format(*history[-1], seconds), flush=True)
    return history


def save_curve(path: str, history: list[tuple[int, float, float]]) -> None:
    from matplotlib import pyplot

    step, training, held_out = zip(*history, strict=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.plot(step, training, label="training, mean since the last point")
    axes.plot(step, held_out, label="held out")
    axes.set(xlabel="step", ylabel="nats per byte")
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
    steps: int = 600,
    rows: int = 32,
    chunk: int = 64,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.0,
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
    training, held_out = tokens[: -len(tokens) // 10], tokens[-len(tokens) // 10 :]
    print(f"{len(tokens):,} bytes, {model.count_parameters():,} parameters")
    history = train(model, training, held_out, steps, rows, chunk, learning_rate, weight_decay)
    if curve:
        save_curve(curve, history)
    if save:
        model.save(save)

    bits = model.bits_per_character(folded(held_out, 16))
    print(f"held-out tenth: {nats(model, held_out):.3f} nats per byte, {bits:.3f} bits per character\n")
    drawn, _ = model.sample(1, length, prompt=prompt, temperature=temperature, seed=0)
    print(prompt + model.decode(drawn[0]) + "\n")
    print(shown(line, surprise(model, line), sys.stdout.isatty()))
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a text in UTF-8")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=32, help="parts of the text that a step reads side by side")
    parser.add_argument("--chunk", type=int, default=64, help="bytes of each part that a step reads")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
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
