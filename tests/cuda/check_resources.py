"""Compiles, links and loads the CUDA half and reads the compiler's report. No GPU.

    python tests/cuda/check_resources.py [--jobs N] [--build DIRECTORY] [--update] [--oldest | --newest] [NAME.cu ...]

Fails where a kernel spills registers, uses local memory, lacks the instructions that it is meant to use (REQUIRED, read
from its PTX), or spends more than one ex2 and one rcp on an activation; prints a table of registers and shared memory.
Then the machine code of the same objects is compared with machine_code.json and held against its expectations
(machine_code.py, docs/machine_code.md); --update writes the table; with names it writes the
kernels of these files and keeps the rest, also what is no longer in them.
The host side (csrc/ops/cuda) is compiled against the torch that is installed, linked with the kernels and the package's
ops library, which has to be built, and loaded: every op then has to have a CUDA kernel.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import machine_code

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "kernels" / "cuda"
OPS = ROOT / "csrc" / "ops" / "cuda"
LIBRARY = ROOT / "ar_fast" / "libar_fast_ops.so"
ARCHITECTURES = ["sm_80", "sm_90a"]
OLDEST_ARCHITECTURE = "sm_75"  # a third of the time, so by --oldest only
PTX_ARCHITECTURE = "compute_80"

LOAD_128 = r"ld\.global(\.nc)?(\.L\w+)*\.v(4\.[usfb]32|2\.[usfb]64)"
LOAD_SHARED_128 = r"ld\.shared\.v(4\.[usfb]32|2\.[usfb]64)"
COPY_ASYNC = r"cp\.async\.cg\.shared\.global"
MATRIX = r"mma\.sync\.aligned\.m16n8k16"
MATRIX_TF32 = r"mma\.sync\.aligned\.m16n8k8\.row\.col\.f32\.tf32"
ROUND_TF32 = r"cvt\.rna\.tf32\.f32"
LOAD_MATRIX = r"ldmatrix\.sync\.aligned\.m8n8\.x4"

# Kernel (a pattern of its mangled name) -> the instructions that it is meant to use.
REQUIRED = {
    # Plain or not; whether there are sigmoids only.
    r"nade_scan_kernelI.*Lb1ELb[01]E": [COPY_ASYNC, LOAD_SHARED_128],
    r"nade_scan_kernelI.*Lb0ELb0E": [LOAD_128],
    r"nade_sums_kernelI.*Lb[01]ELb1E": [LOAD_128],
    r"nade_sample_kernelI\w+Lb[01]ELb1ELb[01]E": [LOAD_128],
    r"fvsbn_sample_kernelI": [LOAD_128],
    r"nade_sample_general_kernelI.*Lb0E": [LOAD_128],
    r"nade_sample_general_kernelI.*Lb1E": [LOAD_128, LOAD_SHARED_128],
    # Tiles: storage, whether by matrix instructions, size; products 0 and 1 (y, dX) have an operand along the sum.
    r"masked_linear_tiles_kernelI\w*TileSchemeI[fd]Lb0E": [COPY_ASYNC],
    r"masked_linear_tiles_kernelI\w*TileSchemeI[fd]Lb0ELi64E\w*ProductE[01]E": [LOAD_SHARED_128],
    r"masked_linear_tiles_kernelI\w*WideScheme": [COPY_ASYNC],
    r"masked_linear_tiles_kernelI\w*WideScheme\w*ProductE[01]E": [LOAD_SHARED_128],
    r"masked_linear_add_kernelI": [LOAD_128],
    r"masked_mlp_sums_kernelI": [COPY_ASYNC, LOAD_SHARED_128],
    r"masked_linear_tiles_kernelI\w*TileSchemeIfLb1ELi(64|128)E": [COPY_ASYNC, MATRIX_TF32, ROUND_TF32],
    r"masked_linear_tiles_kernelI\w*TileSchemeIfLb1ELi(64|128)E\w*ProductE[01]E": [LOAD_MATRIX],
    r"masked_linear_tiles_kernelI\w*TileSchemeINS_(8bfloat16|7float16)ELb1ELi(64|128)E": [
        COPY_ASYNC,
        MATRIX,
        LOAD_MATRIX,
    ],
    r"masked_linear_(grad_input_)?rows_kernelI": [LOAD_128],
    r"rnn_sample_matrix_kernel": [MATRIX, LOAD_SHARED_128],
}
# Kernels whose only special functions are activations of hidden units: in float, each is one ex2 and one rcp.
ACTIVATIONS = re.compile(r"nade_(scan|local|out_rows|inputs)_kernelI(?!d)")


@dataclass
class Report:
    """What ptxas says of one kernel on one architecture."""

    kernel: str
    architecture: str
    stack: int = 0
    spills: int = 0
    registers: int = 0
    shared: int = 0


@dataclass
class Source:
    path: Path
    reports: list[Report] = field(default_factory=list)
    kernels: dict[str, str] = field(default_factory=dict)  # mangled name -> PTX
    object: Path | None = None


def parse_reports(text: str) -> list[Report]:
    reports = []
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            reports.append(Report(*found.groups()))
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            # Device functions that were not inlined have such a line too: they count for the kernel before them.
            reports[-1].stack += int(found[1])
            reports[-1].spills += int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            reports[-1].registers = int(found[1])
            if found := re.search(r"(\d+) bytes smem", line):
                reports[-1].shared = int(found[1])
    return reports


def split_kernels(ptx: str) -> dict[str, str]:
    parts = re.split(r"^(?:\.visible |\.weak )?\.entry (\w+)", ptx, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def compile_source(path: Path, build: Path, architectures: list[str]) -> Source:
    keep = build / path.stem
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    source = Source(path, object=build / f"{path.stem}.o")
    code = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in architectures]
    code.append(f"-gencode=arch={PTX_ARCHITECTURE},code={PTX_ARCHITECTURE}")
    # Device code is optimised by default; the host's part of these files only has to compile.
    command = ["nvcc", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas", *code, "-Xptxas=-v",
               "--keep", f"--keep-dir={keep}", "-c", str(path), "-o", str(source.object)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{path.name} does not compile:\n{done.stdout}\n{done.stderr}")
    source.reports = parse_reports(done.stdout + done.stderr)
    for ptx in keep.glob(f"*{PTX_ARCHITECTURE}*.ptx"):
        source.kernels.update(split_kernels(ptx.read_text()))
    return source


def check(sources: list[Source], whole: bool) -> list[str]:
    problems = []
    for source in sources:
        for report in source.reports:
            if report.stack or report.spills:
                problems.append(
                    f"{report.kernel} on {report.architecture}: {report.stack} bytes of local memory, "
                    f"{report.spills} bytes of spills"
                )
        for kernel, ptx in source.kernels.items():
            if ACTIVATIONS.search(kernel):
                exponentials, reciprocals = (len(re.findall(name, ptx)) for name in (r"\bex2\.", r"\brcp\."))
                slow = re.findall(r"\b(?:div|sqrt|tanh|rsqrt|sin|cos|lg2)\.\S*f32", ptx)
                if exponentials == 0 or exponentials != reciprocals or slow:
                    problems.append(
                        f"{kernel} has {exponentials} ex2, {reciprocals} rcp and {slow or 'nothing'} "
                        "besides: an activation is one of each"
                    )
    kernels = {kernel: ptx for source in sources for kernel, ptx in source.kernels.items()}
    for pattern, instructions in REQUIRED.items():
        matching = [kernel for kernel in kernels if re.search(pattern, kernel)]
        if not matching and whole:
            problems.append(f"no kernel matches {pattern!r}, which REQUIRED names")
        for kernel in matching:
            for instruction in instructions:
                if not re.search(instruction, kernels[kernel]):
                    problems.append(f"{kernel} has no {instruction} in its PTX")
    return problems


def largest_blocks(sources: list[Source]) -> dict[str, int]:
    """Kernel -> the threads of its largest block, which its PTX says."""
    found = {}
    for source in sources:
        for kernel, ptx in source.kernels.items():
            sizes = re.search(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", ptx)
            found[kernel] = math.prod(int(size) for size in sizes.groups() if size) if sizes else 1024
    return found


def check_machine_code(sources: list[Source], jobs: int, whole: bool, update: bool) -> list[str]:
    reports = [report for source in sources for report in source.reports]
    table = machine_code.collect([source.object for source in sources], reports, largest_blocks(sources), jobs)
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    table["compiler"] = f"nvcc {re.search(r'V([0-9.]+)', version)[1]}"
    committed = json.loads(machine_code.TABLE.read_text())
    if update:
        committed = table if whole else machine_code.beside(committed, table)
        machine_code.write(committed)
    return machine_code.check(table, committed, whole)


def torch_folder() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def compile_host_side(build: Path) -> Path:
    """The ops floor's half for CUDA, all files at once: torch's headers take most of the time."""
    together, target = build / "ops_cuda.cpp", build / "ops_cuda.o"
    together.write_text("".join(f'#include "{path}"\n' for path in sorted(OPS.glob("*.cpp"))))
    include = torch_folder() / "include"
    command = ["nvcc", "-std=c++20", "-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include"),
               "-Xcompiler=-fPIC,-Wall,-Wno-unknown-pragmas", "-c", str(together), "-o", str(target)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"csrc/ops/cuda does not compile:\n{done.stdout}\n{done.stderr}")
    return target


LOAD = """
import sys
import torch

