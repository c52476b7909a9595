"""Which loops the kernels run, and how often: from the launches and cuts in launches.json, which the launchers made.

A kernel that is redesigned changes here and in the tables, never in model.py or rates.py in the same commit.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import model, rates
from .cases import Case
from .model import Launch, Loop

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES = Path(__file__).with_name("launches.json")
MACHINE_CODE = ROOT / "tests" / "cuda" / "machine_code.json"

# What stays in the L2 cache (50 MB) from one call to the next.
L2_BYTES = 40e6

_RNN_16 = "rnn_sample_kernelINS_8bfloat16E"
_TILES = r"masked_linear_tiles_kernelI\w*TileScheme"
LOOPS = [
    # 8 positions, also of weights that no cache holds.
    Loop("nade_states", "nade_states_kernelIfLb0E", {"loads": 8, "ffma": 64, "mufu": 8}),
    Loop("nade_states, memory", "nade_states_kernelIfLb0E", {"loads": 8, "ffma": 64, "mufu": 8}, narrow="dram"),
    Loop("nade_states, inputs", "nade_states_kernelIfLb0E", {"sts": 1, "loads": 1}),
    # 8 positions that each change the state; 8 that leave it.
    Loop("nade_scan, ones", "nade_scan_kernelIfLb1E", {"mufu": 64, "lds": 16}),
    Loop("nade_scan, zeros", "nade_scan_kernelIfLb1E", {"lds": 8, "shfl": 10}),
    # A weight row of a strip into shared memory.
    Loop("nade_scan, stage", "nade_scan_kernelIfLb1E", {"copies": 1}, off="LDG\\."),
    Loop("nade_head", "nade_head_kernelIfLb1E", {"mufu": 1, "stores": 1, "loads": 4}),
    # A row of the batch, 16 positions.
    Loop("nade_local, ones", "nade_local_kernelIfE", {"mufu": 32, "lds": 8, "ffma": 96}),
    Loop("nade_local, zeros", "nade_local_kernelIfE", {"mufu": 2, "lds": 8, "ffma": 32}),
    Loop("nade_far", "nade_far_kernelIfE", {"ffma": 32}),  # 2 rows, 16 positions
    Loop("nade_suffix", "nade_suffix_kernelIfE", {"loads": 16}),  # 16 tiles
    Loop("nade_bias", "nade_bias_kernelIfE", {"loads": 16}),  # 16 rows
    # A position after one that changed the state, and after one that did not.
    Loop("nade_sample, one", "nade_sample_kernelIfLb0E", {"mufu": 33, "ffma": 32, "loads": 8}, most={"loads": 8}),
    Loop("nade_sample, zero", "nade_sample_kernelIfLb0E", {"mufu": 1, "ffma": 16, "loads": 8}, most={"loads": 8}),
    # 128 inputs of 4 units; what 4 units cost besides.
    Loop("masked_mlp", "masked_mlp_sample_kernelIfE", {"loads": 16, "ffma": 16}, narrow="l2", first=True),
    Loop("masked_mlp, memory", "masked_mlp_sample_kernelIfE", {"loads": 16, "ffma": 16}, narrow="dram", first=True),
    Loop("masked_mlp, finish", "masked_mlp_sample_kernelIfE", {"shfl": 20}, first=True),
    # 128 columns of a row of the weight.
    Loop("masked_rows", r"\d+masked_linear_rows_kernelIfE", {"ffma": 16, "wide": 1}, wide="dram", narrow="l1"),
    # A step of the sum: 16 of exact float32, 32 of bfloat16.
    Loop("tiles, exact", _TILES + r"IfLb0ELi64E\w*ProductE0E", {"ffma": 256, "copies": 2}),
    Loop("tiles, exact, memory", _TILES + r"IfLb0ELi64E\w*ProductE0E", {"ffma": 256, "copies": 2}, wide="dram"),
    # 256 inputs of 4 rows of a weight in shared memory and 4 rows of the batch, 512 of 16 bits; what these sums cost
    # besides; a unit of a GRU.
    Loop("rnn float32, product", "rnn_sample_kernelIfE", {"ffma": 128, "lds": 8, "loads": 8}, first=True),
    Loop("rnn float32, sums", "rnn_sample_kernelIfE", {"shfl": 18}, first=True),
    Loop("rnn float32, gates", "rnn_sample_kernelIfE", {"mufu": 6, "loads": 12}, most={"mufu": 6}, first=True),
    Loop("rnn bfloat16, product", _RNN_16, {"ffma": 256, "lds": 8, "loads": 16}, first=True),
    Loop("rnn bfloat16, sums", _RNN_16, {"shfl": 18}, first=True),
    Loop("rnn bfloat16, gates", _RNN_16, {"mufu": 6, "loads": 12}, most={"mufu": 6}, first=True),
    Loop("tiles, bfloat16 128", _TILES + r"INS_8bfloat16ELb1ELi128E\w*ProductE0E", {"mma": 64, "copies": 8}),
]


@dataclass(frozen=True)
class Recorded:
    """A launch that a launcher made."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int

    @property
    def blocks(self) -> int:
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        return math.prod(self.block)


