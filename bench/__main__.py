"""python -m bench: runs the benchmarks, prints their tables and writes them to bench/results/."""

import argparse
import gc
import sys
import time
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import torch

from .prediction import table as prediction
from .run import SUITES, environment, run_case, select
from .settings import Settings
from .tables import case_table, grid_table, write


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--suite", choices=SUITES, nargs="*", default=list(SUITES), help="which (default: all)")
    parser.add_argument("--full", action="store_true", help="more cases: gradients over the grid, more peers")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--seconds", type=float, default=0.5, help="time per contender and case (default: 0.5)")
    parser.add_argument("--compile-seconds", type=float, default=150, help="longest torch.compile, 0 = without it")
    parser.add_argument("--compiled", action="store_true", help="only the cases that torch.compile takes part in")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case begins")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the results go")
    parser.add_argument(
        "--predict", action="store_true", help="instead: times of the CUDA kernels, predicted and not measured"
    )
    parser.add_argument("--json", type=Path, help="with --predict: also write the predictions to this file")
    parser.add_argument("--name", help="of the result files (default: cpu or cuda)")
    arguments = parser.parse_args()
    if arguments.json and not arguments.predict:
        parser.error("--json goes with --predict")
    return arguments


def main() -> int:
    arguments = _arguments()
    if arguments.predict:
        found = prediction.rows()
        print(prediction.text(found), end="")
        if arguments.json:
            prediction.write(arguments.json, found)
        return 0
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda was asked for, but torch sees no CUDA device", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = Settings(device, arguments.full, arguments.tiny, arguments.seconds, arguments.compile_seconds)
    start, rows = time.perf_counter(), []
    where = environment(device) | {"settings": {name: str(value) for name, value in asdict(settings).items()}}
    print(
        f"{where['device']}, {where['cpu_capability']}, {where['threads']} threads, torch {where['torch']}\n",
        flush=True,
    )
    for _, cases in groupby(select(settings, arguments.suite), key=lambda case: (case.name, case.data)):
        group = []
        cases = list(cases)
        for case in cases:
            if arguments.compiled and not any("torch.compile" in name for name in case.contenders):
                continue
            if time.perf_counter() - start > arguments.budget:
                print(f"no time left for {case.title}", file=sys.stderr, flush=True)
                continue
            print(f"... {case.title}", file=sys.stderr, flush=True)
            group.append(run_case(case, settings))
            gc.collect()
        if not group:
            continue
        rows += [row for part in group for row in part]
        # After every case, so that a run that is cut off leaves what it had.
        paths = write(arguments.out, arguments.name or device.type, rows, where)
        print((grid_table if len(group) > 1 else case_table)([row for part in group for row in part]), flush=True)
    if not rows:
        print("bench: no case was run", file=sys.stderr)
        return 1
    print(f"{time.perf_counter() - start:.0f} s; written to {paths[0]} and {paths[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