def ops(key):
    names = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    return {name.split(".")[0] for name in names if name.startswith("ar_fast::")}

for library in sys.argv[1:]:
    torch.ops.load_library(library)
# What is made of torch's own ops runs on every device.
missing = sorted(ops("CPU") - ops("CUDA") - ops("CompositeExplicitAutograd"))
if missing or not ops("CUDA"):
    sys.exit(f"no CUDA kernel is registered for {missing or 'any op'}")
print(f"{len(ops('CUDA'))} ops have a CUDA kernel")
"""


def link_and_load(sources: list[Source], host_side: Path, build: Path) -> None:
    """With the static runtime and nothing undefined: no driver is needed."""
    library, torch_libraries = build / "libar_fast_cuda.so", torch_folder() / "lib"
    objects = [str(path) for path in (*(source.object for source in sources), host_side, LIBRARY)]
    command = ["nvcc", "-shared", "-cudart=static", "-Xlinker=--no-undefined", *objects, f"-L{torch_libraries}",
               "-lc10", "-ltorch_cpu", "-o", str(library)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the CUDA half does not link:\n{done.stderr}")
    subprocess.run([sys.executable, "-c", LOAD, str(LIBRARY), str(library)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cuda-check")
    parser.add_argument("--update", action="store_true", help="write machine_code.json and machine_code.md")
    parser.add_argument("--oldest", action="store_true", help=f"check {OLDEST_ARCHITECTURE} too")
    parser.add_argument("--newest", action="store_true", help=f"check {ARCHITECTURES[-1]} only, in half of the time")
    parser.add_argument("names", nargs="*", help="sources to check; all, and that they link, by default")
    options = parser.parse_args()
    if shutil.which("nvcc") is None:
        raise SystemExit("nvcc was not found: put it on PATH")
    if options.update and options.newest:
        raise SystemExit("--update writes every architecture: leave --newest out")
    if not options.names and not LIBRARY.exists():
        raise SystemExit(f"{LIBRARY} was not found: build the package first, for example by `make build`")
    options.build.mkdir(parents=True, exist_ok=True)
    paths = [KERNELS / name for name in options.names] or list(KERNELS.glob("*.cu"))
    architectures = ARCHITECTURES[-1:] if options.newest else ARCHITECTURES + [OLDEST_ARCHITECTURE] * options.oldest
    # The largest first, so that no job is alone at the end.
    paths.sort(key=lambda path: path.stat().st_size, reverse=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        host_side = pool.submit(compile_host_side, options.build) if not options.names else None
        sources = list(pool.map(lambda path: compile_source(path, options.build, architectures), paths))
    reports = [report for source in sources for report in source.reports]
    names = machine_code.demangle([report.kernel for report in reports])
    for name, report in sorted(zip(names, reports, strict=True), key=lambda pair: pair[0]):
        print(f"{report.architecture:7} {report.registers:4} registers {report.shared:6} B shared  {name}")
    problems = check(sources, whole=not options.names)
    problems += check_machine_code(sources, options.jobs, not options.names, options.update)
    if host_side is not None:
        link_and_load(sources, host_side.result(), options.build)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(f"{len(reports)} kernels of {len(sources)} files on {', '.join(architectures)}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
