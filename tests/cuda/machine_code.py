"""What the machine code of every CUDA kernel does, from the objects that check_resources.py compiles. No GPU.

machine_code.json is the committed table and machine_code.md its readable form: registers, shared memory, resident warps
and the hot loop of each kernel. docs/machine_code.md says how to read them.
"""

import concurrent.futures
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import sass

from bench.prediction import kernels, model, rates

ARCHITECTURES = ["sm_80", "sm_90a"]
TABLE = Path(__file__).with_name("machine_code.json")
READABLE = Path(__file__).with_name("machine_code.md")

LOADS_IN_FLIGHT = 8
# What a hot loop has to be -> whether its counts are so. A loop whose operands lie in shared memory need not stream.
EXPECTATIONS: dict[str, Callable[[dict], bool]] = {
    f"at least {LOADS_IN_FLIGHT} loads in flight": lambda loop: (
        loop["loads"] == 0 or loop["copies"] > 0 or loop["in_flight"] >= LOADS_IN_FLIGHT
    ),
    "no division of integers": lambda loop: loop["divisions"] == 0,
    "no generic access": lambda loop: loop["generic"] == 0,
}
# Why kernels of a family miss an expectation today; which of them do is in the table. To be redesigned.
KNOWN = {
    "bernoulli_backward_kernel": "one element of each tensor a thread; 64 warps wait at once",
    "bernoulli_log_prob_kernel": "one element of each tensor a thread; 64 warps wait at once",
    "deep_nade_sample_kernel": "hidden units lie in shared or global memory, as it fits; one vector at a time",
    "fvsbn_sample_kernel": "parameters lie in shared or global memory, as it fits; a column is a load and a store",
    "head_backward_kernel": "four parameters of a variable at a time",
    "head_log_prob_kernel": "four parameters of a variable at a time",
    "masked_linear_finish_kernel": "the loop is of what is NaN, seldom anything; what every output has is no loop",
    "masked_linear_grad_input_rows_kernel": "one row of the weight at a time",
    "masked_linear_rows_kernel": "where the mask has no extents or rows are sorted, it is asked for every weight",
    "nade_bias_kernel": "in float64: 7 loads of the unrolled loop, where the compiler saves registers",
    "nade_in_rows_kernel": "one row of the batch at a time",
    "nade_local_kernel": "the factors of activation_scale are read one by one where there are any",
    "nade_merge_kernel": "in float64: 7 loads of the unrolled loop, where the compiler saves registers",
    "nade_sample_general_kernel": "weight rows are read when they are needed",
    "nade_sample_kernel": "what 32 positions need besides weights: a few numbers a lane, read once for all of them",
    "nade_scan_kernel": "a weight row is read when it is needed, behind the branch on the input",
    "nade_sums_kernel": "vectors of 16 bits: half of the loads wait for registers, which 64 sums a lane take",
    "offset_nade_sample_kernel": "state lies in shared or global memory, as it fits; a row is read when it is needed",
    "rnn_sample_kernel": "weights and state lie in shared or global memory, as it fits; one vector at a time",
    "univariate_transform_backward_kernel": "the numbers of one variable a lane; many warps wait at once",
    "univariate_transform_kernel": "the numbers of one variable a lane; many warps wait at once",
}


