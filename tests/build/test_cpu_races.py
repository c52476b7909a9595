"""The CPU ops under ThreadSanitizer, on an OpenMP runtime of our own (csrc/testing/threads), whose waits it sees.

Nothing of ours is suppressed; torch's libraries are not instrumented, and what they do is not looked at. The cases are
those of thread_cases.py, which run every parallel region there is.
"""

import functools
import re
import subprocess
import sys
from pathlib import Path

import installed
import pytest
import thread_cases

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(installed.COMPILER is None, reason="needs g++, whose ThreadSanitizer is used"),
    pytest.mark.skipif(sys.platform != "linux", reason="the runtime is loaded by LD_PRELOAD"),
]
FOUND = 66


def package() -> Path:
    # The baseline's kernels have the same sources, and their loads are all instrumented; those of AVX-512 under a mask
    # are not.
    return installed.package("sanitized-thread", "-DAR_FAST_SANITIZER=thread", "-DAR_FAST_CPU=baseline")


def run(*cases: str, **environment: str) -> subprocess.CompletedProcess:
    return installed.python(
        package(),
        installed.ROOT / "tests" / "thread_cases.py", *cases,
        preload=("libtsan.so", "libstdc++.so"),
        TSAN_OPTIONS=f"ignore_noninstrumented_modules=1 halt_on_error=1 exitcode={FOUND}",
        ATEN_CPU_CAPABILITY="default",
        **environment,
    )  # fmt: skip


def assert_reported(case: str, **broken: str) -> str:
    """``broken``: what the runtime makes wrong (csrc/testing/threads)."""
    done = run(case, **broken)
    assert done.returncode == FOUND, f"{case}, {broken}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "WARNING: ThreadSanitizer: data race" in done.stderr
    return done.stderr


def regions() -> dict[str, str]:
    """The parallel regions of the library: where each lies, and its name."""
    symbols = installed.run("nm", package() / "ar_fast" / "libar_fast_ops.so")
    return dict(re.findall(r"^0*([0-9a-f]+) . (.*\._omp_fn\..*)", symbols, re.MULTILINE))


@functools.cache
def regions_of_cases() -> dict[str, list[str]]:
    """Runs all cases, where no race may be: the regions that several threads run in each."""
    done = run(AR_FAST_REGIONS="1")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: dict[str, list[str]] = {}
    for kind, said in re.findall("^(case|region): (.*)", done.stderr, re.MULTILINE):
        if kind == "case":
            found[said] = []
        else:
            list(found.values())[-1].append(said)
    return found


def test_no_race():
    assert list(regions_of_cases()) == list(thread_cases.CASES)
    assert all(regions_of_cases().values()), "a case runs on one thread"


def test_every_region_is_run():
    run_by_a_case = {place for places in regions_of_cases().values() for place in places}
    assert not [name for place, name in regions().items() if place not in run_by_a_case]
    assert run_by_a_case == set(regions())


def test_shares_that_overlap_are_reported_in_every_region():
    first_case = {place: case for case, places in reversed(regions_of_cases().items()) for place in places}
    for place, name in regions().items():
        if "draw_wavefront" not in name:  # whose threads share by counters, as below
            assert_reported(first_case[place], AR_FAST_OVERLAP=place)


@pytest.mark.parametrize("case", thread_cases.WITH_BARRIERS)
def test_a_barrier_that_lets_all_through_is_reported(case):
    assert_reported(case, AR_FAST_BREAK="barriers")


@pytest.mark.parametrize("case", thread_cases.WITH_COUNTERS)
def test_counters_that_order_nothing_are_reported(case):
    assert "offset_nade.cpp" in assert_reported(case, AR_FAST_BREAK="loads")
