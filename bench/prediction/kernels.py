"""Which loops the kernels run, and how often: from the launches and cuts in launches.json, which the launchers made.

A kernel that is redesigned changes here and in the tables, never in model.py or rates.py in the same commit.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import model, rates
from .cases import Case
from .model import Launch, Loop, Product

ROOT = Path(__file__).resolve().parents[2]
LAUNCHES = Path(__file__).with_name("launches.json")
MACHINE_CODE = ROOT / "tests" / "cuda" / "machine_code.json"

# What stays in the L2 cache (50 MB) from one call to the next.
L2_BYTES = 40e6

_SAMPLE = "nade_sample_kernelIfLb0ELb1ELb1E"
_MLP = "masked_mlp_sample_kernelIfLb{}E"
_TILES = r"masked_linear_tiles_kernelI\w*TileScheme"
_WIDE = r"masked_linear_{}_kernelI\w*WideSchemeILi{}E\w*ProductE0E"
LOOPS = [
    # 8 positions of 8 or 16 rows, also of weights that no cache holds; the inputs of 32 positions.
    *(
        loop
        for rows in (8, 16)
        for kernel in (f"nade_sums_kernelIfLb0ELb1ELi{rows}E",)
        for loop in (
            Loop(f"nade_sums {rows}", kernel, {"loads": 8, "ffma": 32 * rows}),
            Loop(f"nade_sums {rows}, memory", kernel, {"loads": 8, "ffma": 32 * rows}, wide="dram"),
            Loop(f"nade_sums {rows}, inputs", kernel, {"sts": 1 + rows // 4, "loads": 1 + rows}),
        )
    ),
    Loop("nade_running_sums", "nade_running_sums_kernelIfLb0E", {"loads": 16}, first=True),  # 16 tiles
    # 8 positions that each change the state; 7 of 8, with branches; none. 32 positions of both weights into shared
    # memory.
    Loop("nade_scan, every", "nade_scan_kernelIfLb1ELb1E", {"mufu": 64, "lds": 16}),
    Loop("nade_scan, ones", "nade_scan_kernelIfLb1ELb1E", {"mufu": 56, "lds": 15}, most={"mufu": 56}),
    Loop("nade_scan, zeros", "nade_scan_kernelIfLb1ELb1E", {"lds": 8, "shfl": 10}),
    Loop("nade_scan, stage", "nade_scan_kernelIfLb1ELb1E", {"copies": 8}),
    Loop("nade_scan, stage, memory", "nade_scan_kernelIfLb1ELb1E", {"copies": 8}, wide="dram"),
    Loop("nade_head", "nade_head_kernelIfLb1E", {"mufu": 1, "stores": 1, "loads": 4}),
    # Two rows of the batch, 16 positions that each change the state; 15 of them, with branches; one. The inputs and
    # states of 8 rows.
    Loop("nade_local, every", "nade_local_kernelIfLb1E", {"mufu": 64, "ffma": 150}),
    Loop("nade_local, ones", "nade_local_kernelIfLb1E", {"mufu": 60, "ffma": 150}, most={"mufu": 60}),
    Loop("nade_local, zeros", "nade_local_kernelIfLb1E", {"mufu": 4, "ffma": 100}),
    Loop("nade_local, stage", "nade_local_kernelIfLb1E", {"sts": 16, "loads": 16}),
    # 4 rows, 16 positions of 4 units; the inputs of 8 rows.
    Loop("nade_far", "nade_far_kernelIfE", {"ffma": 256}),
    Loop("nade_far, stage", "nade_far_kernelIfE", {"sts": 4}),
    # Two positions, of which both, one, or neither come after one that changed the state. Activations are computed as
    # often as the state is changed.
    Loop("nade_sample, one one", _SAMPLE, {"mufu": 64, "ffma": 128, "loads": 16}, most={"loads": 16}),
    Loop("nade_sample, one of two", _SAMPLE, {"mufu": 32, "ffma": 80, "loads": 16}, most={"mufu": 32, "loads": 16}),
    Loop("nade_sample, zero zero", _SAMPLE, {"ffma": 32, "loads": 16}, most={"mufu": 0, "loads": 16}),
    # 128 inputs of 4 units; what 4 units cost besides; 8 partial sums of a unit from before the block; and a step of 16
    # inputs of the tiles that make them. One warp a row, and several.
    Loop("masked_mlp", _MLP.format(0), {"loads": 16, "ffma": 16, "lds": 4}, first=True),
    Loop("masked_mlp, finish", _MLP.format(0), {"shfl": 6}, first=True),
    Loop("masked_mlp, chunks", _MLP.format(0), {"loads": 8}, most={"ffma": 0, "lds": 0, "shfl": 0}),
    Loop("masked_mlp warps", _MLP.format(1), {"loads": 16, "ffma": 16, "lds": 4}, first=True),
    Loop("masked_mlp warps, finish", _MLP.format(1), {"shfl": 6}, first=True),
    Loop("masked_mlp warps, chunks", _MLP.format(1), {"loads": 8}, most={"ffma": 0, "lds": 0, "shfl": 0}),
    Loop("masked_mlp sums", "masked_mlp_sums_kernelIfE", {"ffma": 256, "copies": 2}),
    Loop("masked_mlp sums, memory", "masked_mlp_sums_kernelIfE", {"ffma": 256, "copies": 2}, wide="dram"),
    # 512 columns of a row of the weight and of one of the batch; the last columns, fewer than 4.
    Loop("masked_rows", r"\d+masked_linear_rows_kernelIfE", {"ffma": 16, "wide": 8}, wide="dram"),
    Loop("masked_rows, rest", r"\d+masked_linear_rows_kernelIfE", {"ffma": 16, "loads": 26}, narrow="l1"),
    # A step of the sum: 16 of exact float32, 32 of bfloat16.
    Loop("tiles, exact", _TILES + r"IfLb0ELi64E\w*ProductE0E", {"ffma": 256, "copies": 2}),
    Loop("tiles, exact, memory", _TILES + r"IfLb0ELi64E\w*ProductE0E", {"ffma": 256, "copies": 2}, wide="dram"),
    # The same of wide tiles; 8 chunks of 4 outputs.
    *(
        Loop(f"tiles, wide {rows}{where}", _WIDE.format("tiles", rows), {"ffma": 1024, "copies": copies}, wide=wide)
        for rows, copies in ((32, 10), (64, 6))
        for where, wide in (("", "l2"), (", memory", "dram"))
    ),
    *(Loop(f"tiles, add {rows}", _WIDE.format("add", rows), {"wide": 8}, first=True) for rows in (32, 64)),
    # 8 vectors of a thread, of a row of the weight.
    Loop("strips, copy", "masked_linear_copy_kernelINS_8bfloat16E", {"loads": 8, "stores": 8}),
    # 256 inputs of 4 rows of a weight in shared memory and 4 rows of the batch; half as many of 16 rows of a weight and
    # one of the batch; what these sums cost besides; a unit of a GRU, with what is read before the values arrive.
    Loop("rnn float32, product", "rnn_sample_kernelIfE", {"ffma": 128, "lds": 8, "loads": 8}, first=True),
    Loop("rnn float32, readout", "rnn_sample_kernelIfE", {"ffma": 64, "lds": 16, "loads": 1}, most={"loads": 1}),
    Loop("rnn float32, sums", "rnn_sample_kernelIfE", {"shfl": 18}, first=True),
    Loop("rnn float32, gates", "rnn_sample_kernelIfE", {"mufu": 6, "loads": 12}, most={"mufu": 6}, first=True),
    # A position of a unit block, of a GRU: a look at the states, 8 tiles of sums, a look at the value, gates.
    Loop(
        "rnn matrix, units",
        "rnn_sample_matrix_kernel",
        {"mma": 32, "lds": 11, "sts": 17, "mufu": 6, "loads": 20, "stores": 2},
        most={"shfl": 0},
    ),
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


def _nade_states(table: Table, launches: Sequence[Recorded], case: Case, tile: int, tiles: int) -> list[Launch]:
    """Sums over all tiles but the last, then running sums."""
    of_tiles, running = launches
    weight = 4.0 * case.variables * case.hidden
    sums = 4.0 * (tiles - 1) * case.batch * case.hidden
    # A warp has 8 or 16 rows, and a strip of 128 units.
    groups = of_tiles.blocks * of_tiles.threads / 32 / (tiles - 1) / math.ceil(case.hidden / 128)
    rows = 8 if groups >= case.batch / 8 else 16
    path = f"nade_sums {rows}"
    turns = {_where(path, weight): math.ceil(tile / 8), f"{path}, inputs": math.ceil(tile / 32)}
    return [
        table.launch(
            of_tiles, f"nade_sums_kernel<float, false, true, {rows}>", turns,
            l2_bytes=weight * math.ceil(case.batch / rows) + sums, dram_bytes=weight if weight > L2_BYTES else 0,
        ),
        _running_sums(table, running, tiles - 1, sums),
    ]  # fmt: skip


def _running_sums(table: Table, recorded: Recorded, tiles: int, sums: float) -> Launch:
    turns = {"nade_running_sums": math.ceil(tiles / 16)}
    return table.launch(recorded, "nade_running_sums_kernel<float, false>", turns, waits={"l2": 1}, l2_bytes=2 * sums)


def _nade_forward(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    *states, scan, head = launches
    weights = 8.0 * case.variables * case.hidden
    eights = cut["chunk"] / 8
    if case.ones == 1:
        turns = {"nade_scan, every": eights}
    else:
        ones = case.ones * 8 / 7
        turns = {"nade_scan, ones": eights * ones, "nade_scan, zeros": eights * (1 - ones)}
    turns[_where("nade_scan, stage", weights)] = math.ceil(cut["chunk"] / 32)
    groups = math.ceil(case.batch / 8)
    return [
        *_nade_states(table, states, case, cut["chunk"], cut["chunks"]),
        table.launch(
            scan, "nade_scan_kernel<float, true, true>", turns, waits={"l2": 1},
            l2_bytes=weights * groups, dram_bytes=weights if weights > L2_BYTES else 0,
        ),
        table.launch(head, "nade_head_kernel<float, true>", {"nade_head": math.ceil(case.variables / head.threads)}),
    ]  # fmt: skip


def _nade_training(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    of_head, *states, local, suffix, far = launches[4:]
    sums = 4.0 * cut["tiles"] * case.batch * case.hidden
    inputs, weight = 4.0 * case.batch * case.variables, 4.0 * case.variables * case.hidden
    rows = math.ceil(case.batch / local.grid[1] / (local.threads // 32))  # of a warp
    if case.ones == 1:
        turns = {"nade_local, every": rows / 2}
    else:
        ones = (1 - (1 - case.ones) ** 2) * 15 / 14  # either row changes; the first of 16 positions is always computed
        turns = {"nade_local, ones": rows / 2 * ones, "nade_local, zeros": rows / 2 * (1 - ones)}
    return [
        *_nade_forward(table, launches[:4], case, cut),
        # A thread a variable: nothing but two loads and a sigmoid.
        table.launch(of_head, "bernoulli_backward_kernel<float>", {}, waits={"l2": 3, "mufu": 4}),
        *_nade_states(table, states, case, cut["tile"], cut["tiles"]),
        # Before and after the rows: the weights of the tile; the sums of the warps.
        table.launch(
            local, "nade_local_kernel<float, true>", turns | {"nade_local, stage": math.ceil(rows / 8)},
            waits={"l2": 2, "barrier": 5, "lds": 8},
            l2_bytes=2 * sums + 2 * inputs * math.ceil(case.hidden / 32) + 4 * weight,
        ),
        _running_sums(table, suffix, cut["tiles"], sums),
        # The blocks that add up the biases' gradient go through the batch once, and end before the others.
        table.launch(
            far, "nade_far_kernel<float>", {"nade_far": math.ceil(rows / 4), "nade_far, stage": math.ceil(rows / 8)},
            waits={"l2": 2, "barrier": 8, "lds": 16},
            l2_bytes=sums + inputs * math.ceil(case.hidden / 128) + 2 * weight,
        ),
    ]  # fmt: skip


def _nade_sampling(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    (sample,) = launches
    pairs, ones = case.variables / 2, case.ones
    turns = {
        "nade_sample, one one": pairs * ones**2,
        "nade_sample, one of two": pairs * 2 * ones * (1 - ones),
        "nade_sample, zero zero": pairs * (1 - ones) ** 2,
    }
    weights = 8.0 * case.variables * case.hidden
    return [table.launch(sample, "nade_sample_kernel<float, false, true, true>", turns, l2_bytes=weights * case.batch)]


@dataclass(frozen=True)
class _Positions:
    """Positions begin ... end - 1 of a masked network's draw, which reads what comes from position `first` on."""

    widths: Sequence[int]
    first: int
    begin: int
    end: int

    def units(self, width: int, before: float) -> float:
        """Of a value of so many units, those that are computable before a position, on average."""
        return width * before / self.widths[0]

    def turns(self, warps: int) -> tuple[float, float]:
        """Turns of 128 inputs, and of the rest of four units, of all positions and layers."""
        inputs, finishes = 0.0, 0.0
        for layer, (below, units) in enumerate(itertools.pairwise(self.widths)):
            each = units / self.widths[0]
            groups = min(1.0, each) * math.ceil(each / 4 / warps)
            for position in range(self.begin, self.end):
                known = self.units(below, position - self.first + (layer > 0))
                inputs += groups * math.ceil(known / 128)
                finishes += groups
        return inputs, finishes