class Table:
    """The committed counts: machine_code.json."""

    def __init__(self, path: Path = MACHINE_CODE) -> None:
        content = json.loads(path.read_text())
        self.paths: Mapping[str, dict] = content["paths"]
        self._kernels = {(row["kernel"], row["architecture"]): row for row in content["kernels"]}

    def launch(self, recorded: Recorded, kernel: str, turns: Mapping[str, float], **rest) -> Launch:
        """kernel: its name with its template arguments."""
        row = self._kernels[kernel, model.ARCHITECTURE]
        limits = rates.LIMITS[model.ARCHITECTURE]
        shared = row["shared"] + recorded.shared
        resident = model.resident_blocks(limits, recorded.threads, row["registers"], shared)
        return Launch(recorded.kernel, recorded.blocks, -(-recorded.threads // 32), resident, turns, **rest)


def _where(path: str, weight_bytes: float) -> str:
    return path if weight_bytes <= L2_BYTES else f"{path}, memory"


def _mixed(path: str, times: float, ones: float) -> dict[str, float]:
    return {f"{path}, ones": times * ones, f"{path}, zeros": times * (1 - ones)}


def _nade_states(table: Table, recorded: Recorded, case: Case, cut: Mapping[str, int]) -> Launch:
    variables, hidden = case.variables, case.hidden
    weight = 4.0 * variables * hidden
    steps = math.ceil(variables / 32)
    turns = {_where("nade_states", weight): steps * 4, "nade_states, inputs": steps * 256 / recorded.threads}
    return table.launch(
        recorded, "nade_states_kernel<float, false>", turns, waits={"barrier": 2 * steps},
        l2_bytes=weight * recorded.grid[0], dram_bytes=weight if weight > L2_BYTES else 0,
    )  # fmt: skip


def _nade_forward(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    states, scan, head = launches
    weights = 8.0 * case.variables * case.hidden
    steps = math.ceil(cut["chunk"] / 32)
    turns = _mixed("nade_scan", steps * 4, case.ones)
    turns["nade_scan, stage"] = steps * 2 * 32 / 8
    memory = "l2" if weights <= L2_BYTES else "dram"
    groups = math.ceil(case.batch / 8)
    return [
        _nade_states(table, states, case, cut),
        table.launch(
            scan, "nade_scan_kernel<float, true>", turns,
            waits={memory: steps, "l2": steps, "barrier": 2 * steps} if memory != "l2" else {"l2": 2 * steps},
            l2_bytes=weights * groups, dram_bytes=weights if weights > L2_BYTES else 0,
        ),
        table.launch(head, "nade_head_kernel<float, true>", {"nade_head": math.ceil(case.variables / 256)}),
    ]  # fmt: skip


def _nade_training(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    of_head, states, local, suffix, far, bias = launches[3:]
    sums = 4.0 * cut["tiles"] * case.batch * case.hidden
    return [
        *_nade_forward(table, launches[:3], case, cut),
        # A thread a variable: nothing but two loads and a sigmoid.
        table.launch(of_head, "bernoulli_backward_kernel<float>", {}, waits={"l2": 3, "mufu": 4}),
        _nade_states(table, states, case, cut),
        table.launch(
            local, "nade_local_kernel<float>", _mixed("nade_local", case.batch, case.ones),
            waits={"l2": case.batch / 8, "barrier": case.batch / 4}, l2_bytes=2 * sums,
        ),
        table.launch(suffix, "nade_suffix_kernel<float>", {"nade_suffix": cut["tiles"] / 16}, l2_bytes=2 * sums),
        table.launch(
            far, "nade_far_kernel<float>", {"nade_far": case.batch / 2},
            waits={"l2": case.batch / 8, "barrier": case.batch / 4}, l2_bytes=sums,
        ),
        table.launch(bias, "nade_bias_kernel<float>", {"nade_bias": case.batch / 16}),
    ]  # fmt: skip


def _nade_sampling(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    (sample,) = launches
    turns = {"nade_sample, one": case.variables * case.ones, "nade_sample, zero": case.variables * (1 - case.ones)}
    weights = 8.0 * case.variables * case.hidden
    return [table.launch(sample, "nade_sample_kernel<float, false>", turns, l2_bytes=weights * case.batch)]


def _made_sampling(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    widths = case.layers
    quads = math.ceil(widths[1] / case.variables / 4) * case.variables  # of a hidden layer
    inputs, finishes, weight = 0.0, 0.0, 0.0
    for below, units in itertools.pairwise(widths):
        of_layer = case.variables if units == case.variables else quads
        inputs += of_layer * below / 2 / 128
        finishes += of_layer
        weight += 4.0 * below * units / 2
    turns = {_where("masked_mlp", 2 * weight): inputs, "masked_mlp, finish": finishes}
    return [
        table.launch(
            each, "masked_mlp_sample_kernel<float>", turns,
            l2_bytes=weight * each.blocks, dram_bytes=weight if 2 * weight > L2_BYTES else 0,
        )
        for each in launches
    ]  # fmt: skip


def linear(table: Table, recorded: Recorded, case: Case, inputs: int, outputs: int) -> Launch:
    """masked_linear with a staircase: the average row sees half of the inputs, the longest all of them."""
    size = 2 if case.dtype == "bfloat16" else 4
    weight = size * inputs * outputs / 2
    if recorded.kernel == "masked_linear_rows":
        return table.launch(
            recorded, "masked_linear_rows_kernel<float>", {"masked_rows": inputs / 2 / 128}, longest=2,
            l2_bytes=weight, dram_bytes=weight if weight > L2_BYTES else 0,
        )  # fmt: skip
    # Threads and shared memory tell which tiles these are.
    exact = recorded.threads == 256
    tile, steps = (64, 16) if exact else (128, 32)
    scheme = "float, false, 64" if exact else "bfloat16, true, 128"
    path = _where("tiles, exact", weight) if exact else "tiles, bfloat16 128"
    turns = inputs / 2 / steps
    kernel = f"masked_linear_tiles_kernel<TileScheme<{scheme}>, 0>"
    dram = weight if weight > L2_BYTES else 0
    return table.launch(
        recorded, kernel, {path: turns}, longest=2,
        l2_bytes=recorded.blocks * 2 * tile * size * inputs / 2, dram_bytes=dram,
    )  # fmt: skip


def _masked_linear(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    (product,) = launches
    return [linear(table, product, case, *case.layers)]


def _rnn_sample(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    """The chain of a step in a grid: states arrive, readout, draw, values arrive, gates.

    Unit blocks multiply the states by the recurrent weights during the readout; the longer of the two counts.
    """
    (sample,) = launches
    (outputs,) = case.layers
    warps = sample.threads / 32
    per_turn = 256 if case.dtype == "float32" else 512
    own_rows = math.ceil(case.batch / cut["draw_blocks"])
    tiles = max(
        math.ceil(3 * cut["units"] / 4) * math.ceil(case.batch / 4),
        math.ceil(outputs / 4) * math.ceil(own_rows / 4),
    )
    turns = {
        f"rnn {case.dtype}, product": case.steps * math.ceil(tiles / warps) * case.hidden / per_turn,
        f"rnn {case.dtype}, sums": case.steps * math.ceil(tiles / warps),
        f"rnn {case.dtype}, gates": case.steps * math.ceil(case.batch * cut["units"] / sample.threads),
    }
    # A draw by a warp: seven butterflies over the categories (their maximum, sum and running sums, and the same of
    # log p), their exponentials, and what the random number and the end of log p take in double.
    each = math.ceil(outputs / 32)
    draws = case.steps * math.ceil(own_rows / warps)
    waits = {"shfl": 5 * (4 + each) * draws, "mufu": 4 * each * draws, "dfma": 60 * draws, "l2": 3 * draws}
    kernel = f"rnn_sample_kernel<{'float' if case.dtype == 'float32' else case.dtype}>"
    return [table.launch(sample, kernel, turns, waits=waits, grid_barriers=2 * case.steps)]


KINDS = {
    "rnn_sample": _rnn_sample,
    "nade forward": _nade_forward,
    "nade forward+backward": _nade_training,
    "nade sampling": _nade_sampling,
    "made sampling": _made_sampling,
    "masked_linear": _masked_linear,
}


def launches_of(case: Case, table: Table, geometry: Mapping[str, dict]) -> list[Launch]:
    entry = geometry[case.name]
    recorded = [Recorded(e["kernel"], tuple(e["grid"]), tuple(e["block"]), e["shared"]) for e in entry["launches"]]
    return KINDS[case.kind](table, recorded, case, entry["cut"])
