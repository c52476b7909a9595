"""Drives CMake. AR_FAST_CPU=auto|all: the instruction sets of the CPU kernels (auto: AVX-512 only where it runs).
AR_FAST_CUDA=auto|0|1 (auto: on where torch is a CUDA build and nvcc is found). AR_FAST_LINEINFO=1 for profilers. CMake
itself reads AR_FAST_CUDA_ARCHITECTURES (90a-real) and torch's TORCH_CUDA_ARCH_LIST (9.0a).

AR_FAST_PURE=1 compiles nothing: every model on the plain-torch references, for machines without a compiler.
AR_FAST_LOCAL_VERSION=1 (make wheel): the version says which torch the wheel fits, as in 0.1.0+torch2.13.cpu."""

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def setting(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        raise SystemExit(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            import torch
        except ImportError:
            raise SystemExit(
                "ar_fast builds against the torch that it will run with: install torch first, then "
                "`pip install --no-build-isolation .` (build isolation hides the installed torch)"
            ) from None
        destination = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        cuda = setting("AR_FAST_CUDA", "auto", ("auto", "0", "1"))
        # One build folder per interpreter, torch and CUDA choice: a second build compiles only what changed.
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}-torch{torch.__version__}-cuda-{cuda}"
        build = ROOT / "build" / tag
        # CMake and Ninja come from PyPI under build isolation and from either place otherwise.
        subprocess.check_call(
            [
                "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-DCMAKE_INSTALL_PREFIX={destination}",
                f"-DAR_FAST_CPU={setting('AR_FAST_CPU', 'auto', ('auto', 'all'))}",
                f"-DAR_FAST_CUDA={cuda}",
                # A build folder of before may have kept the architectures; they are chosen anew (cmake/).
                "-UAR_FAST_CUDA_ARCHITECTURES",
                f"-DAR_FAST_LINEINFO={setting('AR_FAST_LINEINFO', '0', ('0', '1'))}",
            ]
        )  # fmt: skip
        jobs = os.environ.get("MAX_JOBS")
        subprocess.check_call(["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])])
        subprocess.check_call(["cmake", "--install", str(build)])
        record = json.loads((build / "summary.json").read_text())
        record["torch"] = torch.__version__
        (destination / "_build.json").write_text(json.dumps(record, indent=2) + "\n")

    def copy_extensions_to_source(self) -> None:
        """In place and editable: the ops library and the build record lie beside _C."""
        super().copy_extensions_to_source()
        built = Path(self.build_lib) / "ar_fast"
        for file in [*built.glob("libar_fast_ops.*"), built / "_build.json"]:
            shutil.copy2(file, ROOT / "ar_fast" / file.name)


class PureBuild(build_py):
    """The Python files, and a record that says so; nothing that was compiled in the source folder before."""

    def run(self) -> None:
        super().run()
        package = Path(self.build_lib) / "ar_fast"
        for binary in [*package.glob("*.so"), *package.glob("*.dylib")]:
            binary.unlink()
        (package / "_build.json").write_text(json.dumps({"pure": True}) + "\n")


VERSION = runpy.run_path(str(ROOT / "ar_fast" / "_version.py"))["__version__"]
PURE = setting("AR_FAST_PURE", "0", ("0", "1")) == "1"

fits, local = ">=2.11", ""
# A build belongs to the minor version of the torch that it is compiled with; the sources fit them all.
if not PURE and "sdist" not in sys.argv:
    try:
        release, _, variant = importlib.metadata.version("torch").partition("+")
    except importlib.metadata.PackageNotFoundError:
        pass  # building says that torch must be there
    else:
        series = ".".join(release.split(".")[:2])
        fits = f"=={series}.*"
        if setting("AR_FAST_LOCAL_VERSION", "0", ("0", "1")) == "1":
            local = f"+torch{series}" + (f".{variant}" if variant else "")

setup(
    version=VERSION + local,
    install_requires=[f"torch{fits}", "safetensors", "tqdm"],
    ext_modules=[] if PURE else [Extension("ar_fast._C", sources=[])],
    cmdclass={"build_py": PureBuild} if PURE else {"build_ext": CMakeBuild},
)
