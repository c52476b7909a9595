"""The rows of `python -m bench --predict`: predicted, not measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import kernels, model
from .cases import CASES, Case

GOALS = Path(__file__).with_name("goals.json")
TITLE = "predicted, not measured"


@dataclass(frozen=True)
class Row:
    case: Case
    prediction: model.Prediction
    floor_us: float | None
    goal_us: float | None

    def to_json(self) -> dict:
        p = self.prediction
        return {
            "case": self.case.name,
            "predicted_us": round(p.middle, 2),
            "low_us": round(p.low, 2),
            "high_us": round(p.high, 2),
            "floor_us": self.floor_us,
            "goal_us": self.goal_us,
        }


def rows(cases: Sequence[Case] = CASES) -> list[Row]:
    """From the committed counts and launches; neither a compiler nor a disassembler is needed."""
    goals = {goal["case"]: goal for goal in json.loads(GOALS.read_text())}
    table, geometry = kernels.Table(), json.loads(kernels.LAUNCHES.read_text())
    found = []
    for case in cases:
        prediction = model.predict(kernels.launches_of(case, table, geometry), table.paths, case.steps)
        goal = goals.get(case.name, {})
        found.append(Row(case, prediction, goal.get("floor_us"), goal.get("goal_us")))
    return found


def microseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _of_kernels(prediction: model.Prediction) -> list[str]:
    """The time of each kernel, of all its launches together."""
    times: dict[str, list[float]] = {}
    for name, time in prediction.kernels:
        times.setdefault(name, []).append(time[1])
    return [
        f"{len(each)} x {name} {microseconds(sum(each))}" if len(each) > 1 else f"{name} {microseconds(each[0])}"
        for name, each in times.items()
    ]


def text(found: Sequence[Row]) -> str:
    lines = [f"H200, {TITLE}; microseconds", "", "| case | low | middle | high | floor | goal | of it |",
             "|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for row in found:
        p = row.prediction
        parts = ", ".join(_of_kernels(p))
        cells = [microseconds(value) for value in (p.low, p.middle, p.high, row.floor_us, row.goal_us)]
        lines.append(f"| {row.case.name} | {' | '.join(cells)} | {parts} |")
    return "\n".join(lines) + "\n"


def write(path: Path, found: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(row.to_json())}" for row in found) + "\n]\n")
