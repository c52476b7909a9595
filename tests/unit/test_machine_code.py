"""The reading of machine code (tests/cuda): loops, counts and loads in flight of a text where they are known."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cuda"))

import machine_code
import sass

from bench.prediction import model

# Two loops, one within the other. The inner one has two loads before the first use, and skips the reciprocal where P1
# is set. A block past the end jumps back into it, as those of diverged warps do, and is no loop.
TEXT = """
		Function : _Z5outerPf
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   IMAD.MOV.U32 R8, RZ, RZ, RZ ;                 /* 0x000000fffff87224 */
                                                                                 /* 0x000fe200078e00ff */
        /*0010*/                   I2F.U32.RP R9, R8 ;                           /* 0x0000000800097306 */
        /*0020*/                   LDG.E R2, desc[UR4][R4.64] ;                  /* 0x0000000404027981 */
        /*0030*/                   LDG.E.128.CONSTANT R12, desc[UR4][R6.64] ;    /* 0x0000000406097981 */
        /*0040*/                   FFMA R10, R2, R3, R10 ;                       /* 0x000000030202a223 */
        /*0050*/               @P1 BRA 0x80 ;                                    /* 0x0000000000207947 */
        /*0060*/                   MUFU.RCP R11, R10 ;                           /* 0x0000000a000b7308 */
        /*0070*/                   FFMA R10, R11, R13, R10 ;                     /* 0x0000000d0b0aa223 */
        /*0080*/              @!P2 BRA 0x100 ;                                   /* 0x0000000000207947 */
        /*0090*/                   LDS R14, [R15] ;                              /* 0x000000000f0e7984 */
        /*00a0*/               @P0 BRA 0x20 ;                                    /* 0xffffffe000200947 */
        /*00b0*/                   ST.E desc[UR4][R4.64], R10 ;                  /* 0x0000000a04007985 */
        /*00c0*/               @P3 BRA 0x10 ;                                    /* 0xffffffd000200947 */
        /*00d0*/                   EXIT ;                                        /* 0x000000000000794d */
        /*00e0*/                   BRA 0xe0;                                     /* 0xfffffffc00fc7947 */
        /*0100*/                   WARPSYNC.COLLECTIVE R0, 0x120 ;               /* 0x0000000000007348 */
        /*0110*/                   SHFL.BFLY PT, R14, R14, 0x1, 0x1f ;           /* 0x0c201f000e0e7f89 */
        /*0120*/                   BRA 0x90 ;                                    /* 0xffffff7000007947 */
		Function : _Z4nonev
        /*0000*/                   EXIT ;                                        /* 0x000000000000794d */
        /*0010*/                   BRA 0x10;                                     /* 0xfffffffc00fc7947 */