def _made_draw(table: Table, recorded: Recorded, case: Case, cut: Mapping[str, int], positions: _Positions) -> Launch:
    """The weights of a block are in the L2 cache: in a larger network, a launch begins by asking for them."""
    warps, count, layers = cut["warps"], positions.end - positions.begin, len(case.layers) - 1
    path = "masked_mlp" if warps == 1 else "masked_mlp warps"
    inputs, finishes = positions.turns(warps)
    turns = {path: inputs, f"{path}, finish": finishes, f"{path}, chunks": 0.0}
    read = 0.0
    for below, units in itertools.pairwise(case.layers):
        own = positions.units(units, count)
        chunks = math.ceil(positions.units(below, positions.first) / cut["chunk"])
        turns[f"{path}, chunks"] += math.ceil(own / warps / 32) * math.ceil(chunks / 8)
        read += 4.0 * own * (positions.units(below, count) / 2 * recorded.blocks + chunks * case.batch)
    # Before the first position: where everything lies, and the random numbers. A position: barriers, and a draw from a
    # logit in shared memory, with its log p.
    waits = {
        "l2": 10 + layers, "alu": 120 + 80 * count, "dfma": 10 + 4 * count, "convert": 3 * count, "mufu": 6 * count,
        "lds": (4 + 2 * layers) * count, "shfl": 4 * count, "barrier": (layers + 1) * count if warps > 1 else 0,
    }  # fmt: skip
    kernel = f"masked_mlp_sample_kernel<float, {str(warps > 1).lower()}>"
    return table.launch(recorded, kernel, turns, waits=waits, l2_bytes=read)