def resident_warps(architecture: str, threads: int, registers: int, shared: int) -> int:
    """Warps of a multiprocessor at once, with blocks of so many threads and so much shared memory each."""
    return -(-threads // 32) * model.resident_blocks(rates.LIMITS[architecture], threads, registers, shared)


def hot_loop(code: Sequence[sass.Instruction]) -> dict | None:
    """The counts of the loop that reads most per instruction, among those that multiply; inner loops left out.

    Where a kernel has copies of it, as for two layers, it is the one with the fewest loads in flight.
    """
    found = []
    for loop in sass.loops(code):
        counts = sass.count(loop.own)
        if counts["ffma"] + counts["dfma"] + counts["mma"] >= 4:
            reads = counts["loads"] + counts["copies"] + counts["lds"] + 8 * counts["mma"]
            found.append((reads / counts["instructions"], reads, counts))
    if not found or max(found, key=lambda each: each[0])[0] == 0:
        return None
    share, most, _ = max(found, key=lambda each: each[0])
    copies = [counts for its_share, reads, counts in found if 2 * its_share >= share and 4 * reads >= 3 * most]
    return min(copies, key=lambda counts: counts["in_flight"])


def demangle(names: Sequence[str]) -> list[str]:
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    noise = r"^void |ar_fast::|cuda::|\(anonymous namespace\)::|\(MaskedLinearProduct\)|\(bool\)|\(int\)|\(.*\)$"
    return [re.sub(noise, "", line.replace("(ar_fast::MaskedLinearProduct)", "")) for line in text.splitlines()]


def _of_object(task: tuple[Path, str]) -> tuple[str, dict[str, dict | None], dict[str, dict]]:
    """Hot loops by mangled kernel, and the paths of the model's loops by name."""
    path, architecture = task
    functions = sass.disassemble(path, architecture)
    found, paths = {}, {}
    for name, code in functions.items():
        found[name] = hot_loop(code)
        if architecture != model.ARCHITECTURE:
            continue
        for loop in kernels.LOOPS:
            if re.search(loop.kernel, name):
                paths[loop.name] = {"kernel": name, **model.measure(sass.loops(code), loop)}
    return architecture, found, paths


def collect(objects: Sequence[Path], reports: Sequence, threads: dict[str, int], jobs: int) -> dict:
    """The table. reports: ptxas' of each kernel and architecture; threads: the largest block of each kernel."""
    compiled = {report.architecture for report in reports}
    tasks = [(path, architecture) for path in objects for architecture in ARCHITECTURES if architecture in compiled]
    hot, paths = {}, {}
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        for architecture, found, measured in pool.map(_of_object, tasks):
            hot |= {(name, architecture): loop for name, loop in found.items()}
            paths |= measured
    chosen = [report for report in reports if report.architecture in ARCHITECTURES]
    rows = []
    for name, report in zip(demangle([report.kernel for report in chosen]), chosen, strict=True):
        most = threads[report.kernel]
        rows.append(
            {
                "kernel": name,
                "architecture": report.architecture,
                "registers": report.registers,
                "shared": report.shared,
                "warps": resident_warps(report.architecture, most, report.registers, report.shared),
                "loop": hot[report.kernel, report.architecture],
            }
        )
    rows.sort(key=lambda row: (row["kernel"], row["architecture"]))
    names = sorted(paths)
    for name, kernel in zip(names, demangle([paths[name]["kernel"] for name in names]), strict=True):
        paths[name]["kernel"] = kernel
    return {"kernels": rows, "paths": {name: paths[name] for name in names}, "known": missed(rows)}


def beside(committed: dict, table: dict) -> dict:
    """The committed table with the kernels of this one, which is of some sources only.

    Raises:
        ValueError: if the two are of different compilers, whose counts must not be mixed.
    """
    if committed["compiler"] != table["compiler"]:
        raise ValueError(
            f"machine_code.json is of {committed['compiler']}, this is {table['compiler']}: update all of it"
        )
    own = {(row["kernel"], row["architecture"]) for row in table["kernels"]}
    others = [row for row in committed["kernels"] if (row["kernel"], row["architecture"]) not in own]
    rows = sorted(others + table["kernels"], key=lambda row: (row["kernel"], row["architecture"]))
    paths = dict(sorted((committed["paths"] | table["paths"]).items()))
    return {**table, "kernels": rows, "paths": paths, "known": missed(rows)}


def family(kernel: str) -> str:
    return kernel.partition("<")[0]


def missed(rows: Sequence[dict]) -> list[dict]:
    """Kernels whose hot loop misses an expectation, with the reason of their family."""
    return [
        {"kernel": row["kernel"], "architecture": row["architecture"], "misses": what,
         "reason": KNOWN.get(family(row["kernel"]))}
        for row in rows
        if row["loop"] is not None
        for what, meets in EXPECTATIONS.items()
        if not meets(row["loop"])
    ]  # fmt: skip


def check(table: dict, committed: dict, whole: bool) -> list[str]:
    """Where the table misses expectations that are not known, meets known ones, or is not the committed one.

    Only the architectures that were compiled are compared.
    """
    compiled = {row["architecture"] for row in table["kernels"]}

    def key(entry: dict) -> tuple[str, str, str]:
        return entry["kernel"], entry["architecture"], entry["misses"]

    now, known = {key(entry) for entry in table["known"]}, {key(entry) for entry in committed["known"]}
    judged = {(row["kernel"], row["architecture"]) for row in table["kernels"]}
    problems = [f"{kernel} on {where}: expected {what}" for kernel, where, what in sorted(now - known)]
    for kernel, where, what in sorted(known - now):
        if (whole and where in compiled) or (kernel, where) in judged:
            problems.append(f"{kernel} on {where} is known to miss {what!r}, and does not: take it off the list")
    problems += [
        f"{family(kernel)}: KNOWN gives no reason"
        for kernel in sorted({entry["kernel"] for entry in table["known"] if entry["reason"] is None})
    ]
    if whole:
        others = [entry for entry in committed["known"] if entry["architecture"] not in compiled]
        used = {family(entry["kernel"]) for entry in [*table["known"], *others]}
        problems += [
            f"{unused}: KNOWN has a reason for what no kernel misses" for unused in sorted(KNOWN.keys() - used)
        ]
    if table["compiler"] != committed["compiler"]:
        print(f"machine_code.json is of {committed['compiler']}, this is {table['compiler']}: counts are not compared")
        return problems
    before = {
        (row["kernel"], row["architecture"]): row for row in committed["kernels"] if row["architecture"] in compiled
    }
    for row in table["kernels"]:
        if before.pop((row["kernel"], row["architecture"]), None) != row:
            problems.append(f"{row['kernel']} on {row['architecture']} differs from machine_code.json: {row}")
    for name, path in table["paths"].items():
        if committed["paths"].get(name) != path:
            problems.append(f"the path {name} differs from machine_code.json: {path}")
    if whole:
        problems += [f"machine_code.json has {kernel} on {where}, which is gone" for kernel, where in sorted(before)]
        problems += [f"{loop.name}: no kernel matches" for loop in kernels.LOOPS if loop.name not in table["paths"]]
    return problems


def _one_per_line(table: dict) -> str:
    lines = [f' "compiler": {json.dumps(table["compiler"])},', ' "kernels": [']
    lines.append(",\n".join(f"  {json.dumps(row)}" for row in table["kernels"]) + "],")
    lines.append(' "paths": {')
    lines.append(
        ",\n".join(f"  {json.dumps(name)}: {json.dumps(path)}" for name, path in table["paths"].items()) + "},"
    )
    lines.append(' "known": [')
    lines.append(",\n".join(f"  {json.dumps(entry)}" for entry in table["known"]) + "]")
    return "{\n" + "\n".join(lines) + "\n}\n"


def readable(table: dict) -> str:
    columns = ["instructions", "in_flight", "loads", "copies", "ffma", "dfma", "mma", "mufu", "lds", "shfl",
               "divisions", "generic"]  # fmt: skip
    lines = [
        "# Machine code of the CUDA kernels",
        "",
        f"Made by `python tests/cuda/check_resources.py --update` with {table['compiler']};",
        "[docs/machine_code.md](../../docs/machine_code.md) says how to read it. Counts are of the hot loop, with all",
        "its branches; warps are those that a multiprocessor holds, without dynamic shared memory.",
        "",
        f"| kernel | | registers | shared | warps | {' | '.join(c.replace('_', ' ') for c in columns)} |",
        f"|---|---|{'---:|' * (3 + len(columns))}",
    ]
    for row in table["kernels"]:
        loop = row["loop"]
        counts = " | ".join(str(loop[c]) for c in columns) if loop else " | ".join([""] * len(columns))
        name = f"`{row['kernel']}`".replace("|", "\\|")
        lines.append(
            f"| {name} | {row['architecture']} | {row['registers']} | {row['shared']} | {row['warps']} | {counts} |"
        )
    lines += [
        "",
        "## Known, to be redesigned",
        "",
        "Kernels whose hot loop misses an expectation. The list is exact: an entry that is met fails the check.",
        "",
        "| kernels | miss | instances | why |",
        "|---|---|---:|---|",
    ]
    groups: dict[tuple[str, str, str], int] = {}
    for entry in table["known"]:
        group = (family(entry["kernel"]), entry["misses"], entry["reason"])
        groups[group] = groups.get(group, 0) + 1
    lines += [f"| `{name}` | {what} | {count} | {why} |" for (name, what, why), count in sorted(groups.items())]
    return "\n".join(lines) + "\n"


def write(table: dict) -> None:
    TABLE.write_text(_one_per_line(table))
    READABLE.write_text(readable(table))
