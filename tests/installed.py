"""Packages of their own that tests compile from the sources: by another compiler, or with sanitizers."""

import fcntl
import filecmp
import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# requirements-libraries.txt has tools too, of which clang++ is one.
PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
CLANG = shutil.which("clang++", path=PATH)


def attempt(*command: str | Path, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": PATH, **environment}
    )


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """What a command prints; a failure shows the end of it."""
    done = attempt(*command, folder=folder, **environment)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return done.stdout + done.stderr


@functools.cache
def package(name: str, *options: str) -> Path:
    """Compiles ``ar_fast`` with options of CMake in build/NAME, where it is out of date; returns the package's folder.

    No warning is allowed. Of several workers of pytest-xdist one builds, and the others wait for it; what has not
    changed is left alone, since their processes may be reading it.
    """
    build = ROOT / "build" / name
    folder = build / "package"
    folder.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configured = run(
            "cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_INSTALL_PREFIX={folder / 'ar_fast'}", "-DAR_FAST_CUDA=0", *options,
        )  # fmt: skip
        said = run("cmake", "--build", build, "-j", os.environ.get("MAX_JOBS", "2"))
        assert "warning:" not in configured + said, said
        left_out = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / "ar_fast", folder / "ar_fast", False, left_out, _copy_changed, dirs_exist_ok=True)
        run("cmake", "--install", build)
        record = json.loads((build / "summary.json").read_text()) | {"torch": torch.__version__}
        (build / "_build.json").write_text(json.dumps(record))
        _copy_changed(build / "_build.json", folder / "ar_fast" / "_build.json")
    return folder


def _copy_changed(source: str | Path, target: str | Path) -> None:
    if not os.path.exists(target) or not filecmp.cmp(source, target, shallow=False):
        shutil.copy2(source, target)


def python(
    folder: Path, *arguments: str | Path, preload: tuple[str, ...] = (), compiler: str = COMPILER, **environment: str
) -> subprocess.CompletedProcess:
    """Runs Python on the package in ``folder``, with libraries of the compiler that a process has to load first."""
    if preload:
        found = [run(compiler, f"-print-file-name={library}").strip() for library in preload]
        environment["LD_PRELOAD"] = " ".join(found)
    path = os.pathsep.join(str(place) for place in (folder, ROOT, ROOT / "tests"))
    return attempt(sys.executable, *arguments, folder=folder, **{"PYTHONPATH": path, **environment})
