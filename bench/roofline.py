"""python -m bench.roofline: how near the CPU kernels come to what this machine can do at most.

It measures what the machine does in a second (peaks.py) and each kernel of roofline_kernels.py. For each it prints what
it must do at least; the floor, the longest of the times that its multiply-adds, its activations and its bytes take at
their peaks; its time; and floor / time. A floor counts one resource at a time: sigmoids are made of multiply-adds, so
that a kernel which needs both cannot reach it.

With --write it writes bench/results/roofline.json, the tables of docs/performance.md, README's column "of the floor",
and the picture. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from ar_fast.tasks._timing import interleave

from .peaks import Peaks, measure
from .roofline_kernels import KERNELS, Counts, Kernel
from .run import environment
from .tables import RESULTS, ROOT, duration, replace_between

COLUMN = "of the floor"


@dataclass
class Row:
    """A kernel's counts, its floor and median time in seconds, and what of the floor's three times is the longest."""

    name: str
    sizes: str
    multiply_adds: float
    activations: float
    far: float
    near: float
    limit: str
    floor: float
    seconds: float
    row: str | None = None

    @property
    def fraction(self) -> float:
        return self.floor / self.seconds


def floor_of(counts: Counts, peaks: Peaks) -> tuple[str, float]:
    """What limits a kernel, and for how many seconds at least."""
    times = {
        "multiply-adds": counts.multiply_adds / peaks.multiply_adds,
        "activations": counts.activations / peaks.sigmoids,
        "bytes": counts.far / peaks.read(counts.far) + counts.near / peaks.near_read,
    }
    return max(times.items(), key=lambda item: item[1])


def measured(kernel: Kernel, peaks: Peaks, seconds: float) -> Row:
    run, counts = kernel.build()
    timing = interleave({kernel.name: run}, seconds=seconds)[kernel.name]
    limit, floor = floor_of(counts, peaks)
    own = asdict(counts) | {"limit": limit, "floor": floor, "seconds": timing.median, "row": kernel.row}
    return Row(kernel.name, kernel.sizes, **own)


def _count(value: float) -> str:
    """123,456,789 -> 123 M"""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def peak_table(peaks: Sequence[Peaks]) -> str:
    lines = ["| in a second | " + " | ".join(f"{own.threads} thread{'s'[: own.threads - 1]}" for own in peaks) + " |"]
    lines.append("|---|" + "---:|" * len(peaks))
    for name, words in (
        ("multiply_adds", "multiply-adds of float32"),
        ("sigmoids", "sigmoids, from a buffer in the cache"),
        ("near_copied", "bytes copied within a core's cache"),
        ("far_copied", "bytes copied in memory"),
        ("near_read", "bytes read from a core's cache"),
        ("shared_read", "bytes read from the shared cache"),
        ("far_read", "bytes read from memory"),
    ):
        lines.append(f"| {words} | " + " | ".join(_count(getattr(own, name)) for own in peaks) + " |")
    return "\n".join(lines)


def formula_table(kernels: Sequence[Kernel]) -> str:
    lines = ["| kernel | multiply-adds | activations | bytes |", "|---|---|---|---|"]
    lines += [f"| {kernel.name} | {' | '.join(kernel.formulas)} |" for kernel in kernels]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| kernel | sizes | multiply-adds | activations | bytes | limit | floor | time | of the floor |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        counts = " | ".join(map(_count, (row.multiply_adds, row.activations, row.far + row.near)))
        times = f"{duration(row.floor)} | {duration(row.seconds)} | {100 * row.fraction:.0f}%"
        lines.append(f"| {row.name} | {row.sizes} | {counts} | {row.limit} | {times} |")
    return "\n".join(lines)


def readme_with(text: str, rows: Sequence[Row]) -> str:
    """README's text, where its table of times has the column "of the floor" last.

    Raises:
        ValueError: if a row of the table that a kernel names is missing.
    """
    fractions = {row.row: f"{100 * row.fraction:.0f}%" for row in rows if row.row is not None}
    lines, inside, seen = [], False, set()
    for line in text.split("\n"):
        if line.startswith("| work | sizes |"):
            inside = True
            line = re.sub(rf" {COLUMN} \|$", "", line) + f" {COLUMN} |"
            columns = line.count("|") - 1
        elif inside and not line.startswith("|"):
            inside = False
        elif inside and line.startswith("|---"):
            line = "|" + "|".join([*line.strip("|").split("|")[: columns - 1], "---:"]) + "|"
        elif inside:
            cells = [cell.strip() for cell in line.strip("|").split("|")][: columns - 1]
            seen.add(cells[0])
            own = fractions.get(cells[0], "")
            line = "| " + " | ".join(cells) + f" | {own} |" if own else "| " + " | ".join(cells) + " | |"
        lines.append(line)
    missing = sorted(set(fractions) - seen)
    if missing:
        raise ValueError(f"README.md must have the rows {', '.join(missing)} in its table of times")
    return "\n".join(lines)


def state(where: dict) -> str:
    """The machine, and how busy it was before anything was measured."""
    busy = f"a load of {where['load']:.1f} before it" if "load" in where else "an unknown load before it"
    machine = f"{where['device']}, {where['cpu_capability']}, {where['threads']} threads, torch {where['torch']}"
    return f"{machine}, {where['date'][:10]}, {busy}"


def write(rows: Sequence[Row], peaks: Sequence[Peaks], where: dict) -> None:
    stored = {"environment": where, "peaks": [asdict(own) for own in peaks], "kernels": [asdict(row) for row in rows]}
    (RESULTS / "roofline.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    # Beside matplotlib only here: the figures themselves need none.
    from . import plots

    page, readme = ROOT / "docs" / "performance.md", ROOT / "README.md"
    replace_between(page, "peaks", f"{state(where)}:\n\n{peak_table(peaks)}")
    replace_between(page, "roofline", table(rows))
    replace_between(page, "formulas", formula_table(KERNELS))
    readme.write_text(readme_with(readme.read_text(encoding="utf-8"), rows), encoding="utf-8")
    plots.draw(plots.PICTURES, ["performance-roofline"])


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.roofline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each kernel (default: 1)")
    parser.add_argument("--kernel", nargs="+", default=[], help="only kernels whose name has one of these words")
    parser.add_argument("--write", action="store_true", help="write results, tables and the picture")
    options = parser.parse_args(given)
    chosen = [kernel for kernel in KERNELS if not options.kernel or any(word in kernel.name for word in options.kernel)]
    if not chosen:
        parser.error(f"--kernel must be a part of a kernel's name, got {' '.join(options.kernel)}")
    if options.write and len(chosen) < len(KERNELS):
        parser.error("--write must be given without --kernel: the tables have all of them")
    where = environment(torch.device("cpu"))
    if hasattr(os, "getloadavg"):
        where["load"] = os.getloadavg()[0]
    threads = sorted({1, torch.get_num_threads()})
    peaks = [measure(count) for count in threads]
    print(peak_table(peaks) + "\n", flush=True)
    rows = []
    for kernel in chosen:
        print(f"... {kernel.name}", file=sys.stderr, flush=True)
        rows.append(measured(kernel, peaks[-1], options.seconds))
    print(table(rows))
    if options.write:
        write(rows, peaks, where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
