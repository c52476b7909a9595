"""python docs/site/kernels.py: draws the pictures of docs/kernels.md from small models and masks of the package."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ar_fast import Mask
from ar_fast.models import MADE, NADE

PICTURES = Path(__file__).resolve().parents[1] / "images"
SEEN, EDGE, STRIPS = "Blues", "tab:red", 4


def cells(axes: Axes, matrix: Tensor, title: str, across: str, down: str, **shown) -> None:
    axes.imshow(matrix.numpy(), interpolation="nearest", aspect="auto", **shown)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    axes.set_xticks([])
    axes.set_yticks([])


def staircase(figure: Figure) -> None:
    """A mask as degrees make it, sorted, and cut into strips."""
    torch.manual_seed(3)
    inputs, units = 24, 32
    degrees = torch.randint(1, inputs, (units,))
    columns = torch.arange(inputs)
    panels = figure.subplots(1, 3)
    titles = ("The mask M of a layer", "Units sorted by degree: a staircase", "Strips of rows, a dense product each")
    ordered = degrees.sort().values
    for axes, rows, title in zip(panels, (degrees, ordered, ordered), titles, strict=True):
        mask = Mask.from_degrees(columns, rows - 1).to_dense()
        cells(axes, mask.float(), title, "inputs", "hidden units", cmap=SEEN, vmin=0, vmax=1.6)
    height = units // STRIPS
    for first in range(0, units, height):
        # A strip reaches as far as the last of its rows.
        width = int(ordered[first + height - 1])
        panels[2].add_patch(Rectangle((-0.5, first - 0.5), width, height, fill=False, edgecolor=EDGE, linewidth=1.5))


def prefix_sum(figure: Figure) -> None:
    """An event, what each of its values adds to the hidden state of a NADE, and the states."""
    torch.manual_seed(1)
    model = NADE(16, hidden_features=12)
    x = torch.tensor([0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0.0])
    state = model.begin()
    states = [state.tensors[0]]
    while state.variable is not None:
        state = model.next(state, x[state.variable])
        states.append(state.tensors[0])
    states = torch.stack(states[:-1]).detach().reshape(len(x), -1)
    added = (x[:, None] * model.in_weight).detach()
    assert torch.allclose(states[1:], model.in_bias.detach() + added.cumsum(0)[:-1], atol=1e-6)
    panels = figure.subplots(1, 3, width_ratios=(1, 6, 6))
    most = float(states.abs().max())
    cells(panels[0], x[:, None], "x", "", "position p", cmap="Greys", vmin=0, vmax=1.4)
    colours = {"cmap": "RdBu", "vmin": -most, "vmax": most}
    cells(panels[1], added, "What x adds: x_p in_weight_p", "hidden units", "", **colours)
    cells(panels[2], states, "The states a_p: a running sum", "hidden units", "", **colours)
    for p in range(1, len(x)):
        if x[p - 1]:
            panels[2].axhline(p - 0.5, color="black", linewidth=1.5)


def one_pass(figure: Figure) -> None:
    """At which step of drawing which unit of a MADE is computed."""
    variables, units = 12, 20
    model = MADE(variables, [units])
    # A unit is computed once, before the first step at which an output sees it: when all that it sees is drawn.
    when = model.layers[0].mask.to_dense().sum(1)
    step = torch.arange(variables)
    panels = figure.subplots(1, 2)
    ways = (
        ("One pass of the network for each variable", torch.ones(units, variables)),
        ("ar_fast: each unit once", (when[:, None] == step).float()),
    )
    for axes, (title, computed) in zip(panels, ways, strict=True):
        title = f"{title}\n{int(computed.sum())} units computed"
        cells(axes, computed, title, "steps: x_1, x_2, ... are drawn", "hidden units", cmap=SEEN, vmin=0, vmax=1.6)
        axes.set_xticks(step[1:].numpy() - 0.5, minor=True)
        axes.set_yticks(torch.arange(1, units).numpy() - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="minor", length=0)


DRAWN = {
    "kernels-staircase": (staircase, (9.6, 3.4)),
    "kernels-nade": (prefix_sum, (9.6, 3.4)),
    "kernels-made": (one_pass, (8.0, 3.8)),
}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python docs/site/kernels.py", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES, help="where the pictures go (default: docs/images)")
    folder = parser.parse_args(given).out
    for name, (draw, size) in DRAWN.items():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(folder / f"{name}.png", dpi=100)
        print(f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
