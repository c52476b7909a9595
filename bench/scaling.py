"""python -m bench.scaling: whether NADE's cost grows as B D H, and what peak memory its gradient takes."""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from ar_fast import functional
from ar_fast.tasks._timing import interleave

from . import data, peers
from .cases import no_grad
from .run import environment
from .tables import duration, write_table

# B, D, H around the first; then few rows of many variables.
SIZES = (
    (128, 784, 500), (128, 3072, 500), (128, 12_288, 500), (128, 50_000, 500),
    (128, 3072, 128), (128, 3072, 1024), (128, 3072, 2048), (32, 3072, 500), (512, 3072, 500),
    (1, 100_000, 512), (3, 100_000, 512),
)  # fmt: skip
MEMORY = ((128, 784, 500), (64, 20_000, 512))


def _problem(batch: int, variables: int, hidden: int) -> tuple[Tensor, dict[str, Tensor]]:
    return data.digits(batch, variables)[0], data.nade_parameters(variables, hidden)


def _gradient(log_prob, x: Tensor, parameters: dict[str, Tensor]) -> tuple[Tensor, ...]:
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    return torch.autograd.grad(-log_prob(x, **leaves).mean(), list(leaves.values()))


def _loop(x: Tensor, **parameters: Tensor) -> Tensor:
    return peers.bernoulli_log_prob(peers.nade_loop(x, **parameters), x)


def _times(sizes: tuple[int, int, int], seconds: float) -> list[str]:
    batch, variables, hidden = sizes
    x, parameters = _problem(*sizes)
    dense = data.uniform_reals(batch, variables)[0]
    work = {
        "digits": no_grad(lambda: functional.nade_log_prob(x, **parameters)),
        "dense": no_grad(lambda: functional.nade_log_prob(dense, **parameters)),
        "gradient": lambda: _gradient(functional.nade_log_prob, x, parameters),
    }
    units = batch * variables * hidden
    cells = [f"{batch}, {variables}, {hidden}"]
    for timing in interleave(work, seconds=seconds).values():
        cells += [duration(timing.median), f"{timing.median / units * 1e12:.0f}"]
    return cells


def _high_water() -> int:
    """Most bytes that this process has had in memory since the mark was last reset; Linux only."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _peak(sizes: tuple[int, int, int], contender: str) -> int:
    """Bytes that one gradient adds to the peak of a process of its own, the gradients themselves included."""
    batch, variables, hidden = sizes
    log_prob = functional.nade_log_prob if contender == "ar_fast" else _loop
    # As sparse as digits, and made without the detours of loading them, which would leave memory to use again.
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(batch, variables).bernoulli_(0.13, generator=generator)
    parameters = data.nade_parameters(variables, hidden)
    # What torch and a first call allocate once is not the gradient's.
    few = {name: value if name == "in_bias" else value[:8].clone() for name, value in parameters.items()}
    _gradient(log_prob, x[:1, :8], few)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the mark
    before = _high_water()
    _gradient(log_prob, x, parameters)
    return _high_water() - before


def _peak_elsewhere(sizes: tuple[int, int, int], contender: str) -> int:
    command = [sys.executable, "-m", "bench.scaling", "--peak", ",".join(map(str, sizes)), contender]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="time per figure (default: 1)")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes: shows that all runs, measures nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where the table goes")
    parser.add_argument("--peak", nargs=2, metavar=("B,D,H", "CONTENDER"), help="print one process's peak and stop")
    arguments = parser.parse_args()
    if arguments.peak:
        print(_peak(tuple(map(int, arguments.peak[0].split(","))), arguments.peak[1]))
        return 0
    where = environment(torch.device("cpu"))
    rows = []
    for sizes in ((3, 50, 7), (2, 60, 9)) if arguments.tiny else SIZES:
        rows.append(_times(sizes, arguments.seconds))
        print("  ".join(rows[-1]), flush=True)
    memory = []
    for sizes in ((3, 50, 7),) if arguments.tiny else MEMORY:
        ours, loop = (_peak_elsewhere(sizes, name) / 2**20 for name in ("ar_fast", "loop"))
        memory.append(
            f"- B, D, H = {', '.join(map(str, sizes))}: ar_fast {ours:.0f} MiB, the loop over D {loop:.0f} MiB "
            f"({loop / max(ours, 1e-9):.0f} times), one (B, D, H) tensor {sizes[0] * sizes[1] * sizes[2] / 2**18:.0f} "
            "MiB"
        )
        print(memory[-1], flush=True)
    header = ["B, D, H", "digits", "ps / (B D H)", "dense", "ps / (B D H)", "gradient, digits", "ps / (B D H)"]
    note = "Peak memory that one log_prob with its gradient adds, each in a process of its own:\n\n" + "\n".join(memory)
    path = write_table(arguments.out, "cpu-scaling", "NADE: cost against size", where, header, rows, note)
    print(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
