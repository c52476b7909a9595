"""python -m bench.compare REV: the reference calls at two commits, timed in turns.

Builds both commits side by side in build/compare/ (without CUDA; minutes, once for each commit), loads each in a
process of its own, and lets the two take turns: pairs of timings, each commit first in every other pair. Prints the
median and quartiles of the pairs' ratios. bench.counts judges changes that are smaller than the mark: a stopwatch on a
shared machine does not tell them from noise.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import calls
from .tables import duration

ROOT = Path(__file__).parents[1]
BUILDS = ROOT / "build" / "compare"
# What the compiled library is made from.
SOURCES = ("csrc", "CMakeLists.txt", "setup.py")
MARK = 0.15
# A turn repeats a short call until it lasts about this long.
TURN_SECONDS = 4e-3

# ar_fast comes from the commit's folder, and this package from here.
STARTER = """
import sys
folder, root = sys.argv[1:]
sys.path.insert(0, folder)
import ar_fast
sys.path[0] = root
from bench.compare_worker import serve
serve(folder)
"""


@dataclass(frozen=True)
class Ratio:
    """Of a call's times, second commit over first: median and quartiles over the pairs, and the median times."""

    median: float
    lower: float
    upper: float
    first: float
    second: float

    @property
    def mark(self) -> str:
        if self.median > 1 + MARK:
            return "slower"
        return "faster" if self.median < 1 / (1 + MARK) else ""


def summarize(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """pairs: seconds of the first and of the second commit, at least two."""
    lower, median, upper = statistics.quantiles([second / first for first, second in pairs], n=4, method="inclusive")
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Ratio(median, lower, upper, first, second)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True)
    if done.returncode != 0:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit(revision: str) -> str:
    """The full name of a revision. ValueError: there is no such commit."""
    return _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")


def _sources(sha: str) -> str:
    return _git("rev-parse", *(f"{sha}:{path}" for path in SOURCES))


def _is_built(folder: Path) -> bool:
    """The record is written last. Built for another torch, it is built again."""
    record = folder / "ar_fast" / "_build.json"
    return record.exists() and json.loads(record.read_text())["torch"] == torch.__version__


def build(sha: str) -> Path:
    """The folder of a commit, checked out and built in place; from before where it is there already."""
    folder = BUILDS / sha
    if not (folder / "setup.py").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Forced: git still knows a folder that was deleted with build/.
        _git("worktree", "add", "--force", "--detach", str(folder), sha)
    if _is_built(folder):
        return folder
    alike = [other for other in BUILDS.iterdir() if _is_built(other) and _sources(other.name) == _sources(sha)]
    if alike:
        print(f"... {sha[:12]} has the C++ sources of {alike[0].name[:12]}: takes its library", file=sys.stderr)
        names = ("_C*", "libar_fast_ops*", "_build.json")
        for file in [path for name in names for path in (alike[0] / "ar_fast").glob(name)]:
            (folder / "ar_fast" / file.name).write_bytes(file.read_bytes())
        return folder
    print(f"... building {sha[:12]} in {folder.relative_to(ROOT)}", file=sys.stderr)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | {"AR_FAST_CUDA": "0", "PATH": path},
        stdout=sys.stderr,
        check=True,
    )
    return folder


class Worker:
    """A process that has one commit's ar_fast loaded and answers one request after the other."""

    def __init__(self, folder: Path, threads: int, small: bool) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "AR_FAST_BACKEND": "compiled"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", STARTER, str(folder), str(ROOT)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self.ask(threads=threads, small=small)

    def ask(self, **request: object) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise RuntimeError(f"bench.compare: a worker ended with status {self._process.wait()}")
        return json.loads(answer)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()


def time_call(title: str, workers: Sequence[Worker], pairs: int) -> Ratio | str:
    """The ratio of a call's times, or why one of the commits does not run it."""
    once = []
    for name, worker in zip(("first", "second"), workers, strict=True):
        answer = worker.ask(prepare=title)
        if "error" in answer:
            return f"does not run at the {name} commit: {answer['error']}"
        once.append(answer["seconds"])
    repeat = max(1, math.ceil(TURN_SECONDS / max(*once, 1e-7)))
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        order = (0, 1) if pair % 2 == 0 else (1, 0)
        found = {side: workers[side].ask(repeat=repeat)["seconds"] for side in order}
        times.append((found[0], found[1]))
    return summarize(times)


def row(title: str, result: Ratio | str) -> str:
    if isinstance(result, str):
        return f"| {title} | | | {result} | | |"
    quartiles = f"{result.lower:.3f} to {result.upper:.3f}"
    times = f"{duration(result.first)} | {duration(result.second)}"
    return f"| {title} | {times} | {result.median:.3f} | {quartiles} | {result.mark} |"


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revision", metavar="REV", help="the first commit: what the other is compared with")
    parser.add_argument("--against", metavar="REV2", default="HEAD", help="the second commit (default: HEAD)")
    parser.add_argument(
        "--suite", choices=calls.KINDS, nargs="*", default=[], help="kinds of model or layer (default: all)"
    )
    parser.add_argument("--pairs", type=int, default=30, help="of timings for each call (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process (default: 1)")
    parser.add_argument("--small", action="store_true", help="at the small sizes of bench.counts")
    arguments = parser.parse_args(given)
    if arguments.pairs < 2:
        parser.error(f"--pairs must be at least 2, got {arguments.pairs}")
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    arguments = _arguments(given)
    try:
        shas = [commit(revision) for revision in (arguments.revision, arguments.against)]
    except ValueError as error:
        print(f"bench.compare: REV and REV2 must name commits: {error}", file=sys.stderr)
        return 2
    folders = [build(sha) for sha in shas]
    with (
        Worker(folders[0], arguments.threads, arguments.small) as first,
        Worker(folders[1], arguments.threads, arguments.small) as second,
    ):
        for name, sha, worker in zip(("first", "second"), shas, (first, second), strict=True):
            subject = _git("log", "-1", "--format=%s", sha)
            print(
                f"{name}: {sha[:12]} {subject}\n  {', '.join(f'{key} {value}' for key, value in worker.about.items())}"
            )
        print(
            f"\nratio: time of the second commit / time of the first; {arguments.pairs} interleaved pairs; "
            f"marked beyond {MARK:.0%}\n\n"
            "| call | first | second | ratio | quartiles | |\n|---|---:|---:|---:|---:|---|"
        )
        for call in calls.select(arguments.suite):
            print(row(call.title, time_call(call.title, (first, second), arguments.pairs)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
