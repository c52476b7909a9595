"""The C++ sources compile with the headers of the oldest torch that the package is meant for."""

import concurrent.futures
import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST = "2.11.0"
KERNELS = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c", "-DAR_FAST_AVX2"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma", "-mf16c", "-DAR_FAST_AVX512"],
}

pytestmark = pytest.mark.full


def headers() -> Path:
    """torch's include folder: from a wheel of half a gigabyte, which is fetched once and not kept."""
    folder = ROOT / "build" / f"torch-{OLDEST}"
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            f"torch=={OLDEST}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"torch {OLDEST} cannot be fetched here: {done.stderr.strip().splitlines()[-1:]}")
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith("torch/include/")])
        wheel.unlink()
        (folder / "complete").touch()
    return folder / "torch" / "include"


def commands(include: Path) -> dict[str, list[str]]:
    """What compiles each source without writing anything, by a name."""
    system = [include, include / "torch/csrc/api/include", sysconfig.get_paths()["include"], pybind11.get_include()]
    common = [os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-w"]
    common += [f"-isystem{path}" for path in system] + ["-DAR_FAST_X86", "-DTORCH_EXTENSION_NAME=_C"]
    csrc, found = ROOT / "csrc", {}
    for source in [
        csrc / "bindings.cpp",
        *sorted((csrc / "ops").glob("*.cpp")),
        *sorted((csrc / "ops/cpu").glob("*.cpp")),
    ]:
        found[str(source.relative_to(csrc))] = [*common, str(source)]
    for name, flags in KERNELS.items():
        chosen = [*flags, f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}"]
        for source in sorted((csrc / "kernels/cpu").glob("*.cpp")):
            found[f"{source.name} for {name}"] = [*common, *chosen, str(source)]
    if shutil.which("nvcc") is not None:
        for source in sorted((csrc / "ops/cuda").glob("*.cpp")):
            found[str(source.relative_to(csrc))] = [*common, *cuda_folders(), str(source)]
    return found


@functools.cache
def cuda_folders() -> list[str]:
    """Where nvcc looks for CUDA's headers, as it says itself."""
    done = subprocess.run(["nvcc", "--dryrun", "-c", "x.cu"], capture_output=True, text=True)
    said = re.findall(r"^#\$ (?:SYSTEM_)?INCLUDES=(.*)$", done.stderr, re.MULTILINE)
    return [f"-isystem{path}" for path in re.findall(r"[^\s\"]*/include[^\s\"]*", " ".join(said).replace("-I", ""))]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are those of x86")
def test_the_sources_compile_with_the_oldest_torch():
    def compile_one(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr

    by_name = commands(headers())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        said = dict(zip(by_name, pool.map(compile_one, by_name.values()), strict=True))
    assert len(by_name) > 80
    assert {name: text for name, text in said.items() if text} == {}
