"""Machine code of NVIDIA GPUs (SASS), as `cuobjdump -sass` prints it: functions, loops, and what a loop does."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Opcodes, by the unit that executes them or by what they tell.
KINDS = {
    "ffma": r"(FFMA|FMUL|FADD|HFMA2|HADD2|HMUL2)\b",
    "dfma": r"(DFMA|DMUL|DADD|DSETP)\b",
    "mma": r"(HMMA|HGMMA|IMMA)\b",
    "mufu": r"MUFU\b",
    "lds": r"(LDS|LDSM)\b",
    "sts": r"STS\b",
    "shfl": r"SHFL\b",
    "bar": r"(BAR|WARPSYNC)\b",
    "loads": r"LDG\b",
    "copies": r"LDGSTS\b",
    "stores": r"STG\b",
    "generic": r"(LD|ST|ATOM)\.E\b|(LD|ST|ATOM) ",
    "branches": r"(BRA|BRX|CALL)\b",
}
# A division of integers by a number that is not known when compiling converts to float, takes a reciprocal, and
# converts back; nothing else rounds its conversion up.
DIVISION = re.compile(r"I2F\S*\.RP|I2F\.U64\.RP|I2FP?\.\S*RP")
LOAD = re.compile(r"(LDG|LD)\.")


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str
    operands: str
    predicate: str = ""

    @property
    def written(self) -> set[int]:
        """Registers of the first operand; the loads are the only ones whose width matters here."""
        if (found := re.match(r"R(\d+)", self.operands)) is None or self.opcode.startswith(("ST", "RED", "LDGSTS")):
            return set()
        wide = re.search(r"\.(64|128)\b", self.opcode)
        first = int(found[1])
        return set(range(first, first + (int(wide[1]) // 32 if wide else 1)))

    @property
    def read(self) -> set[int]:
        operands = self.operands
        if not self.opcode.startswith(("ST", "RED", "LDGSTS", "BRA", "BRX")):
            operands = operands.partition(",")[2]
        found = set()
        for match in re.finditer(r"\bR(\d+)(\.64|\.reuse)?\b", operands):
            found.add(int(match[1]))
            if match[2] == ".64":
                found.add(int(match[1]) + 1)
        return found


@dataclass
class Loop:
    """A natural loop, in the order of addresses: the blocks from which its start is reached again without leaving it.

    Blocks past the branch back to the start are left out: the compiler puts there what is seldom run, such as shuffles
    of warps that have diverged.
    """

    body: list[Instruction]
    blocks: dict[int, list[Instruction]]
    follow: dict[int, list[int]]  # block -> blocks of the loop that may come next; the start is none of them
    latches: set[int]  # blocks that branch back to the start
    inner: list["Loop"] = field(default_factory=list)

    @property
    def start(self) -> int:
        return self.body[0].address

    @property
    def own(self) -> list[Instruction]:
        """What is not in an inner loop."""
        inside = {i.address for loop in self.inner for i in loop.body}
        return [i for i in self.body if i.address not in inside]

    def contains(self, other: "Loop") -> bool:
        return other is not self and other.start in self.blocks and len(other.body) < len(self.body)


def parse(text: str) -> dict[str, list[Instruction]]:
    """Function (mangled) -> instructions, of what cuobjdump -sass prints."""
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] | None = None
    for line in text.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            code = functions.setdefault(found[1], [])
        elif code is not None and (found := re.match(r"\s+/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;?\s*/\*", line)):
            parts = re.match(r"(@!?U?P\w+\s+)?(\S+)\s*(.*)", found[2].strip())
            code.append(Instruction(int(found[1], 16), parts[2], parts[3], (parts[1] or "").strip()))
    return functions


def branch_target(instruction: Instruction) -> int | None:
    if not instruction.opcode.startswith("BRA"):
        return None
    found = re.search(r"0x([0-9a-f]+)\)?$", instruction.operands)
    return int(found[1], 16) if found else None


def _blocks(code: Sequence[Instruction]) -> tuple[dict[int, list[Instruction]], dict[int, list[int]]]:
    """Basic blocks by their first address, and the blocks that may follow each."""
    addresses = {i.address for i in code}
    leaders = {code[0].address}
    for here, after in zip(code, [*code[1:], None], strict=True):
        target = branch_target(here)
        if target in addresses:
            leaders.add(target)
        if after is not None and here.opcode.startswith(("BRA", "BRX", "EXIT", "RET", "JMP")):
            leaders.add(after.address)
    blocks: dict[int, list[Instruction]] = {}
    for instruction in code:
        if instruction.address in leaders:
            current = blocks.setdefault(instruction.address, [])
        current.append(instruction)
    starts, follow = list(blocks), {}
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        last = blocks[start][-1]
        target = branch_target(last)
        conditional = last.predicate or re.match(r"!?U?P\d", last.operands) or ".DIV" in last.opcode
        ends = last.opcode.startswith(("BRA", "BRX", "EXIT", "RET", "JMP")) and not conditional
        follow[start] = [s for s in (target if target in blocks else None, None if ends else after) if s is not None]
    return blocks, follow


def _dominators(first: int, follow: dict[int, list[int]]) -> dict[int, int]:
    """Block -> the block that every way to it passes last; only blocks that are reached."""
    order, seen, stack = [], {first}, [(first, iter(follow[first]))]
    while stack:
        block, rest = stack[-1]
        for after in rest:
            if after not in seen:
                seen.add(after)
                stack.append((after, iter(follow[after])))
                break
        else:
            order.append(block)
            stack.pop()
    order.reverse()
    rank = {block: i for i, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for after in follow[block]:
            before[after].append(block)
    dominator = {first: first}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [b for b in before[block] if b in dominator]
            found = known[0]
            for other in known[1:]:
                while found != other:
                    while rank[found] > rank[other]:
                        found = dominator[found]
                    while rank[other] > rank[found]:
                        other = dominator[other]
            if dominator.get(block) != found:
                dominator[block] = found
                changed = True
    return dominator


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """All loops, outer ones first; each knows those directly inside it."""
    if not code:
        return []
    blocks, follow = _blocks(code)
    dominator = _dominators(code[0].address, follow)
    before: dict[int, list[int]] = {}
    for block in dominator:
        for after in follow[block]:
            before.setdefault(after, []).append(block)

    def dominates(block: int, other: int) -> bool:
        while other != block and dominator[other] != other:
            other = dominator[other]
        return other == block

    latches: dict[int, list[int]] = {}
    for block in dominator:
        for after in follow[block]:
            # A branch of an instruction to itself ends every function: no loop.
            if after <= block and len(blocks[block]) + (after != block) > 1 and dominates(after, block):
                latches.setdefault(after, []).append(block)
    found = []
    for start, ends in latches.items():
        inside, stack = {start}, list(ends)
        while stack:
            block = stack.pop()
            if block not in inside:
                inside.add(block)
                stack += before.get(block, [])
        kept = {b: blocks[b] for b in sorted(inside) if start <= b <= max(ends)}
        next_of = {b: [a for a in follow[b] if a in kept and a != start] for b in kept}
        found.append(Loop([i for body in kept.values() for i in body], kept, next_of, set(ends)))
    found.sort(key=lambda loop: (loop.start, -len(loop.body)))
    for loop in found:
        around = [other for other in found if other.contains(loop)]
        if around:
            min(around, key=lambda other: len(other.body)).inner.append(loop)
    return found


def loads_in_flight(body: Sequence[Instruction]) -> int:
    """The most loads from global memory that are under way at once before one of them is waited for.

    Walks the body as it stands, branches not taken: a load is under way until an instruction reads, or writes again,
    a register that it fills. The wait for one load is taken to be the wait for those issued before it. A copy to shared
    memory (LDGSTS) is under way until the group is waited for, so until the end.
    """
    pending: list[set[int]] = []
    most = copies = 0
    for instruction in body:
        used = instruction.read | instruction.written
        waited = max((i for i, registers in enumerate(pending) if registers & used), default=None)
        if waited is not None:
            pending = pending[waited + 1 :]
        if instruction.opcode.startswith("LDGSTS"):
            copies += 1
        elif LOAD.match(instruction.opcode) and instruction.written:
            pending.append(instruction.written)
        most = max(most, len(pending) + copies)
    return most


def count(body: Sequence[Instruction]) -> dict[str, int]:
    """How many instructions of each of KINDS, integer divisions, all instructions, and loads in flight."""
    counts = {kind: sum(re.match(pattern, f"{i.opcode} ") is not None for i in body) for kind, pattern in KINDS.items()}
    counts["divisions"] = sum(DIVISION.match(i.opcode) is not None for i in body)
    counts["in_flight"] = loads_in_flight(body)
    return {"instructions": len(body), **counts}


@functools.cache
def cuobjdump() -> tuple[str, str] | None:
    """The program, and a PATH on which it finds nvdisasm; None where there is none.

    `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` puts them beside the packages, not on PATH.
    """
    folders = os.environ["PATH"].split(os.pathsep)
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else []:
        folders += [str(path.parent) for path in Path(root).glob("*/bin/*") if path.name in ("cuobjdump", "nvdisasm")]
    path = os.pathsep.join(dict.fromkeys(folders))
    found = [shutil.which(name, path=path) for name in ("cuobjdump", "nvdisasm")]
    return (found[0], path) if all(found) else None


def disassemble(target: Path, architecture: str) -> dict[str, list[Instruction]]:
    if (tool := cuobjdump()) is None:
        raise SystemExit(
            "cuobjdump and nvdisasm were not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    command = [tool[0], "-sass", "-arch", architecture, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": tool[1]})
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return parse(done.stdout)
