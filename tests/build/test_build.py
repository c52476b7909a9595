"""The build: what ships, what a wrong environment is told, and that the ops library has no Python in it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

import ar_fast

PACKAGE = Path(ar_fast.__file__).parent
ROOT = Path(__file__).resolve().parents[2]


def run(code: str, path: Path = PACKAGE.parent, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=path,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package without its binaries."""
    shutil.copytree(PACKAGE, tmp_path / "ar_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def libraries_needed() -> list[str]:
    done = subprocess.run(["readelf", "-d", PACKAGE / "libar_fast_ops.so"], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)


def test_another_torch_gives_a_clear_message(copy):
    record = json.loads((copy / "ar_fast" / "_build.json").read_text())
    (copy / "ar_fast" / "_build.json").write_text(json.dumps({**record, "torch": "2.7.1"}))
    done = run("import ar_fast", copy)
    assert done.returncode != 0
    assert f"built for torch 2.7.1, but this is torch {torch.__version__}" in done.stderr
    assert '`pip install "torch==2.7.*"`' in done.stderr and "pip install --no-build-isolation --force" in done.stderr


def test_nothing_compiled_gives_a_clear_message(copy):
    (copy / "ar_fast" / "_build.json").unlink()
    done = run("import ar_fast", copy)
    assert done.returncode != 0 and "ar_fast was not compiled: run `pip install" in done.stderr


def test_a_source_folder_that_hides_the_installed_package_is_said_so(copy, tmp_path):
    (copy / "ar_fast" / "_build.json").unlink()
    code = "import sys; sys.path.append({!r}); import ar_fast"
    done = run(code.format(str(PACKAGE.parent)), copy)
    assert done.returncode != 0 and "run `pip install" not in done.stderr
    assert f"imported from a source folder that was not compiled, {copy / 'ar_fast'}" in done.stderr
    assert f"hides the package that is installed in {PACKAGE}" in done.stderr
    assert "start Python in another folder" in done.stderr and "pip install --no-build-isolation -e ." in done.stderr


def test_the_reference_backend_runs_where_nothing_was_compiled(copy):
    (copy / "ar_fast" / "_build.json").unlink()
    code = (
        "import ar_fast, torch; m = ar_fast.models.NADE(5, 3); print(ar_fast.info()['backend'], "
        "m.log_prob(torch.ones(2, 5)).shape, m.sample(3, seed=1).shape)"
    )
    done = run(code, copy, AR_FAST_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("reference torch.Size([2]) torch.Size([3, 5])")
    assert done.stderr.count("the plain-torch references run") == 1


@pytest.mark.parametrize("compiled", [True, False])
def test_the_reference_backend_checks_by_the_compiled_ops_where_there_are_any(copy, compiled):
    if compiled:
        shutil.copy2(PACKAGE / "libar_fast_ops.so", copy / "ar_fast")
    else:
        (copy / "ar_fast" / "_build.json").unlink()
    code = (
        "import ar_fast, torch; print(ar_fast.info()['backend'], hasattr(torch.ops.ar_fast, 'nade')); "
        "w = torch.ones(4, 3); "
        "ar_fast.functional.nade(torch.ones(2, 4), w, torch.ones(4), w, torch.ones(4))"
    )
    done = run(code, copy, AR_FAST_BACKEND="reference")
    assert done.returncode != 0 and done.stdout.strip() == f"reference {compiled}"
    own, table = "in_bias must have 3 hidden units, as in_weight has,", "in_bias must have shape (H) or (B, H) with"
    assert (own if compiled else table) in done.stderr


def test_an_unknown_backend_raises():
    done = run("import ar_fast", AR_FAST_BACKEND="fast")
    assert done.returncode != 0
    assert "AR_FAST_BACKEND must be one of compiled, reference, got 'fast'" in done.stderr


def test_cpu_capability_is_obeyed():
    for capability, name in {"default": "DEFAULT", "avx2": "AVX2"}.items():
        done = run("import ar_fast; print(ar_fast.info()['cpu_isa'])", ATEN_CPU_CAPABILITY=capability)
        assert done.stdout.strip() == name


def test_the_instruction_sets_are_those_that_run_here():
    sets = ar_fast.info()["cpu_instruction_sets"]
    runs = torch.backends.cpu.get_cpu_capability()
    if os.environ.get("AR_FAST_CPU", "auto") == "auto" and "ATEN_CPU_CAPABILITY" not in os.environ:
        assert ar_fast.info()["cpu_isa"] == runs
    assert runs in sets


def test_a_build_without_avx512_says_so_where_avx512_runs(copy):
    for file in ("libar_fast_ops.so", *(path.name for path in PACKAGE.glob("_C.*.so"))):
        shutil.copy2(PACKAGE / file, copy / "ar_fast")
    code = "import torch; torch.backends.cpu.get_cpu_capability = lambda: 'AVX512'; import ar_fast"
    for sets, said in (("DEFAULT, AVX2", True), ("DEFAULT, AVX2, AVX512", False)):
        record = json.loads((copy / "ar_fast" / "_build.json").read_text())
        (copy / "ar_fast" / "_build.json").write_text(json.dumps({**record, "instruction_sets": sets}))
        done = run(code, copy)
        assert done.returncode == 0, done.stderr
        assert ("compiled on a machine without AVX-512" in done.stderr) == said


@pytest.mark.full
@pytest.mark.skipif("AVX512" in ar_fast.info()["cpu_instruction_sets"], reason="the build compiled them")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not x86")
def test_the_avx512_kernels_compile(tmp_path):
    """The build leaves them out where they do not run."""
    from torch.utils.cpp_extension import include_paths

    flags = ["-std=c++20", "-fsyntax-only", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"]
    flags += ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512", "-DAR_FAST_X86"]
    flags += ["-DAR_FAST_AVX512", *(f"-isystem{path}" for path in include_paths())]
    kernels = sorted((ROOT / "csrc" / "kernels" / "cpu").glob("*.cpp"))
    assert kernels
    for kernel in kernels:
        done = subprocess.run([os.environ.get("CXX", "c++"), *flags, kernel], capture_output=True, text=True)
        assert done.returncode == 0, f"{kernel.name}: {done.stderr}"


# Draws from each public model and flow, evaluates the draws and takes a gradient; prints the names of the classes.
EVERY_MODEL = """
import ar_fast, torch
from ar_fast import flows, heads, models, orderings

print(ar_fast.info()["backend"])
nade = models.NADE((2, 3), 4)
made = [
    nade,
    models.ARMLP((2, 3), 4),
    models.DeepNADE((2, 3), 4),
    models.Ensemble([nade.in_order(orderings.random(6, seed)) for seed in range(2)]),
    models.FVSBN((2, 3)),
    models.MADE((2, 3), [6], head=heads.Categorical(3)),
    models.OffsetNADE((3, 4), 4, window=2),
    models.RNADE(4, 3, components=2),
    models.RNN((2, 3), 4),
    flows.MAF(3, hidden_features=[6]),
    flows.MAF(3, hidden_features=[6], univariate=flows.Spline(4)),
    flows.MAF(3, hidden_features=[6], inverse=True),
]
for model in made:
    x = model.sample(2, seed=0)
    log_prob = model.log_prob(x)
    assert log_prob.shape == (2,) and bool(log_prob.isfinite().all()), model
    log_prob.sum().backward()
text = models.CharRNN("abc", 4)
tokens, lengths = text.sample(2, 5, seed=0)
text.log_prob(tokens).sum().backward()
print(*sorted({type(model).__name__ for model in [*made, text]}))
"""


@pytest.mark.full
def test_a_pure_wheel_runs_every_model_on_the_references(tmp_path):
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns("__pycache__", "_build.json")
    for name in ("ar_fast", "setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=left_out)
        else:
            shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "AR_FAST_PURE": "1"})
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".dylib"))]
        archive.extractall(installed)
    done = run(EVERY_MODEL, installed)
    assert done.returncode == 0, done.stderr
    public = [getattr(module, name) for module in (ar_fast.models, ar_fast.flows) for name in module.__all__]
    models = {
        own.__name__
        for own in public
        if isinstance(own, type) and issubclass(own, torch.nn.Module) and hasattr(own, "log_prob")
    } - {"AutoregressiveModel"}
    assert done.stdout.splitlines() == ["reference", " ".join(sorted(models))]
    assert done.stderr.count("installed without its compiled ops") == 1


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_the_ops_library_has_no_python_and_no_cuda_runtime_to_load():
    needed = libraries_needed()
    assert any(name.startswith("libtorch_cpu") for name in needed)
    assert not [name for name in needed if "python" in name or "cudart" in name]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_the_ops_library_runs_on_torchs_threads():
    """Without OpenMP at::parallel_for compiles too, and runs on one thread."""
    assert [name for name in libraries_needed() if "gomp" in name or "omp" in name]


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="torch has one thread")
def test_a_call_runs_on_several_threads():
    weight = torch.randn(784, 512)
    x, bias = torch.rand(128, 784), torch.zeros(512)
    own, process = time.thread_time(), time.process_time()
    for _ in range(5):
        ar_fast.functional.nade_log_prob(x, weight, bias, weight, torch.zeros(784))
    own, process = time.thread_time() - own, time.process_time() - process
    assert process > 1.5 * own, "the calling thread did all the work"