"""


@pytest.fixture
def loops():
    return sass.loops(sass.parse(TEXT)["_Z5outerPf"])


def test_functions_and_instructions():
    functions = sass.parse(TEXT)
    assert list(functions) == ["_Z5outerPf", "_Z4nonev"]
    code = functions["_Z5outerPf"]
    assert len(code) == 18
    assert code[5] == sass.Instruction(0x50, "BRA", "0x80", "@P1")
    assert code[3].written == {12, 13, 14, 15}
    assert code[3].read == {6, 7}
    assert code[11].written == set()
    assert code[11].read == {4, 5, 10}
    assert sass.loops(functions["_Z4nonev"]) == []


def test_loops_and_what_lies_in_them(loops):
    outer, inner = loops
    assert (outer.start, outer.body[-1].address) == (0x10, 0xC0)
    assert (inner.start, inner.body[-1].address) == (0x20, 0xA0)
    assert outer.inner == [inner]
    assert [i.address for i in outer.own] == [0x10, 0xB0, 0xC0]


def test_counts(loops):
    outer, inner = (sass.count(loop.own) for loop in loops)
    assert {kind: n for kind, n in inner.items() if n} == {
        "instructions": 9, "ffma": 2, "mufu": 1, "lds": 1, "loads": 2, "branches": 3, "in_flight": 2,
    }  # fmt: skip
    assert {kind: n for kind, n in outer.items() if n} == {
        "instructions": 3, "generic": 1, "branches": 1, "divisions": 1,
    }  # fmt: skip


def test_loads_in_flight_end_with_the_first_use():
    def body(*lines):
        return [sass.Instruction(16 * i, *line.split(" ", 1)) for i, line in enumerate(lines)]

    load = "LDG.E R{}, desc[UR4][R20.64]"
    use = "FADD R9, R9, R{}"
    together = body(*(load.format(r) for r in range(4)), *(use.format(r) for r in range(4)))
    one_by_one = body(*(line.format(r) for r in range(4) for line in (load, use)))
    assert sass.loads_in_flight(together) == 4
    assert sass.loads_in_flight(one_by_one) == 1
    # The wait for the second is a wait for the first.
    assert sass.loads_in_flight(body(load.format(0), load.format(1), use.format(1), load.format(2))) == 2


def test_a_way_has_what_it_needs(loops):
    inner = loops[1]
    short = model.find_way(inner, {"loads": 2}, {})
    assert [i.opcode for i in short] == ["LDG.E", "LDG.E.128.CONSTANT", "FFMA", "BRA", "BRA", "LDS", "BRA"]
    long = model.find_way(inner, {"mufu": 1}, {})
    assert [i.address for i in long] == list(range(0x20, 0xB0, 0x10))
    assert model.find_way(inner, {"mufu": 1}, {"ffma": 1}) is None
    assert model.find_way(inner, {"ffma": 3}, {}) is None


def test_a_warp_waits_for_what_it_reads(loops):
    def cycles(**where):
        loop = model.Loop("inner", "", {"loads": 2}, **where)
        return [model.cycles_of_one_warp(model.find_way(loops[1], loop.needs, {}), loop, which) for which in range(3)]

    near, far = cycles(narrow="l1"), cycles(narrow="dram")
    assert all(a < b for a, b in zip(near, far, strict=True))
    assert near == sorted(near)
    assert far[1] > 500
    measured = model.measure(loops, model.Loop("inner", "", {"loads": 2}))
    assert measured["instructions"] == 7
    assert measured["wide"] == 1
    with pytest.raises(ValueError, match=r"rows: no way through a loop of rows_kernel has {'mma': 1}"):
        model.measure(loops, model.Loop("rows", "rows_kernel", {"mma": 1}))


@dataclasses.dataclass
class Report:
    kernel: str
    architecture: str
    registers: int
    shared: int


def table(loop: dict, compiler: str = "nvcc 1") -> dict:
    row = {"kernel": "nade_in_rows_kernel<float>", "architecture": "sm_90a", "registers": 32, "shared": 0,
           "warps": 64, "loop": loop}  # fmt: skip
    return {"compiler": compiler, "kernels": [row], "paths": {}, "known": machine_code.missed([row])}


def counts(**changed) -> dict:
    return {"loads": 8, "copies": 0, "in_flight": 8, "divisions": 0, "generic": 0} | changed


def test_expectations_fail_both_ways(capsys):
    good, bad = table(counts()), table(counts(in_flight=1, divisions=8))
    assert [entry["misses"] for entry in bad["known"]] == ["at least 8 loads in flight", "no division of integers"]
    assert good["known"] == []
    assert machine_code.check(bad, bad, whole=False) == []
    assert (
        sum(": expected " in problem or " expected " in problem for problem in machine_code.check(bad, good, False))
        == 2
    )
    assert sum("take it off the list" in problem for problem in machine_code.check(good, bad, whole=False)) == 2
    # Counts of another compiler are not compared; the expectations are.
    other = table(counts(in_flight=9), compiler="nvcc 2")
    assert any("differs" in problem for problem in machine_code.check(table(counts(in_flight=9)), good, whole=False))
    assert machine_code.check(other, good, whole=False) == []
    assert "counts are not compared" in capsys.readouterr().out


def test_a_part_of_the_table_is_written_beside_the_rest():
    row = {"kernel": "kernel", "architecture": "sm_90a", "loop": counts(in_flight=2)}
    other = {**row, "kernel": "other"}
    committed = {"compiler": "nvcc 1", "kernels": [row, other], "paths": {"a": 1, "c": 1}, "known": []}
    table = {"compiler": "nvcc 1", "kernels": [{**row, "loop": counts()}], "paths": {"b": 2, "c": 2}, "known": []}
    found = machine_code.beside(committed, table)
    assert found["kernels"] == [table["kernels"][0], other]
    assert found["paths"] == {"a": 1, "b": 2, "c": 2}
    assert [entry["kernel"] for entry in found["known"]] == ["other"]
    with pytest.raises(ValueError, match="is of nvcc 1, this is nvcc 2"):
        machine_code.beside(committed, {**table, "compiler": "nvcc 2"})


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "warps"),
    [(128, 32, 0, 64), (256, 80, 32768, 24), (32, 255, 0, 8), (1024, 64, 0, 32), (128, 32, 100 * 1024, 8)],
)
def test_resident_warps(threads, registers, shared, warps):
    assert machine_code.resident_warps("sm_90a", threads, registers, shared) == warps


def test_the_readable_table_is_of_the_committed_one():
    import json

    committed = json.loads(machine_code.TABLE.read_text())
    assert machine_code.READABLE.read_text() == machine_code.readable(committed)
    assert committed["known"] == machine_code.missed(committed["kernels"])