def _made_sums(
    table: Table, recorded: Recorded, case: Case, cut: Mapping[str, int], positions: _Positions, where: str
) -> Launch:
    """Tiles of 64 rows and 64 units, a chunk of the inputs each, taken in turn by as many blocks as run at once."""
    tiles, longest, moved, weights = 0, 0, 0.0, 0.0
    for below, units in itertools.pairwise(case.layers):
        own, known = positions.units(units, positions.end - positions.begin), positions.units(below, positions.first)
        chunks = max(1, min(math.ceil(known / cut["chunk"]), int(units / own)))
        each = math.ceil(known / chunks / 16)  # steps of a tile
        count = math.ceil(own / 64) * math.ceil(case.batch / 64) * chunks
        tiles, longest = tiles + count, max(longest, each)
        moved += 4.0 * (count * 128 * 16 * each + case.batch * own * chunks)
        weights += 4.0 * own * known
    # Blocks without a tile end at once; the others are as long as the longest.
    blocks = min(tiles, recorded.blocks)
    each = longest * math.ceil(tiles / blocks)
    return table.launch(
        replace(recorded, grid=(blocks, 1, 1)), "masked_mlp_sums_kernel<float>", {"masked_mlp sums" + where: each},
        waits={"l2": 10 + 2 * math.ceil(tiles / blocks)}, l2_bytes=moved, dram_bytes=weights if where else 0,
    )  # fmt: skip


