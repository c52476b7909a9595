"""Plain mutation of files: no reader may crash, hang, raise anything but its own errors, or take much more memory than
its file is long.

    make fuzz
    PYTHONPATH=.:tests python -m fuzz.fuzzing [TARGET ...] [--count N] [--seed S] [--seconds T]

A batch of cases runs in a process of its own, and each case stands in a file before it is read, so that a crash leaves
the case that caused it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzz.targets import TARGETS, Target

#: A case may take this many seconds of the processor, and address space of this many times its files and the target's
#: slack more.
SECONDS = 10.0
TIMES = 16
BATCH = 500
# Seconds between two looks at a batch.
_LOOK = 0.05
# In memory where there is such a folder: on a disk the files of a case take longer than reading them.
_SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
_NUMBERS = [0, 1, -1, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64, 10**30]
_WORDS = [b"null", b"true", b"[]", b"{}", b'""', b"-", b"1e999", b"NaN", b"[" * 5000, b"\0", b"\xff\xff\xff\xff"]


def mutated(content: bytes, choose: random.Random) -> bytes:
    """The content with one to six random changes."""
    out = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 6))):
        at = choose.randrange(len(out) + 1)
        length = choose.choice((1, 1, 2, 4, 8, 40))
        way = choose.randrange(8)
        if way == 0 and out:
            out[at % len(out)] ^= 1 << choose.randrange(8)
        elif way == 1:
            out[at : at + length] = choose.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif way == 2:
            out[at:at] = choose.randbytes(length)
        elif way == 3:
            del out[at : at + length]
        elif way == 4:
            out[at:at] = out[at : at + choose.randrange(200)]
        elif way == 5 and choose.randrange(4) == 0:
            del out[at:]
        elif way == 6:
            # Another number in the place of one that is written out, as sizes in headers and in JSON are.
            found = [match.span() for match in re.finditer(rb"-?\d+", bytes(out))]
            if found:
                first, last = choose.choice(found)
                out[first:last] = str(choose.choice(_NUMBERS) + choose.choice((0, 0, 1, -1))).encode()
        else:
            out[at : at + length] = choose.choice(_WORDS)
    return bytes(out)


def case(target: Target, seed: int, inputs: list[dict[str, bytes]]) -> dict[str, bytes]:
    """The files of a case, one of which differs from a valid input."""
    choose = random.Random(seed)
    files = dict(choose.choice(inputs))
    name = choose.choice(sorted(files))
    files[name] = target.sealed(mutated(files[name], choose))
    return files


@contextlib.contextmanager
def limited(size: int, slack: int) -> Iterator[None]:
    """Address space and time for a case of ``size`` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + TIMES * size + slack

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"a case took more than {SECONDS} s of the processor")

    # Of this process alone: on a busy machine the time of the clock is others' too.
    old = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGPROF, old)


def _without_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, be it that another error was raised then."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "MemoryError" in str(error):
            return True
        error = error.__context__
    return False


def _write(files: dict[str, bytes], folder: Path) -> None:
    """The folder with these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def run_case(target: Target, files: dict[str, bytes], folder: Path) -> str | None:
    """What is wrong with a case; None if it was read or refused as it should be."""
    _write(files, folder)
    try:
        with limited(sum(map(len, files.values())), target.slack):
            target.read(folder)
    except (ValueError, FileNotFoundError) as error:
        if _without_memory(error):
            return f"more memory than {TIMES} times the file: {error!r}"
    except BaseException:
        return traceback.format_exc()
    return None


def batch(target: Target, seeds: range, folder: Path, inputs: list[dict[str, bytes]]) -> tuple[int, str] | None:
    """The first case of these seeds that fails, and why; run in a child process."""
    own = folder / "files"
    for files in inputs:
        _write({name: target.sealed(content) for name, content in files.items()}, own)
        target.read(own)
    for seed in seeds:
        (folder / "seed").write_text(str(seed))
        wrong = run_case(target, case(target, seed, inputs), own)
        if wrong:
            return seed, wrong
    return None


def fuzz(name: str, count: int, first: int = 0, seconds: float | None = None) -> tuple[int, list[str]]:
    """Runs the cases first ... first + count - 1 of a target, or as many as the seconds allow; how many ran, and what
    went wrong."""
    target, failures, ran, started = TARGETS[name], [], 0, time.monotonic()
    inputs = target.files()
    with tempfile.TemporaryDirectory(dir=_SCRATCH) as scratch:
        folder, at = Path(scratch), first
        while at < first + count and (seconds is None or time.monotonic() - started < seconds):
            seeds = range(at, min(at + BATCH, first + count))
            found = _in_child(target, seeds, folder, inputs)
            if found is not None:
                failures.append(f"{name}, case {found[0]}: {found[1]}")
                if len(failures) == 5:
                    break
            last = seeds.stop if found is None else found[0] + 1
            ran, at = ran + last - at, last
    return ran, failures


def _in_child(target: Target, seeds: range, folder: Path, inputs: list[dict[str, bytes]]) -> tuple[int, str] | None:
    result = folder / "result"
    result.unlink(missing_ok=True)
    (folder / "seed").write_text(str(seeds.start))
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("ignore")
            # The parent's threads are not in a child, which would wait for them.
            torch.set_num_threads(1)
            # What a parser writes to the terminal about a damaged file is of no use here.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            result.write_text(json.dumps(batch(target, seeds, folder, inputs)))
        finally:
            os._exit(0)
    # Beyond Python's reach: a loop in C that looks at no signal, or a wait that takes no time of the processor. Looks
    # are counted, not seconds: where both processes are paused, neither goes on.
    current, looks = "", 0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        at = (folder / "seed").read_text()
        current, looks = at, looks + 1 if at == current else 0
        if looks * _LOOK > SECONDS * 10:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return int(current), "it went on without an end"
        time.sleep(_LOOK)
    if not result.exists():
        return int((folder / "seed").read_text()), f"the process ended with status {status}"
    found = json.loads(result.read_text())
    return None if found is None else (found[0], found[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--count", type=int, default=100_000, help="cases of each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="stop a target after this many seconds")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.targets or TARGETS:
        started = time.monotonic()
        ran, failures = fuzz(name, arguments.count, arguments.seed, arguments.seconds)
        print(f"{name}: {ran} cases, {len(failures)} failures, {time.monotonic() - started:.0f} s", flush=True)
        for failure in failures:
            print(failure, flush=True)
        failed = failed or bool(failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
