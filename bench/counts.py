"""python -m bench.counts: instructions of the reference calls, counted by callgrind and compared with counts.json.

A count hardly depends on what else the machine does, so that it shows a loss of a few percent that no stopwatch shows.
It depends on the compiler and on the versions of torch and others, which stand in counts.json: where they differ,
nothing is compared. One thread, AVX2 (valgrind knows no AVX-512), small sizes. "library" is what libar_fast_ops.so
executes: kernels, checks and dispatch; "total" is all of the call, with Python, torch and its matrix products.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

import ar_fast
from ar_fast import _library

from . import calls

ROOT = Path(__file__).parents[1]
RECORD = Path(__file__).with_name("counts.json")
LIBRARY = "libar_fast_ops.so"
TOLERANCE = 0.02

Counts = dict[str, dict[str, int]]

# torch's wheel brings the header. Instrumentation is off until everything is imported, built and warm: under it the
# import of torch alone takes minutes.
HEADER = Path(torch.__file__).parent / "utils" / "benchmark" / "utils" / "valgrind_wrapper"
CLIENT_REQUESTS = """
#include "callgrind.h"
void instrument(void) { CALLGRIND_START_INSTRUMENTATION; }
void start(void) { CALLGRIND_TOGGLE_COLLECT; }
void stop(const char* title) { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(title); }
"""


def parse(dump: str) -> dict[str, int]:
    """The instructions that each object file executed itself, from a callgrind dump without compressed names.

    Raises:
        ValueError: if they do not add up to the total that the dump states.
    """
    found: dict[str, int] = defaultdict(int)
    total, current, skip = None, "", False
    for line in dump.splitlines():
        if line.startswith("ob="):
            current = line[3:]
        elif line.startswith("calls="):
            # The next line is the cost of the callee, which is counted where it was executed.
            skip = True
        elif line.startswith("totals:"):
            total = int(line.split()[1])
        elif line[:1].isdigit():
            fields = line.split()
            if not skip and len(fields) > 1:
                found[current] += int(fields[1])
            skip = False
    if total is None or sum(found.values()) != total:
        raise ValueError(f"callgrind: the lines of a dump add up to {sum(found.values())}, its total is {total}")
    return dict(found)


def title_of(dump: str) -> str | None:
    """The title that the call was dumped with; None for the dump at the end of the process."""
    prefix = "desc: Trigger: Client Request: "
    return next((line[len(prefix) :] for line in dump.splitlines() if line.startswith(prefix)), None)


def of_objects(objects: dict[str, int]) -> dict[str, int]:
    library = sum(count for path, count in objects.items() if Path(path).name == LIBRARY)
    return {"library": library, "total": sum(objects.values())}


def missing() -> str | None:
    """Why nothing can be counted here, or None."""
    if _library.backend != "compiled":
        return "AR_FAST_BACKEND=reference: there are no kernels to count"
    for tool in ("valgrind", _compiler()):
        if shutil.which(tool) is None:
            return f"{tool} was not found"
    return None


def environment() -> dict[str, str]:
    """What a count depends on beside ar_fast's sources. Valgrind shows the same CPU to every program."""
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return {
        "compiler": str(ar_fast.info()["compiler"]),
        "instruction_set": "AVX2" if wide else "DEFAULT",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": subprocess.run(
            ["valgrind", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip(),
    }


def changed(recorded: dict[str, str], here: dict[str, str]) -> str | None:
    """Why counts recorded there say nothing here, or None."""
    differ = [
        f"{name} {here.get(name)} (recorded: {value})" for name, value in recorded.items() if here.get(name) != value
    ]
    return f"counts.json was recorded with other versions: {', '.join(differ)}" if differ else None


def _compiler() -> str:
    return os.environ.get("CC", "cc")


def measure(titles: Sequence[str]) -> Counts:
    """Counts each call once, all in one process.

    Raises:
        RuntimeError: if the process fails or a count is missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        shim, out = Path(folder) / "requests.so", Path(folder) / "callgrind"
        source = shim.with_suffix(".c")
        source.write_text(CLIENT_REQUESTS)
        subprocess.run(
            [_compiler(), "-O1", "-shared", "-fPIC", f"-I{HEADER}", str(source), "-o", str(shim)], check=True
        )
        command = [
            "valgrind", "--tool=callgrind", "--instr-atstart=no", "--collect-atstart=no", "--compress-strings=no",
            "--compress-pos=no", f"--callgrind-out-file={out}", sys.executable, "-m", "bench.counted", str(shim),
            *titles,
        ]  # fmt: skip
        fixed = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "ATEN_CPU_CAPABILITY": "avx2"}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | fixed, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"bench.counted failed under valgrind:\n{done.stderr[-3000:]}")
        counts = {}
        for path in Path(folder).glob("callgrind.*"):
            dump = path.read_text()
            if (title := title_of(dump)) is not None:
                counts[title] = of_objects(parse(dump))
    if set(counts) != set(titles):
        raise RuntimeError(f"bench.counted: no count of {', '.join(sorted(set(titles) - set(counts)))}")
    return {title: counts[title] for title in titles}


def differences(recorded: Counts, measured: Counts, tolerance: float = TOLERANCE) -> list[str]:
    """A line for each count that is further from the recorded one than the tolerance, in either direction: a gain that
    is not recorded could be lost again unseen."""
    lines = []
    for title in [*recorded, *(title for title in measured if title not in recorded)]:
        if title not in recorded or title not in measured:
            lines.append(f"{title}: {'not counted any more' if title in recorded else 'not recorded'}")
            continue
        for part, before in recorded[title].items():
            now = measured[title][part]
            if abs(now - before) > tolerance * before:
                lines.append(f"{title}, {part}: {now:,} instructions, recorded {before:,} ({now / before - 1:+.1%})")
    return lines


def table(measured: Counts, recorded: Counts) -> str:
    lines = ["| call | library | recorded | total | recorded |", "|---|---:|---:|---:|---:|"]
    for title, parts in measured.items():
        cells = []
        for part in ("library", "total"):
            before = recorded.get(title, {}).get(part)
            cells += [f"{parts[part]:,}", "" if not before else f"{parts[part] / before - 1:+.2%}"]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(repeats: Sequence[Counts]) -> dict[str, dict[str, float]]:
    """(Largest - smallest) / smallest of each count over repeated measurements."""
    result = {}
    for title, parts in repeats[0].items():
        values = {part: [counts[title][part] for counts in repeats] for part in parts}
        result[title] = {part: (max(each) - min(each)) / min(each) for part, each in values.items()}
    return result


def read() -> dict:
    return json.loads(RECORD.read_text())


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.counts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write the counts to counts.json")
    parser.add_argument(
        "--suite", choices=calls.KINDS, nargs="*", default=[], help="kinds of model or layer (default: all)"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="count several times, and print how far the counts differ"
    )
    arguments = parser.parse_args(given)
    if arguments.update and arguments.suite:
        parser.error("--update records every call: leave --suite out")
    if arguments.repeat < 1:
        parser.error(f"--repeat must be at least 1, got {arguments.repeat}")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    arguments = _arguments(given)
    if (reason := missing()) is not None:
        print(f"bench.counts: {reason}", file=sys.stderr)
        return 2
    here = environment()
    titles = [call.title for call in calls.select(arguments.suite)]
    repeats = [measure(titles) for _ in range(arguments.repeat)]
    measured = repeats[0]
    print(", ".join(f"{name} {value}" for name, value in here.items()) + "\n")
    record = read() if RECORD.exists() else {"environment": here, "counts": {}}
    recorded = {title: parts for title, parts in record["counts"].items() if arguments.suite == [] or title in titles}
    print(table(measured, recorded))
    if arguments.repeat > 1:
        print(f"\nspread over {arguments.repeat} measurements, library and total:")
        for title, parts in spread(repeats).items():
            print(f"{title}: {parts['library']:.3%}, {parts['total']:.3%}")
    if arguments.update:
        RECORD.write_text(json.dumps({"environment": here, "counts": measured}, indent=1) + "\n")
        print(f"\nwritten to {RECORD.relative_to(ROOT)}")
        return 0
    if (reason := changed(record["environment"], here)) is not None:
        print(f"\n{reason}; nothing is compared", file=sys.stderr)
        return 2
    lines = differences(recorded, measured)
    print("\n" + "\n".join(lines or [f"every count is within {TOLERANCE:.0%} of the recorded one"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