def _made_sampling(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    weight = sum(4.0 * below * units for below, units in itertools.pairwise(case.layers))
    where = "" if weight <= L2_BYTES else ", memory"
    found, first = [], 0
    for each in launches:
        positions = _Positions(case.layers, first, first, min(first + cut["block"], case.variables))
        if each.kernel == "masked_mlp_sums":
            found.append(_made_sums(table, each, case, cut, positions, where))
        else:
            found.append(_made_draw(table, each, case, cut, positions))
            first += cut["block"]
    return found


def _linear_rows(table: Table, recorded: Recorded, case: Case, weight: float) -> Launch:
    inputs, _ = case.layers
    return table.launch(
        recorded, "masked_linear_rows_kernel<float>",
        {"masked_rows": inputs / 2 / 512, "masked_rows, rest": 1}, longest=2,
        l2_bytes=weight, dram_bytes=weight if weight > L2_BYTES else 0,
    )  # fmt: skip


def _linear_wide(
    table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int], weight: float
) -> list[Launch]:
    """Tiles of 128 outputs, whose sums are cut into chunks.

    Where more blocks have one than run at once, short ones fill the gaps; otherwise all are as long as a whole chunk.
    """
    inputs, outputs = case.layers
    across, down, chunk = math.ceil(outputs / 128), math.ceil(case.batch / cut["rows"]), cut["chunk"] or inputs
    ends = [inputs * min(1, (tile + 1) * 128 / outputs) for tile in range(across)]
    chunks = sum(math.ceil(end / chunk) for end in ends)
    first = replace(launches[0], grid=(down * chunks, 1, 1))
    sums = 4.0 * case.batch * outputs * chunks / across if cut["chunk"] else 0.0
    longest, average = math.ceil(chunk / 16), sum(math.ceil(end / 16) for end in ends) / chunks
    scheme, path = f"WideScheme<{cut['rows']}>, 0", _where(f"tiles, wide {cut['rows']}", weight)
    tiles = table.launch(
        first, f"masked_linear_tiles_kernel<{scheme}>", {path: longest}, waits={"l2": 3},
        l2_bytes=4.0 * first.blocks * (cut["rows"] + 128) * 16 * average + sums,
        dram_bytes=weight if weight > L2_BYTES else 0,
    )  # fmt: skip
    if first.blocks > rates.MULTIPROCESSORS * tiles.resident:
        tiles = replace(tiles, turns={path: average}, longest=longest / average)
    found = [tiles]
    if cut["chunk"]:
        turns = {f"tiles, add {cut['rows']}": math.ceil(chunks / across / 8)}
        found.append(
            table.launch(
                launches[1], f"masked_linear_add_kernel<{scheme}>", turns, waits={"l2": 4, "alu": 60},
                l2_bytes=sums + 4.0 * case.batch * outputs,
            )
        )  # fmt: skip
    return found


