"""bench/gpu.sh without a GPU: every command that it calls is a stand-in that notes its arguments."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Fails where its arguments contain FAIL; prints what the script reads.
STAND_IN = """#!/bin/bash
name=$(basename "$0")
echo "$name $*" >> "$CALLS"
echo "$name: AR_FAST_CUDA_ARCHITECTURES=${AR_FAST_CUDA_ARCHITECTURES:-} AR_FAST_CUDA=${AR_FAST_CUDA:-}" >> "$CALLS.env"
if [[ -n "${FAIL:-}" && "$name $*" == *"$FAIL"* ]]; then echo "it failed"; exit 3; fi
if [[ "$name" == nvidia-smi && "$*" == *compute_cap* ]]; then echo "${CAPABILITY:-9.0}"; fi
exit 0
"""
TOOLS = ("python3", "nvidia-smi", "nvcc", "compute-sanitizer", "ncu")


@pytest.fixture
def script(tmp_path):
    """Runs a copy of the script in a folder of its own; returns the process, the calls, and the summary."""
    (tmp_path / "bench").mkdir()
    shutil.copy(ROOT / "bench" / "gpu.sh", tmp_path / "bench")
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).write_text(STAND_IN)
        (folder / tool).chmod(0o755)
    calls = tmp_path / "calls"

    def run(without=(), **environment):
        for tool in without:
            (folder / tool).unlink()
        # Of the machine's own tools only the plain ones.
        names = ["bash", "git", "date", "mkdir", "dirname", "basename", "tar", "gzip", "timeout", "tee", "tail", "head"]
        names += ["tr", "grep", "nproc", "cat", "cp"]
        for name in names:
            if shutil.which(name) and not (folder / name).exists():
                (folder / name).symlink_to(shutil.which(name))
        calls.write_text("")
        inherited = {k: v for k, v in os.environ.items() if k not in ("TORCH_CUDA_ARCH_LIST", "OUT")}
        done = subprocess.run(
            ["bash", str(tmp_path / "bench" / "gpu.sh")], capture_output=True, text=True,
            env={**inherited, "PATH": str(folder), "CALLS": str(calls), **environment},
        )  # fmt: skip
        (summary,) = (tmp_path / "bench" / "results").glob("gpu-*/summary.txt")
        return done, calls.read_text().splitlines(), summary.read_text()

    return run


def parts(summary):
    return [line.split(":")[0] for line in summary.splitlines() if ": exit" in line]


def test_every_part_runs_in_order_and_lands_in_the_archive(script, tmp_path):
    (tmp_path / "out").mkdir()
    done, calls, summary = script(OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    order = ["build", "info", "smoke", "reference", "bench", "tests", "sanitizer-memcheck", "sanitizer-racecheck",
             "sanitizer-synccheck"]  # fmt: skip
    found = parts(summary)
    assert found[: len(order)] == order and found[-1] == "compile"
    assert len([part for part in found if part.startswith("ncu-")]) == 8
    (archive,) = (tmp_path / "out").glob("gpu-*.tar.gz")
    with tarfile.open(archive) as files:
        names = {Path(name).name for name in files.getnames()}
    assert {"machine.txt", "summary.txt", "smoke.log", "tests.log", "compile.log"} <= names
    environment = (tmp_path / "calls.env").read_text().splitlines()
    assert "python3: AR_FAST_CUDA_ARCHITECTURES=90a-real AR_FAST_CUDA=1" in environment
    (tests,) = (call for call in calls if "pytest" in call)
    assert "--test-seconds" in tests and "-n 4" in tests
    (reference,) = (call for call in calls if "bench.reference" in call)
    (bench,) = (call for call in calls if "--compile-seconds 0" in call)
    assert calls.index(reference) < calls.index(bench)


@pytest.mark.parametrize("failing", ["setup.py", "bench.smoke --device cuda"])
def test_nothing_is_measured_after_a_build_or_an_op_that_fails(script, failing):
    done, calls, summary = script(FAIL=failing)
    assert done.returncode == 1
    assert not any("bench.reference" in call or "pytest" in call or "ncu" in call for call in calls)
    assert "exit 3" in summary and "it failed" in done.stdout
    assert "tar.gz" in done.stdout


def test_a_part_that_fails_leaves_the_others(script):
    done, _, summary = script(FAIL="-m pytest")
    assert done.returncode == 1
    assert "tests: exit 3" in summary and "compile: exit 0" in summary


def test_tools_that_are_missing_are_said(script):
    done, calls, summary = script(without=["ncu", "compute-sanitizer"], FAIL="import xdist")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pytest-xdist is not there" in summary and not any("-n 4" in call for call in calls)
    assert "compute-sanitizer: not here, skipped" in summary
    assert summary.count("it does not run here, skipped") == 8


def test_a_kernel_that_ncu_cannot_run_is_skipped(script):
    done, _, summary = script(FAIL="regex:nade_scan_kernel --launch-count 1 --metrics")
    assert done.returncode == 0
    assert "ncu nade_scan_kernel: it does not run here, skipped" in summary
    assert len([part for part in parts(summary) if part.startswith("ncu-")]) == 7


def test_architectures_that_are_given_are_passed_on(script, tmp_path):
    script(AR_FAST_CUDA_ARCHITECTURES="80-real")
    assert "python3: AR_FAST_CUDA_ARCHITECTURES=80-real AR_FAST_CUDA=1" in (tmp_path / "calls.env").read_text()


@pytest.mark.parametrize(("capability", "chosen"), [("8.0", "80-real"), ("12.0", "120-real"), ("?", "")])
def test_architectures_follow_the_gpu(script, tmp_path, capability, chosen):
    script(CAPABILITY=capability)
    assert f"python3: AR_FAST_CUDA_ARCHITECTURES={chosen} AR_FAST_CUDA=1" in (tmp_path / "calls.env").read_text()


def test_an_archive_that_cannot_be_written_is_said(script, tmp_path):
    (tmp_path / "tools" / "gzip").write_text("#!/bin/false")
    (tmp_path / "tools" / "gzip").chmod(0o755)
    done, _, summary = script()
    assert done.returncode == 1 and "archive: it was not written" in summary


def test_it_stops_in_time(script):
    done, calls, summary = script(SECONDS_IN_ALL="20")
    assert done.returncode == 1
    assert "build: no time left" in summary
    assert not any("setup.py" in call for call in calls)


def architectures(*definitions, **environment):
    cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
    inherited = {k: v for k, v in os.environ.items() if k not in ("TORCH_CUDA_ARCH_LIST", "AR_FAST_CUDA_ARCHITECTURES")}
    done = subprocess.run(
        [cmake, *definitions, "-P", str(ROOT / "cmake" / "cuda_architectures.cmake")],
        capture_output=True, text=True, env={**inherited, **environment},
    )  # fmt: skip
    return done.stderr.strip() if done.returncode == 0 else " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, "75-real;80-real;90a-real;80-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0"}, "90-real"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0a"}, "90a-real"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;9.0a+PTX"}, "80-real;90a-real;90a-virtual"),
        ({"TORCH_CUDA_ARCH_LIST": "8.0 8.6 8.0"}, "80-real;86-real"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper;10.0"}, "90-real;90-virtual;100-real"),
        ({"AR_FAST_CUDA_ARCHITECTURES": "90a-real", "TORCH_CUDA_ARCH_LIST": "8.0"}, "90a-real"),
        ({"AR_FAST_CUDA_ARCHITECTURES": "80-real 80-virtual"}, "80-real;80-virtual"),
    ],
)
def test_the_environment_chooses_architectures(environment, chosen):
    assert architectures(**environment) == chosen


@pytest.mark.parametrize(
    ("given", "words"),
    [("Volta", "got 'Volta'"), ("7.0", "before 7.5, got '7.0'"), ("90", "got '90'"), ("8.0;fast", "got 'fast'")],
)
def test_other_architectures_are_refused(given, words):
    assert words in architectures(TORCH_CUDA_ARCH_LIST=given)


def test_a_definition_comes_before_the_environment():
    assert architectures("-DAR_FAST_CUDA_ARCHITECTURES=86-real", TORCH_CUDA_ARCH_LIST="9.0") == "86-real"
