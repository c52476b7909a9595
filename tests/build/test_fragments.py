"""The emulation's ldmatrix and mma.sync against an independent source: the layouts in CuTe's traits, which NVIDIA uses
for the instructions themselves. The wheel nvidia-cutlass has them (extra "fragments"); a host compiler reads them.
"""

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import emulated
import pytest
import torch

SOURCE = Path(__file__).resolve().parents[2] / "csrc" / "testing" / "cute_layouts.cc"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = pytest.mark.full


def cutlass_headers() -> Path | None:
    """AR_FAST_CUTLASS names CUTLASS's include folder; else that of the installed wheel."""
    if named := os.environ.get("AR_FAST_CUTLASS"):
        return Path(named)
    found = importlib.util.find_spec("cutlass_library")
    headers = Path(found.origin).parent / "source" / "include" if found else None
    return headers if headers and headers.is_dir() else None


def cuda_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    roots = [Path(nvcc).resolve().parents[1]] if nvcc else []
    roots += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    return next((root / "include" for root in roots if (root / "include" / "cuda_fp16.h").exists()), None)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[str, torch.Tensor]:
    """name -> (threads, values) of indices."""
    cutlass, cuda = cutlass_headers(), cuda_headers()
    if cutlass is None:
        pytest.skip("needs CuTe's headers: pip install nvidia-cutlass, or AR_FAST_CUTLASS")
    if cuda is None or COMPILER is None:
        pytest.skip("needs CUDA's headers and g++")
    program = tmp_path_factory.mktemp("cute") / "cute_layouts"
    include = [f"-I{folder}" for folder in (cutlass, cuda, cuda / "cccl")]
    subprocess.run([COMPILER, "-std=c++17", "-w", "-x", "c++", SOURCE, *include, "-o", program], check=True)
    found = {}
    for line in subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines():
        name, threads, values, *indices = line.split()
        found[name] = torch.tensor([int(index) for index in indices]).reshape(int(threads), int(values))
    return found


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize(("kind", "name", "depth"), [(0, "float16", 16), (1, "bfloat16", 16), (2, "tf32", 8)])
def test_products(layouts, kind, name, depth):
    """Small integers are exact in every type. CuTe's indices go down the columns of a (M, K), b (N, K) and c (M, N)."""
    generator = torch.Generator().manual_seed(4)
    a, b, c = (torch.randint(-8, 9, shape, generator=generator).float() for shape in ((16, depth), (8, depth), (16, 8)))
    of_lanes = {part: layouts[f"{name}_{part}"] for part in "abc"}
    registers = {}
    for part, matrix in (("a", a), ("b", b)):
        values = matrix.T.flatten()[of_lanes[part]]
        typed = values if name == "tf32" else values.to(getattr(torch, name))
        registers[part] = typed.contiguous().view(torch.int32).contiguous()
    assert registers["a"].shape == (32, 4) and registers["b"].shape == (32, 2)
    sums = c.T.flatten()[of_lanes["c"]].contiguous()
    library = emulated.load()
    call = library.ar_fast_test_multiply_fragments
    assert call(kind, pointer(registers["a"]), pointer(registers["b"]), pointer(sums)) == 0
    expected = a @ b.T + c
    assert torch.equal(sums, expected.T.flatten()[of_lanes["c"]])


@pytest.mark.parametrize("transposed", [False, True])
def test_loads(layouts, transposed):
    """CuTe's indices are bits of the 32 rows of 16 bytes that the lanes bring."""
    name = "ldmatrix_transposed" if transposed else "ldmatrix"
    assert torch.equal(layouts[f"{name}_from"], torch.arange(32 * 128).reshape(32, 128))
    rows = torch.arange(256, dtype=torch.int16)
    aligned = torch.empty(256 + 8, dtype=torch.int16)
    past = -aligned.data_ptr() % 16 // 2
    aligned[past : past + 256] = rows
    fragments = torch.zeros(32, 4, dtype=torch.int32)
    call = emulated.load().ar_fast_test_load_fragments
    source = ctypes.c_void_p(aligned.data_ptr() + 2 * past)
    assert call(source, pointer(fragments), ctypes.c_bool(transposed)) == 0
    bits = layouts[f"{name}_to"].reshape(32, 8, 16)
    assert torch.equal(bits - bits[..., :1], torch.arange(16).expand_as(bits))  # whole elements
    assert torch.equal(fragments.view(torch.int16).long(), bits[..., 0] // 16)