def test_cuda_is_built_where_torch_and_nvcc_have_it():
    wanted = os.environ.get("AR_FAST_CUDA", "auto")
    has_nvcc = shutil.which("nvcc") is not None or "CUDACXX" in os.environ
    info = ar_fast.info()
    assert info["cuda_built"] == (wanted == "1" or (wanted == "auto" and has_nvcc and torch.version.cuda is not None))
    if not info["cuda_built"]:
        assert info["cuda_architectures"] is None and info["nvcc"] is None
        return
    assert info["cuda_architectures"] == "75-real;80-real;90a-real;80-virtual"
    for op in (
        "nade",
        "nade_log_prob_forward",
        "nade_backward",
        "nade_sample",
        "masked_linear",
        "masked_mlp_sample",
        "univariate_transform",
        "univariate_transform_backward",
        "deep_nade_sample",
        "offset_nade_sample",
        "rnn_sample",
        "head_log_prob",
        "fvsbn_sample",
        "armlp_sample",
    ):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ar_fast::{op}", "CUDA"), op


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {ar_fast.__version__}\n" in citation


def test_import_needs_nothing_but_torch_safetensors_and_tqdm():
    code = (
        "import sys; import ar_fast; extra = {'mlxtend', 'sklearn', 'matplotlib', 'PIL', 'click', 'pytest'}; "
        "print(sorted(extra & {name.split('.')[0] for name in sys.modules}))"
    )
    assert run(code).stdout.strip() == "[]"


def test_explain_names_kernel_and_instruction_set():
    weight = torch.randn(30, 20)
    lines = ar_fast.explain("nade_log_prob", torch.ones(3, 30), weight, torch.zeros(20), weight, torch.zeros(30))
    assert len(lines) == 1
    assert "kernel nade_forward" in lines[0] and ar_fast.info()["cpu_isa"] in lines[0]
    with pytest.raises(ValueError, match=r"op must be one of .*, got 'matmul'"):
        ar_fast.explain("matmul")
