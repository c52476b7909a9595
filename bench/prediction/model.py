"""From machine code to time: a warp through a loop, warps on a multiprocessor, blocks on the GPU, kernels in a row.

Every figure is (low, middle, high). A warp issues in order; an instruction waits for the registers that it reads. Warps
of a multiprocessor hide one another's waits until a unit is busy all the time, and blocks run in waves. Nothing here
knows a kernel: kernels.py says which loops they run and how often.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from . import rates

ARCHITECTURE = "sm_90a"
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Loop:
    """A way through a loop of a kernel.

    kernel: a pattern of its mangled name. needs and most: how many instructions of a kind the way has at least and at
    most; of the ways that have them it is the one with the fewest instructions, through the smallest loop that has one,
    or the first such loop in the code. off: opcodes (a pattern) whose predicate is never set on this way. wide and
    narrow: where loads from global memory of 128 bits, and of fewer, are served.
    """

    name: str
    kernel: str
    needs: Mapping[str, int]
    most: Mapping[str, int] = field(default_factory=dict)
    wide: str = "l2"
    narrow: str = "l2"
    first: bool = False
    off: str = ""


# Kinds that a way can be asked for, by opcode.
KINDS = {
    "mufu": r"MUFU",
    "ffma": r"FFMA",
    "loads": r"LDG\.",
    "wide": r"LDG\.\S*128",
    "lds": r"LDS",
    "mma": r"HMMA",
    "copies": r"LDGSTS",
    "shfl": r"SHFL",
    "stores": r"STG",
    "sts": r"STS",
}


def find_way(loop, needs: Mapping[str, int], most: Mapping[str, int]) -> list | None:
    """The shortest way through a loop of tests/cuda/sass.py that has what it needs, or None. Forward branches only."""
    kinds = list(dict.fromkeys([*needs, *most]))
    # Beyond its bound a count is one too many, or as good as the bound.
    bound = {k: most[k] + 1 if k in most else needs[k] for k in kinds}

    def gained(block: int) -> tuple[int, ...]:
        return tuple(sum(re.match(KINDS[k], i.opcode) is not None for i in loop.blocks[block]) for k in kinds)

    def add(counts: tuple[int, ...], more: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(min(bound[k], c + m) for k, c, m in zip(kinds, counts, more, strict=True))

    start = loop.start
    gains = {block: gained(block) for block in loop.blocks}
    best: dict[int, dict[tuple, tuple[int, tuple | None]]] = {block: {} for block in loop.blocks}
    best[start][add((0,) * len(kinds), gains[start])] = (len(loop.blocks[start]), None)
    for block in loop.blocks:
        for counts, (length, _) in best[block].items():
            for after in loop.follow[block]:
                if after <= block:
                    continue
                new, longer = add(counts, gains[after]), length + len(loop.blocks[after])
                if new not in best[after] or longer < best[after][new][0]:
                    best[after][new] = (longer, (block, counts))
    ends = [
        (best[block][counts][0], block, counts)
        for block in loop.latches
        if block in best
        for counts in best[block]
        if all(needs.get(k, 0) <= c <= most.get(k, c) for k, c in zip(kinds, counts, strict=True))
    ]
    if not ends:
        return None
    _, block, counts = min(ends)
    way: list = []
    while True:
        way[:0] = loop.blocks[block]
        previous = best[block][counts][1]
        if previous is None:
            return way
        block, counts = previous


def _unit(opcode: str) -> str:
    """What executes an instruction."""
    if opcode.startswith(("FFMA", "FMUL", "FADD", "HFMA2", "IMAD.MOV", "MOV")):
        return "fma"
    if opcode.startswith(("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV")) and not opcode.startswith("I2FP"):
        return "mufu"
    if re.match(r"D(FMA|MUL|ADD|SETP)", opcode):
        return "dfma"
    if opcode.startswith(("HMMA", "IMMA")):
        return "mma"
    if re.match(r"(LD|ST|SHFL|ATOM|RED)", opcode):
        return "memory"
    if re.match(r"(BRA|BSSY|BSYNC|EXIT|CALL|RET|NOP|BAR|WARPSYNC|DEPBAR|LDGDEPBAR|U|R2UR|S2)", opcode):
        return "issue"
    return "alu"


def _latency(opcode: str, loop: Loop) -> rates.Rate:
    if opcode.startswith("LDG"):
        return rates.LATENCY[loop.wide if re.search(r"\.128\b", opcode) else loop.narrow]
    if opcode.startswith("LD."):  # generic: of what the block itself writes, so shared memory or the nearest cache
        return rates.LATENCY["l1"]
    for prefix, name in (("LDS", "lds"), ("SHFL", "shfl"), ("MUFU", "mufu"), ("LDC", "l1"), ("S2", "mufu")):
        if opcode.startswith(prefix):
            return rates.LATENCY[name]
    unit = _unit(opcode)
    if unit == "mufu":
        return rates.LATENCY["convert"]
    return rates.LATENCY.get(unit, rates.LATENCY["alu"])


def _registers(instruction) -> tuple[set[str], set[str]]:
    """Registers and predicates that an instruction writes and reads."""
    opcode, parts = instruction.opcode, [part.strip() for part in instruction.operands.split(",")]
    writes, reads = set(), set()
    outputs = 1
    if re.match(r"(ST|RED|BRA|BRX|EXIT|BAR|LDGSTS|WARPSYNC|DEPBAR|BSYNC|BSSY|NOP|CALL|RET)", opcode):
        outputs = 0
    else:
        carries = opcode.startswith(("IADD3", "LEA", "IMAD.WIDE", "LOP3")) and re.match(r"!?P\d", [*parts, ""][1])
        if carries or "SETP" in opcode or opcode.startswith(("SHFL", "PLOP3", "VOTE")):
            outputs = 2
    wide = re.search(r"\.(64|128)\b", opcode)
    width = int(wide[1]) // 32 if wide else 1
    if opcode.startswith(("HMMA", "LDSM")):
        width = 4
    elif re.match(r"(IMAD\.WIDE|D(FMA|MUL|ADD))", opcode):
        width = 2
    for place, part in enumerate(parts):
        for match in re.finditer(r"\b(UR|UP|R|P)(\d+)(\.64)?", part):
            target = writes if place < outputs else reads
            many = width if place == 0 and outputs else 2 if match[3] or re.match(r"D(FMA|MUL|ADD)", opcode) else 1
            if opcode.startswith("HMMA") and place:
                many = (4, 2, 4)[place - 1] if place <= 3 else 1
            target.update(f"{match[1]}{int(match[2]) + i}" for i in range(many))
    if found := re.search(r"U?P\d", instruction.predicate):
        reads.add(found[0])
        reads |= {name for name in writes if name[0] in "RU"}
    return writes, reads


def cycles_of_one_warp(way: Sequence, loop: Loop, which: int) -> float:
    """Cycles of one turn of a loop, alone on its partition, after enough turns."""
    decoded = [(i.opcode, i.operands, i.address, *_registers(i)) for i in way]
    ready: dict[str, float] = {}
    clock, ends = 0.0, []
    copies: list[float] = []
    groups: list[float] = []
    for _ in range(4):
        for place, (opcode, operands, address, writes, reads) in enumerate(decoded):
            clock += 1
            for name in reads | writes:
                clock = max(clock, ready.get(name, 0.0))
            latency = _latency(opcode, loop)[which]
            for name in writes:
                ready[name] = clock + latency
            if opcode.startswith("LDGSTS"):
                copies.append(clock + latency)
            elif opcode.startswith("LDGDEPBAR"):
                groups.append(max(copies, default=0.0))
                copies = []
            elif opcode.startswith("DEPBAR") and (found := re.search(r"SB0, 0x(\w+)", operands)):
                left = int(found[1], 16)
                for group in groups[: len(groups) - left] if left else groups:
                    clock = max(clock, group)
                groups = groups[len(groups) - left :] if left else []
            elif opcode.startswith("BAR"):
                clock += rates.LATENCY["barrier"][which]
            following = decoded[(place + 1) % len(decoded)][2]
            if opcode.startswith("BRA") and following != address + 16:
                clock += rates.LATENCY["branch"][which]
        ends.append(clock)
    return ends[-1] - ends[-2]


def busy_of_one_warp(way: Sequence, which: int) -> float:
    """Cycles of a partition that one turn of one warp takes of the busiest unit."""
    busy = {"issue": 0.0, "fma": 0.0, "alu": 0.0, "mufu": 0.0, "dfma": 0.0, "mma": 0.0, "memory": 0.0}
    for instruction in way:
        opcode = instruction.opcode
        busy["issue"] += 1
        unit = _unit(opcode)
        if unit == "memory":
            wide = re.search(r"\.(64|128)\b", opcode)
            words = 4 if opcode.startswith("LDSM") else int(wide[1]) // 32 if wide else 1
            busy["memory"] += words * rates.SHARED_BUSY[which] * rates.PARTITIONS
        elif unit != "issue":
            busy[unit] += rates.BUSY[unit][which]
    return max(busy.values())


def measure(found: Sequence, loop: Loop) -> dict:
    """What the committed table keeps of a loop: counts, the cycles of one warp, those that keep a unit busy.

    Raises:
        ValueError: if no loop of the kernel has what the way needs.
    """
    ways = [(other, way) for other in found if (way := find_way(other, loop.needs, loop.most)) is not None]
    if not ways:
        raise ValueError(
            f"{loop.name}: no way through a loop of {loop.kernel} has {dict(loop.needs)} and at most {dict(loop.most)}"
        )
    # Outer loops have ways through inner ones: those are left out.
    starts = {other.start for other, _ in ways}
    ways = [pair for pair in ways if not any(inner.start in starts for inner in pair[0].inner)]
    _, way = min(ways, key=lambda pair: pair[0].start if loop.first else len(pair[0].body))
    if loop.off:
        way = [i for i in way if not (i.predicate and re.match(loop.off, i.opcode))]
    counts = {kind: sum(re.match(pattern, i.opcode) is not None for i in way) for kind, pattern in KINDS.items()}
    return {
        "instructions": len(way),
        **counts,
        "warp_cycles": [round(cycles_of_one_warp(way, loop, which)) for which in range(3)],
        "busy_cycles": [round(busy_of_one_warp(way, which)) for which in range(3)],
    }


@dataclass(frozen=True)
class Launch:
    """A kernel's grid and block, and what a warp of it does: loops with the turns of each, for the average block.

    longest: how many times the average the work of the longest block is. l2_bytes and dram_bytes: of all blocks.
    resident: blocks of a multiprocessor at once. waits: latencies, by what is waited for, that no loop's turn has.
    """

    name: str
    blocks: int
    warps: int
    resident: int
    turns: Mapping[str, float]
    waits: Mapping[str, float] = field(default_factory=dict)
    l2_bytes: float = 0.0
    dram_bytes: float = 0.0
    longest: float = 1.0
    grid_barriers: int = 0
    cluster_barriers: int = 0


@dataclass(frozen=True)
class Product:
    """A product of 16-bit matrices by cuBLAS, whose machine code we do not have: (rows, sum) by (sum, columns)."""

    name: str
    rows: int
    columns: int
    sum: int


def product_us(product: Product) -> Triple:
    """Tiles in waves, each as long as its multiply-adds take at the rate that published products of a full GPU reach.

    The sum is never shorter than the bytes that have to be read and written. What a product takes to begin and to end
    is in the published rate.
    """
    rows, columns, terms = product.rows, product.columns, product.sum
    waves = min(
        math.ceil(math.ceil(rows / down) * math.ceil(columns / across) / rates.MULTIPROCESSORS)
        for down, across in (rates.PRODUCT_TILE, rates.PRODUCT_TILE[::-1])
    )
    operations = 2.0 * math.prod(rates.PRODUCT_TILE) * terms * waves * rates.MULTIPROCESSORS
    moved = 2.0 * (rows * terms + terms * columns + rows * columns)
    return tuple(
        max(operations / rates.PRODUCT_TFLOPS[which], moved / rates.DRAM_TBPS[which]) / 1e6 for which in range(3)
    )


def _block_cycles(launch: Launch, paths: Mapping[str, dict], together: int, which: int) -> float:
    """Cycles of `together` blocks that run side by side on a multiprocessor."""
    cycles = sum(rates.LATENCY[what][which] * times for what, times in launch.waits.items())
    per_partition = math.ceil(launch.warps * together / rates.PARTITIONS)
    for name, turns in launch.turns.items():
        alone = paths[name]["warp_cycles"][which]
        busy = paths[name]["busy_cycles"][which] * per_partition
        # Perfect overlap of waiting and working at the low end, half of the smaller one lost at the high end.
        cycles += turns * (max(alone, busy) + (0, 0.25, 0.5)[which] * min(alone, busy))
    return cycles


def resident_blocks(limits: rates.Limits, threads: int, registers: int, shared: int) -> int:
    """Blocks of a multiprocessor at once, with so many threads and so much shared memory each."""
    warps = -(-threads // 32)
    per_warp = -(-max(registers, 1) * 32 // limits.register_unit) * limits.register_unit
    by_registers = limits.registers // per_warp // warps
    by_shared = limits.shared_bytes // (shared + limits.shared_reserved)
    return min(limits.warps // warps, limits.blocks, by_registers, by_shared)


def kernel_us(launch: Launch, paths: Mapping[str, dict]) -> Triple:
    """Microseconds of one kernel, without what it takes to launch it."""
    result = []
    for which in range(3):
        clock = rates.CLOCK_GHZ[which] * 1e3
        here = math.ceil(launch.blocks / rates.MULTIPROCESSORS)
        waves, rest = divmod(here, launch.resident)
        full = _block_cycles(launch, paths, launch.resident, which) if waves else 0.0
        tail = _block_cycles(launch, paths, rest, which) if rest else 0.0
        if launch.longest > 1:
            # Short blocks fill the gaps between long ones; no block is shorter than it is alone.
            average = (launch.blocks / rates.MULTIPROCESSORS / launch.resident) * (full or tail)
            cycles = max(average, _block_cycles(launch, paths, 1, which) * launch.longest)
        else:
            cycles = waves * full + tail
        compute = cycles / clock
        memory = max(launch.l2_bytes / rates.L2_TBPS[which], launch.dram_bytes / rates.DRAM_TBPS[which]) / 1e6
        overlapped = max(compute, memory) + (0, 0.1, 0.3)[which] * min(compute, memory)
        barriers = launch.grid_barriers * rates.GRID_BARRIER_US[which]
        barriers += launch.cluster_barriers * rates.CLUSTER_BARRIER_US[which]
        result.append(overlapped + barriers + rates.BLOCK_START_US[which])
    return tuple(result)


@dataclass(frozen=True)
class Prediction:
    """Microseconds, predicted and not measured; kernels: the same of each, without its launch, in their order."""

    low: float
    middle: float
    high: float
    kernels: Sequence[tuple[str, Triple]]


def predict(launches: Sequence[Launch | Product], paths: Mapping[str, dict], steps: int = 1) -> Prediction:
    """Kernels one after another in a stream; the time of one of so many steps that all of them take."""
    parts = [
        (launch.name, product_us(launch) if isinstance(launch, Product) else kernel_us(launch, paths))
        for launch in launches
    ]
    total = [sum(times[which] + rates.LAUNCH_US[which] for _, times in parts) / steps for which in range(3)]
    return Prediction(*total, [(name, tuple(time / steps for time in times)) for name, times in parts])
