"""`make wheel`: what the sdist and the wheel have in them, and that the wheel runs where only torch is installed."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch

import ar_fast

ROOT = Path(__file__).resolve().parents[2]
SERIES = ".".join(torch.__version__.split(".")[:2])
TOOLS = ROOT / "requirements-wheel.txt"

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="a wheel for Linux x86-64"),
]


def has_tools() -> bool:
    named = re.findall(r"^(\w+)==", TOOLS.read_text(), re.M)
    done = subprocess.run([sys.executable, "-m", "pip", "show", *named], capture_output=True)
    return done.returncode == 0


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """What `make wheel` writes, in a copy of what git knows."""
    if not has_tools():
        pytest.skip(f"needs pip install -r {TOOLS.name}")
    source = tmp_path_factory.mktemp("source")
    # git's environment names the repository where a hook runs the tests.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, env=clean, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    # What a build leaves in its folder must not be packed.
    (source / "ar_fast" / "libar_fast_ops.so").write_text("not this one")
    (source / "ar_fast" / "_build.json").write_text("{}")
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    command = ["make", "wheel", "VENV=0", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env={**clean, "PATH": path})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of a fresh environment with the wheel and, by links, the torch that is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    found = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    packages = Path(found.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # Not the package itself, nor what puts its source folder on the path.
        if not entry.name.startswith(("ar_fast", "__editable__", "__pycache__")) and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (packages / "ar_fast").is_symlink()
    return python


def run(python: Path, code: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_names_and_the_metadata_say_which_torch_it_fits(dist, wheel):
    version, interpreter = ar_fast.__version__, f"cp{sys.version_info.major}{sys.version_info.minor}"
    variant = torch.__version__.partition("+")[2]
    local = f"torch{SERIES}" + (f".{variant}" if variant == "cpu" else "")
    assert re.fullmatch(
        rf"ar_fast-{version}\+{local}[\w.]*-{interpreter}-{interpreter}-manylinux_2_\d+_x86_64(\.\w+)*\.whl", wheel.name
    )
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert f"torch=={SERIES}.*" in metadata.get_all("Requires-Dist")

    (sources,) = dist.glob("*.tar.gz")
    assert sources.name == f"ar_fast-{version}.tar.gz"
    with tarfile.open(sources) as archive:
        metadata = Parser().parsestr(archive.extractfile(f"ar_fast-{version}/PKG-INFO").read().decode())
    assert metadata["Version"] == version and "torch>=2.11" in metadata.get_all("Requires-Dist")


def test_the_wheel_has_its_own_libraries_and_no_others(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = json.loads(archive.read("ar_fast/_build.json"))
        binaries = [name for name in names if ".so" in name]
        assert sorted(re.sub(r"\.cpython-.*", "", name) for name in binaries) == [
            "ar_fast/_C",
            "ar_fast/libar_fast_ops.so",
        ]
        # No path of the machine where it was built.
        for name in binaries:
            assert str(Path(torch.__file__).parent).encode() not in archive.read(name), name
    assert record["instruction_sets"] == "DEFAULT, AVX2, AVX512" and record["torch"] == torch.__version__
    for needed in ("ar_fast/py.typed", "ar_fast/_C.pyi", "ar_fast/trained/digits/model/model.safetensors"):
        assert needed in names
    assert not [name for name in names if name.split("/")[0] not in ("ar_fast",) and ".dist-info/" not in name]


def test_it_runs_outside_of_the_sources_on_one_openmp_runtime_which_is_torchs(python, tmp_path):
    code = """
import sys, pathlib, torch
import ar_fast
assert pathlib.Path(ar_fast.__file__).is_relative_to(sys.prefix), ar_fast.__file__
torch.set_num_threads(2)
model = ar_fast.models.NADE(784, 500)
x = model.sample(128, seed=0)
model.log_prob(x).sum().backward()
layer = ar_fast.nn.MaskedLinear(300, 200, torch.rand(200, 300) < 0.5)
layer(torch.rand(64, 300))
assert "compiled" == ar_fast.info()["backend"]
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(*sorted(path for path in maps if any(name in path for name in ("libgomp", "libomp", "libiomp"))), sep="\\n")
"""
    (mapped,) = run(python, code, tmp_path).splitlines()
    assert Path(mapped).resolve().parent == (Path(torch.__file__).parent / "lib").resolve()


def test_the_ops_library_finds_torch_by_itself(python, tmp_path):
    """As a program without Python loads it: by the paths that it has in it."""
    code = """
import ctypes, pathlib, sysconfig
ctypes.CDLL(str(pathlib.Path(sysconfig.get_path("purelib"), "ar_fast", "libar_fast_ops.so")))
maps = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(sum(pathlib.Path(path).name == "libtorch_cpu.so" for path in maps), sum("libgomp" in path for path in maps))
"""
    assert run(python, code, tmp_path) == "1 1\n"


def test_trained_models_come_with_it(python, tmp_path):
    command = [python, "-m", "ar_fast", "sample", "digits", "-n", "2", "--seed", "0", "--out", "d.npz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "d.npz").exists(), done.stderr
