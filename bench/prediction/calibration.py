"""python -m bench.prediction.calibration: the model beside a review of the kernels, and beside times of public kernels.

Nothing here is measured by us. calibration.json keeps what the model was given: the kernels of commit 12e97cc, which
the review's estimates are of (from the machine code, by hand, +-40%), kernels of others, compiled from their public
sources, and the sizes of published products. It stays as it is when kernels change, so that the model can be seen not
to.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import model
from .table import microseconds

RECORD = Path(__file__).with_name("calibration.json")


@dataclass(frozen=True)
class Comparison:
    """predicted and expected (low, high): microseconds. source: whose."""

    name: str
    predicted: model.Prediction
    expected: tuple[float, float]
    source: str

    @property
    def error(self) -> float:
        """The middle against the middle of what was expected, as a part of that."""
        return self.predicted.middle / (sum(self.expected) / 2) - 1


def comparisons(kind: str) -> list[Comparison]:
    """kind: "reviewed", "public" or "products"."""
    record = json.loads(RECORD.read_text())
    found = []
    for entry in record[kind]:
        of = model.Product if kind == "products" else model.Launch
        launches = [of(**launch) for launch in entry["launches"]]
        prediction = model.predict(launches, record["paths"])
        found.append(Comparison(entry["name"], prediction, tuple(entry["expected_us"]), entry["source"]))
    return found


def text(found: Sequence[Comparison], expected: str) -> str:
    lines = [f"| case | predicted: low | middle | high | {expected} | middle's error | source |",
             "|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for each in found:
        p = each.predicted
        bounds = " to ".join(microseconds(value) for value in dict.fromkeys(each.expected))
        times = " | ".join(microseconds(value) for value in (p.low, p.middle, p.high))
        lines.append(f"| {each.name} | {times} | {bounds} | {each.error:+.0%} | {each.source} |")
    return "\n".join(lines)


def main() -> None:
    print("Microseconds, predicted, not measured\n")
    print(text(comparisons("reviewed"), "estimated by hand"))
    print("\nThe same model on kernels of others (H100; bytes scaled by its 3.35 TB/s against 4.8)\n")
    print(text(comparisons("public"), "published"))
    print("\nProducts by cuBLAS, whose rate has both of these times among its sources\n")
    print(text(comparisons("products"), "published"))


if __name__ == "__main__":
    main()
