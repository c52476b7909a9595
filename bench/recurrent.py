"""python -m bench.recurrent: why recurrent networks are hard to train, in three small experiments with CharRNN.

1. Gradients over time: how much the state ``lag`` tokens ago changes the log-probability of the last token, by the
   norm of the gradient, relative to lag 1; of networks before training, with torch's initial weights, or three times
   those.
2. A copy task: eight random symbols, so many blanks, a mark, and the same eight symbols again. Nats for each of those:
   the logarithm of 8, 2.08, is what a network reaches that remembers nothing.
3. Longer than in training: trained on pieces of L characters of a text, each from a zero state, the nats per character
   at the positions up to L and between L and 4 L.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor

from ar_fast.models import CharRNN
from ar_fast.tasks._table import aligned

CELLS = ("rnn", "gru", "lstm")
# Of the copy task.
COPIED, KINDS = 8, 8
BLANK, MARK = KINDS, KINDS + 1
SYMBOLS = "01234567.>"


@dataclass(frozen=True)
class Sizes:
    """Of all three experiments: H, batch and steps of Adam; lags of the first, blanks of the second, L of the third."""

    hidden_features: int = 128
    batch: int = 64
    steps: int = 1000
    lags: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    blanks: tuple[int, ...] = (0, 10, 30, 100)
    lengths: tuple[int, ...] = (16, 64)


TINY = Sizes(8, 4, 2, (1, 3), (0, 2), (4,))


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    first, *rest = aligned([tuple(header), *map(tuple, lines)])
    rule = ["-" * len(first[0]), *("-" * (len(cell) - 1) + ":" for cell in first[1:])]
    for row in (first, rule, *rest):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def gradient_norms(cell: str, scale: float, sizes: Sizes) -> list[float]:
    """The norm of the gradient of the last token's log-probability by the states before it, ``lag`` tokens ago.

    The mean over the batch; of an LSTM by the state and the cell state together.
    """
    torch.manual_seed(0)
    model = CharRNN(SYMBOLS, sizes.hidden_features, cell, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.rnn.parameters():
            parameter.mul_(scale)
    tokens = torch.randint(KINDS, (sizes.batch, max(sizes.lags) + 1))
    state, states = model.begin(sizes.batch), []
    for token in tokens.split(1, 1):
        states.append([part for part in (state.state, state.cell_state) if part is not None])
        for part in states[-1]:
            part.requires_grad_() if part.is_leaf else part.retain_grad()
        log_prob, state = model.log_prob(token, state=state, return_state=True)
    log_prob.sum().backward()
    norms = [torch.cat([part.grad for part in states[-lag]], 2).norm(dim=2).mean().item() for lag in sizes.lags]
    return [norm / norms[0] for norm in norms]


def copy_task(blanks: int, batch: int) -> Tensor:
    symbols = torch.randint(KINDS, (batch, COPIED))
    between = torch.full((batch, blanks), BLANK)
    return torch.cat([symbols, between, torch.full((batch, 1), MARK), symbols], 1)


def train(model: CharRNN, batches: int, draw, counted: slice) -> float:
    """Nats per counted token at the end, the mean of the last twentieth of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(batches):
        loss = -model.log_prob(draw(), per_token=True)[:, counted].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(1, batches // 20) :]
    return sum(last) / len(last)


def copying(cell: str, blanks: int, sizes: Sizes) -> float:
    torch.manual_seed(0)
    model = CharRNN(SYMBOLS, sizes.hidden_features, cell)
    return train(model, sizes.steps, lambda: copy_task(blanks, sizes.batch), slice(-COPIED, None))


def generalization(cell: str, length: int, sizes: Sizes) -> tuple[float, float]:
    """Nats per character of held-out text at positions up to L and from L to 4 L."""
    torch.manual_seed(0)
    text = "\n".join(topics[name] for name in sorted(topics))
    model = CharRNN(sorted(set(text)), sizes.hidden_features, cell)
    tokens = model.encode(text)
    split = len(tokens) * 9 // 10

    def draw() -> Tensor:
        starts = torch.randint(split - length, (sizes.batch,))
        return tokens[starts[:, None] + torch.arange(length)]

    train(model, sizes.steps, draw, slice(None))
    test = tokens[split:]
    with torch.no_grad():
        nats = -model.log_prob(test[: len(test) // (4 * length) * 4 * length].reshape(-1, 4 * length), per_token=True)
    return nats[:, :length].mean().item(), nats[:, length:].mean().item()


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.recurrent", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=int, choices=(1, 2, 3), help="one of the three")
    parser.add_argument("--steps", type=int, help=f"of each training (default: {Sizes.steps})")
    parser.add_argument("--hidden-features", type=int, help=f"H (default: {Sizes.hidden_features})")
    parser.add_argument("--blanks", type=int, nargs="+", help="of the copy task")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs")
    arguments = parser.parse_args(given)
    changes = {"steps": arguments.steps, "hidden_features": arguments.hidden_features}
    changes |= {"blanks": tuple(arguments.blanks) if arguments.blanks else None}
    base = TINY if arguments.tiny else Sizes()
    sizes = Sizes(**{**vars(base), **{name: value for name, value in changes.items() if value is not None}})
    print(f"H = {sizes.hidden_features}, batches of {sizes.batch}, {sizes.steps} steps of Adam\n", flush=True)
    if arguments.only in (None, 1):
        lines = [
            [cell, f"{scale:g}", *(f"{norm:.2g}" for norm in gradient_norms(cell, scale, sizes))]
            for cell in CELLS
            for scale in (1.0, 3.0)
        ]
        print_table(["cell", "weights", *(f"lag {lag}" for lag in sizes.lags)], lines)
    started = time.perf_counter()
    if arguments.only in (None, 2):
        lines = [[cell, *(f"{copying(cell, blanks, sizes):.3f}" for blanks in sizes.blanks)] for cell in CELLS]
        lines.append(["no memory", *[f"{math.log(KINDS):.3f}"] * len(sizes.blanks)])
        print_table(["cell", *(f"{blanks} blanks" for blanks in sizes.blanks)], lines)
    if arguments.only in (None, 3):
        lines = []
        for cell in CELLS:
            pairs = [generalization(cell, length, sizes) for length in sizes.lengths]
            lines.append([cell, *(f"{nats:.3f}" for pair in pairs for nats in pair)])
        header = [name for length in sizes.lengths for name in (f"L = {length}: to L", f"L = {length}: L to 4 L")]
        print_table(["cell", *header], lines)
    print(f"{time.perf_counter() - started:.0f} s of training")
    return 0


if __name__ == "__main__":
    sys.exit(main())