def _linear_strips(table: Table, launches: Sequence[Recorded | Product], case: Case) -> list[Launch | Product]:
    """Copies of strips of the weight, each for the products that follow it, and a look at every output."""
    found: list[Launch | Product] = []
    for place, launch in enumerate(launches):
        if isinstance(launch, Product):
            found.append(launch)
        elif launch.kernel == "masked_linear_copy":
            served = itertools.takewhile(lambda other: isinstance(other, Product), launches[place + 1 :])
            copied = 2.0 * sum(product.columns * product.sum for product in served)
            turns = {"strips, copy": math.ceil(case.layers[0] / 8 / 8 / launch.threads)}
            found.append(
                table.launch(
                    launch, "masked_linear_copy_kernel<bfloat16>", turns, waits={"l2": 2},
                    l2_bytes=2 * copied, dram_bytes=copied,
                )
            )  # fmt: skip
        else:
            looked_at = 2.0 * case.batch * case.layers[1]
            found.append(
                table.launch(
                    launch, "masked_linear_finish_kernel<bfloat16, 0>", {}, waits={"dram": 1, "alu": 64},
                    l2_bytes=looked_at, dram_bytes=looked_at if looked_at > L2_BYTES else 0,
                )
            )  # fmt: skip
    return found


def _masked_linear(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    """masked_linear with a staircase: the average row sees half of the inputs, the longest all of them."""
    inputs, outputs = case.layers
    size = 2 if case.dtype == "bfloat16" else 4
    weight = size * inputs * outputs / 2
    if launches[0].kernel == "masked_linear_copy":
        return _linear_strips(table, launches, case)
    if launches[0].kernel == "masked_linear_rows":
        return [_linear_rows(table, launches[0], case, weight)]
    if not cut["matrix"] and cut["columns"] == 128:
        return _linear_wide(table, launches, case, cut, weight)
    (product,) = launches
    tile, steps = (128, 32) if cut["matrix"] else (64, 16)
    scheme = "bfloat16, true, 128" if cut["matrix"] else "float, false, 64"
    path = "tiles, bfloat16 128" if cut["matrix"] else _where("tiles, exact", weight)
    return [
        table.launch(
            product, f"masked_linear_tiles_kernel<TileScheme<{scheme}>, 0>", {path: inputs / 2 / steps}, longest=2,
            l2_bytes=product.blocks * 2 * tile * size * inputs / 2, dram_bytes=weight if weight > L2_BYTES else 0,
        )
    ]  # fmt: skip


def _rnn_matrix(table: Table, sample: Recorded, case: Case, cut: Mapping[str, int]) -> Launch:
    """The chain of a step in a team of two rows: states arrive, readout, draw, value arrives, gates.

    The turn of a unit block stands for it, with the draw between its sums and its gates: the draw block makes its
    sums by the same code, while those of the unit blocks are under way. A draw block has its random numbers and its
    log p during the gates.
    """
    teams = sample.blocks // (cut["unit_blocks"] + cut["draw_blocks"])
    pairs = math.ceil(case.batch / teams / 2)
    # A state and a value arrive by a word each: the word, and a look at it that comes half a turn late; the look itself
    # is in the turn.
    arrivals = {"l2": 2 * 1.5}
    # A draw by a warp, each lane of which has 4 categories: the maximum by butterflies, exponentials side by side, the
    # lane's sum and one running sum in double, a vote, and the word; besides, what is drawn and by which rule (l1). The
    # way through the machine code, from the sums' barrier to the word, takes as long: 1060 to 1720 cycles.
    draw = {"lds": 1, "shfl": 5 + 5 + 3, "mufu": 2, "convert": 2, "dfma": 4 + 5 + 3, "alu": 80, "l1": 10}
    waits = {what: case.steps * pairs * times for what, times in (arrivals | draw).items()}
    # Each block reads the words of two rows, on average in two looks.
    words = 2.0 * case.steps * pairs * sample.blocks * 2 * 8 * case.hidden
    turns = {"rnn matrix, units": case.steps * pairs}
    return table.launch(sample, "rnn_sample_matrix_kernel", turns, waits=waits, l2_bytes=words)


def _rnn_sample(table: Table, launches: Sequence[Recorded], case: Case, cut: Mapping[str, int]) -> list[Launch]:
    """The chain of a step in a grid: states arrive, readout, draw, values arrive, gates.

    Unit blocks multiply the states by the recurrent weights during the readout and the draw; the longer way counts.
    A draw block has one row: its random numbers and its log p are not on the way.
    """
    (sample,) = launches
    if sample.kernel == "rnn_sample_matrix":
        return [_rnn_matrix(table, sample, case, cut)]
    (outputs,) = case.layers
    warps = sample.threads / 32
    product = math.ceil(math.ceil(3 * cut["units"] / 4) * math.ceil(case.batch / 4) / warps)
    readout = math.ceil(math.ceil(outputs / 16) / warps)
    gates = {"rnn float32, gates": case.steps * math.ceil(case.batch * cut["units"] / sample.threads)}
    # A value arrives by a word: what its writer wrote before, the word, and a look at it that comes half a turn late.
    arrival = 3.0 * case.steps
    # A draw by a warp: butterflies over the categories (maximum, sum, running sums), the last two in double, and the
    # exponentials.
    each = math.ceil(outputs / 32)
    draw = {"shfl": 5 * (2 + each), "mufu": 2 * each, "dfma": 5 * (1 + each), "alu": 40}
    ways = [
        table.launch(
            sample, "rnn_sample_kernel<float>",
            gates | {f"rnn float32, {name}": case.steps * turns for name, turns in way.items()},
            waits={"l2": arrival} | {what: case.steps * times for what, times in waits.items()},
            grid_barriers=case.steps,
        )
        for way, waits in (
            ({"product": product * case.hidden / 256, "sums": product}, {"barrier": 1}),
            ({"readout": readout * 2 * case.hidden / 256, "sums": readout}, draw | {"barrier": 2}),
        )
    ]  # fmt: skip
    return [max(ways, key=lambda launch: model.kernel_us(launch, table.paths))]


KINDS = {
    "rnn_sample": _rnn_sample,
    "nade forward": _nade_forward,
    "nade forward+backward": _nade_training,
    "nade sampling": _nade_sampling,
    "made sampling": _made_sampling,
    "masked_linear": _masked_linear,
}


def launches_of(case: Case, table: Table, geometry: Mapping[str, dict]) -> list[Launch | Product]:
    entry = geometry[case.name]
    recorded = [
        Product(e["kernel"], e["rows"], e["columns"], e["sum"])
        if e["kernel"] == "product"
        else Recorded(e["kernel"], tuple(e["grid"]), tuple(e["block"]), e["shared"])
        for e in entry["launches"]
    ]
    return KINDS[case.kind](table, recorded, case, entry["cut"])
