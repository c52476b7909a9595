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


def train(model: CharRNN, tokens: torch.Tensor, steps: int, rows: int = 32, length: int = 64) -> None:
    """Each step reads the next ``length`` characters of ``rows`` parts of the text and goes on from their states.

    Gradients end where a step begins: backpropagation is truncated.
    """
    streams = folded(tokens, rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begin, state, started = 0, None, time.perf_counter()
    for step in range(1, steps + 1):
        if begin + length > streams.shape[1]:
            begin, state = 0, None
        log_prob, state = model.log_prob(streams[:, begin : begin + length], state=state, return_state=True)
        begin, state = begin + length, state.detach()
        loss = -log_prob.mean() / length
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - started
            print(f"step {step}: {loss.item():.3f} nats per byte, {seconds:.0f} s", flush=True)


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
    hidden_features: int = 256,
    cell: str = "gru",
    prompt: str = "The ",
    line: str = "The import statement finds a module, and then binds it to a name.",
    length: int = 400,
    temperature: float = 0.7,
) -> float:
    """Returns bits per character of the last tenth of the text."""
    torch.manual_seed(0)
    text = Path(file).read_text(encoding="utf-8") if file else "\n".join(topics[name] for name in sorted(topics))
    model = CharRNN("bytes", hidden_features, cell=cell)
    tokens = model.encode(text)
    held_out = folded(tokens[-len(tokens) // 10 :], 16)
    print(f"{len(tokens):,} bytes, {model.count_parameters():,} parameters")
    train(model, tokens[: -len(tokens) // 10], steps)

    nats, bits = math.log(model.perplexity(held_out)), model.bits_per_character(held_out)
    print(f"held-out tenth: {nats:.3f} nats per byte, {bits:.3f} bits per character\n")
    drawn, _ = model.sample(1, length, prompt=prompt, temperature=temperature, seed=0)
    print(prompt + model.decode(drawn[0]) + "\n")
    print(shown(line, surprise(model, line), sys.stdout.isatty()))
    return bits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="a text in UTF-8")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--hidden-features", type=int, default=256)
    parser.add_argument("--cell", choices=["gru", "lstm", "rnn"], default="gru")
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--line", default="The import statement finds a module, and then binds it to a name.")
    parser.add_argument("--length", type=int, default=400, help="of what is drawn, in bytes")
    parser.add_argument("--temperature", type=float, default=0.7)
    main(**vars(parser.parse_args()))
