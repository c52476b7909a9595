"""Runs cases and collects their results."""

import datetime
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

import ar_fast
from ar_fast.tasks._timing import interleave

from . import fvsbn, made, masked_linear, nade, rnn
from .cases import OURS, Case, Contender
from .settings import Settings

SUITES = {"nade": nade, "masked_linear": masked_linear, "made": made, "fvsbn": fvsbn, "rnn": rnn}


@dataclass
class Row:
    """One contender's result in one case. Times in seconds; ratio is its median over ar_fast's."""

    case: str
    sizes: str
    data: str
    dtype: str
    contender: str
    median: float | None = None
    lower: float | None = None
    upper: float | None = None
    rounds: int | None = None
    ratio: float | None = None
    error: float | None = None
    skipped: str | None = None


def select(settings: Settings, suites: Iterable[str] = tuple(SUITES)) -> Iterator[Case]:
    for suite in suites:
        yield from SUITES[suite].cases(settings)


def run_case(case: Case, settings: Settings) -> list[Row]:
    """Builds every contender, checks it against float64 and times all in turns. A contender that cannot run here (a
    compiler that is missing or too slow, memory) becomes a row that says so; ours raises."""
    built = case.build()
    rows = {name: Row(case.name, case.sizes, case.data, case.dtype, name) for name in case.contenders}
    ready: dict[str, Contender] = {}
    for name, row in rows.items():
        try:
            contender = built.makers[name]()
            values = contender.values(contender.run())
            row.error = built.error(values) if values else None
            ready[name] = contender
        except Exception as failure:
            if name == OURS:
                raise
            row.skipped = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0][:120]}"
    timings = interleave(
        {name: contender.run for name, contender in ready.items()}, seconds=settings.seconds, device=settings.device
    )
    for name, timing in timings.items():
        row = rows[name]
        row.median, row.lower, row.upper, row.rounds = timing.median, timing.lower, timing.upper, timing.rounds
        row.ratio = timing.median / timings[OURS].median
    return list(rows.values())


def environment(device: torch.device) -> dict:
    """Hardware, driver, versions, commit and date: what the figures depend on."""
    cuda = device.type == "cuda"
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _output(["git", "describe", "--always", "--dirty", "--abbrev=12"]),
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) if cuda else None,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "ar_fast": ar_fast.__version__,
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "tf32": bool(torch.backends.cuda.matmul.allow_tf32) if cuda else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)}-core {names[0]}" if names else platform.processor()
    except OSError:
        return platform.processor()
