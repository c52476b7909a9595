"""python -m bench.plots: draws the pictures of docs/performance.md from bench/results. It measures nothing.

Each picture carries a fingerprint of the files that it was drawn from, so that a test can tell when one of them has
changed.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .cases import OURS
from .run import Row

RESULTS = Path(__file__).parent / "results"
PICTURES = Path(__file__).parents[1] / "docs" / "images"
UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
COLOUR, OTHER = "tab:blue", "tab:gray"


def rows(name: str) -> list[Row]:
    """The measurements of NAME.json."""
    stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["results"]
    return [Row(**row) for row in stored]


def table(name: str) -> list[dict[str, str]]:
    """The table of NAME.md, a dictionary for each line."""
    lines = re.findall(r"^\| (.*) \|$", (RESULTS / f"{name}.md").read_text(encoding="utf-8"), re.MULTILINE)
    header, *cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [dict(zip(header, line, strict=True)) for line in cells]


def seconds(text: str) -> float:
    """ "1.58 ms" -> 0.00158"""
    number, unit = text.split()
    return float(number) * UNITS[unit]


def _logarithmic(*axes: Axis, base: int = 10) -> None:
    """Scales of a logarithm, with numbers that are written out."""
    for axis in axes:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        low, high = axis.get_view_interval()
        # Few decades have room for the numbers between their ends.
        axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if base == 10 and high < 500 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _contenders(axes: Axes, case: list[Row], title: str) -> None:
    """A line for each contender: its median and quartiles."""
    for place, row in enumerate(reversed(case)):
        colour = COLOUR if row.contender == OURS else OTHER
        axes.plot([row.lower * 1e3, row.upper * 1e3], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(row.median * 1e3, place, "o", color=colour)
    axes.set_yticks(range(len(case)), [row.contender for row in reversed(case)])
    axes.set_ylim(-0.6, len(case) - 0.4)
    _logarithmic(axes.xaxis)
    axes.set_title(f"{title}\n{case[0].sizes}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


def contenders(figure: Figure, cases: Sequence[tuple[str, str, str, str]]) -> None:
    """Cases as (file, case, data, title), two beside each other."""
    axes = figure.subplots(-(-len(cases) // 2), 2, squeeze=False)
    for ax, (name, case, data, title) in zip(axes.flat, cases, strict=True):
        found = [row for row in rows(name) if (row.case, row.data) == (case, data) and not row.skipped]
        _contenders(ax, found, title)
    for ax in axes[-1]:
        ax.set_xlabel("milliseconds a call")


def nade(figure: Figure) -> None:
    digits, dense, file = "MNIST digits, 13% ones", "uniform reals, dense", "cpu-nade-made"
    forward, backward = "NADE log_prob, forward", "NADE log_prob, forward + backward"
    contenders(
        figure,
        [
            (file, forward, digits, "NADE, log_prob of digits"),
            (file, backward, digits, "NADE, log_prob of digits and its gradients"),
            (file, forward, dense, "NADE, log_prob of reals"),
            (file, backward, dense, "NADE, log_prob of reals and its gradients"),
        ],
    )


def sampling(figure: Figure) -> None:
    contenders(
        figure,
        [
            ("cpu-nade-made", "NADE sampling", "output biases of digits", "NADE, sampling"),
            ("cpu-nade-made", "MADE sampling", "output biases of digits", "MADE, sampling"),
        ],
    )


def batches(figure: Figure) -> None:
    """Samples per second against the batch size."""
    axes = figure.subplots()
    for colour, (sizes, lines) in zip(
        ("tab:blue", "tab:orange", "tab:green"),
        groupby(table("cpu-sampling"), key=lambda line: line["D, H"]),
        strict=True,
    ):
        lines = list(lines)
        count = [int(line["B"]) for line in lines]
        for column, style, name in (("samples/s", "o-", OURS), ("loop, in place", "s:", "loop over D, in place")):
            label = "{}: D {}, H {}".format(name, *sizes.split(", "))
            axes.plot(count, [float(line[column]) for line in lines], style, color=colour, label=label)
    _logarithmic(axes.xaxis, base=2)
    _logarithmic(axes.yaxis)
    axes.set_xlabel("samples a call")
    axes.set_ylabel("samples per second")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def scaling(figure: Figure) -> None:
    """Times against B D H, and a line of slope 1. A few rows of very many variables have marks of their own."""
    axes = figure.subplots()
    lines = table("cpu-scaling")
    sizes = [[int(number) for number in line["B, D, H"].split(", ")] for line in lines]
    columns = ("digits", "dense", "gradient, digits")
    names = ("log_prob of digits", "log_prob of reals", "gradients, digits")
    for column, name, colour in zip(columns, names, ("tab:blue", "tab:orange", "tab:green"), strict=True):
        for few, mark in ((False, "o"), (True, "x")):
            own = [(size, line) for size, line in zip(sizes, lines, strict=True) if (size[0] < 32) == few]
            axes.plot(
                [math.prod(size) for size, _ in own], [1e3 * seconds(line[column]) for _, line in own],
                mark, color=colour, label=f"{name}, B {'1 and 3' if few else '32 to 512'}", alpha=0.8,
            )  # fmt: skip
    ends = [min(map(math.prod, sizes)), max(map(math.prod, sizes))]
    axes.plot(ends, [each * 100e-12 * 1e3 for each in ends], color=OTHER, linewidth=1, label="100 ps for each")
    axes.set_xscale("log")
    _logarithmic(axes.yaxis)
    axes.set_xlabel("B D H")
    axes.set_ylabel("milliseconds a call")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def masked(figure: Figure) -> None:
    """Masked layers of many sizes: times of each rival over ours."""
    axes = figure.subplots()
    found = [row for row in rows("cpu-masked_linear") if row.case == "masked_linear, forward" and row.contender != OURS]
    for name in dict.fromkeys(row.contender for row in found):
        own = [row for row in found if row.contender == name]
        sizes = [[int(number) for number in re.findall(r"\d+", row.sizes)] for row in own]
        axes.plot([b * i * o for b, i, o in sizes], [row.ratio for row in own], "o", label=name, alpha=0.6)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    _logarithmic(axes.yaxis)
    axes.set_xlabel("batch x inputs x outputs")
    axes.set_ylabel("time / ar_fast's time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def flows(figure: Figure) -> None:
    """Flows of other libraries: how many times faster sampling became, or for those that sample fast, the density."""
    axes = figure.subplots()
    for (flow, sizes), lines in groupby(table("cpu-drop_in"), key=lambda line: (line["flow"], line["sizes"])):
        lines = list(lines)
        # The density of these goes through the inverse.
        column = "log_prob" if flow.startswith(("normflows", "pyro")) else "sampling"
        ratios = [float(re.search(r"\((.*)x\)", line[column])[1]) for line in lines]
        axes.plot([int(line["B"]) for line in lines], ratios, "o-", label=f"{flow}, {sizes}: {column}")
    _logarithmic(axes.xaxis, base=2)
    _logarithmic(axes.yaxis)
    axes.set_xlabel("batch size")
    axes.set_ylabel("time before / time after")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def roofline(figure: Figure) -> None:
    """What part of its floor each kernel reaches, in the colour of what limits it."""
    axes = figure.subplots()
    kernels = json.loads((RESULTS / "roofline.json").read_text(encoding="utf-8"))["kernels"][::-1]
    colours = {"multiply-adds": "tab:blue", "activations": "tab:orange", "bytes": "tab:green"}
    for limit, colour in colours.items():
        own = [(place, kernel) for place, kernel in enumerate(kernels) if kernel["limit"] == limit]
        shares = [100 * kernel["floor"] / kernel["seconds"] for _, kernel in own]
        axes.barh([place for place, _ in own], shares, color=colour, label=f"limited by {limit}")
    axes.set_yticks(range(len(kernels)), [kernel["name"] for kernel in kernels], fontsize=8)
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlabel("the floor's time as a part of the kernel's, percent")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


# For each picture what draws it, its size in inches, and the files that it is drawn from.
DRAWN: dict[str, tuple[Callable[[Figure], None], tuple[float, float], tuple[str, ...]]] = {
    "performance-nade": (nade, (9.6, 4.8), ("cpu-nade-made.json",)),
    "performance-sampling": (sampling, (9.6, 2.6), ("cpu-nade-made.json",)),
    "performance-batches": (batches, (9.0, 4.0), ("cpu-sampling.md",)),
    "performance-scaling": (scaling, (8.4, 4.0), ("cpu-scaling.md",)),
    "performance-masked": (masked, (6.4, 4.0), ("cpu-masked_linear.json",)),
    "performance-flows": (flows, (9.6, 4.0), ("cpu-drop_in.md",)),
    "performance-roofline": (roofline, (9.0, 6.0), ("roofline.json",)),
}


def fingerprint(files: Sequence[str]) -> str:
    """Of the contents of some files of bench/results."""
    return hashlib.sha256(b"\0".join((RESULTS / file).read_bytes() for file in files)).hexdigest()[:16]


def draw(directory: Path, names: Sequence[str] = tuple(DRAWN)) -> list[Path]:
    """Draws pictures into a folder."""
    paths = []
    for name in names:
        picture, size, files = DRAWN[name]
        figure = Figure(figsize=size, layout="constrained")
        picture(figure)
        path = directory / f"{name}.png"
        figure.savefig(path, dpi=100, metadata={"Results": fingerprint(files)})
        paths.append(path)
    return paths


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PICTURES, help="where the pictures go (default: docs/images)")
    for path in draw(parser.parse_args(given).out):
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
