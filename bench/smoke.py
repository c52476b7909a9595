"""python -m bench.smoke --device cuda: every op on a device, compared with the CPU, before anything is measured.

Ends with status 1 at the first difference. Few launches and small sizes, so that it also runs under compute-sanitizer
and ncu; --only picks cases.
"""

import argparse
import copy
import fnmatch
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ar_fast import Mask, functional, heads, models
from ar_fast.flows import MAF

from . import calls
from .calls import Sizes
from .masked_linear import staircase

# H beyond a strip of 128 units, D beyond a chunk, rows beyond a block.
SIZES = Sizes(
    batch=9, side=7, hidden=150, untied_hidden=20, deep_hidden=(40, 30), masked_hidden=60, small=50, middle=150
)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}

# Beside those of calls: networks whose weights a block of threads holds by itself, and that only a grid of blocks does.
RECURRENT = {
    "RNN one block": lambda: models.RNN(49, 20, "gru"),
    "RNN grid": lambda: models.RNN(49, 150, "gru", head=heads.Categorical(4)),
    "RNN LSTM": lambda: models.RNN(49, 20, "lstm", num_layers=2, head=heads.Categorical(4)),
    "RNN bfloat16": lambda: models.RNN(49, 40, "rnn", dtype=torch.bfloat16),
}


@dataclass(frozen=True)
class Smoke:
    """`run` gives the tensors of a device; of two devices they are equal but for rounding in `dtype`."""

    name: str
    run: Callable[[torch.device], list[Tensor]]
    dtype: torch.dtype = torch.float32


def _model(kind: str) -> tuple[torch.nn.Module, Tensor]:
    """The model and events of it, (B, D)."""
    if kind not in RECURRENT:
        return calls._model(kind, SIZES)
    torch.manual_seed(0)
    model = RECURRENT[kind]()
    return model, torch.randint(model.counts if model.counts > 1 else 2, (SIZES.batch, model.variables))


def _log_prob(kind: str, device: torch.device) -> list[Tensor]:
    model, x = _model(kind)
    model, x = model.to(device), x.to(device)
    log_prob = model.log_prob(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(log_prob.float().mean(), parameters, allow_unused=True)
    return [log_prob, model(x), *(g for g in gradients if g is not None)]


def _sample(kind: str, device: torch.device) -> list[Tensor]:
    """Rounding may decide a draw, and those after it follow: what must agree is log p of what was drawn."""
    model, _ = _model(kind)
    x, log_prob = copy.deepcopy(model).to(device).sample(SIZES.batch, seed=0, return_log_prob=True)
    with torch.no_grad():
        expected = model.log_prob(x.cpu()).to(device)
    return [(log_prob - expected) / expected.abs().clamp_min(1)]


def _masked_linear(size: tuple[int, int, int], dtype: torch.dtype, mask: Mask, device: torch.device) -> list[Tensor]:
    batch, inputs, outputs = size
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    leaves = [normal(batch, inputs), normal(outputs, inputs) / inputs**0.5, normal(outputs)]
    for leaf in leaves:
        leaf.requires_grad_()
    y = functional.masked_linear(leaves[0], leaves[1], mask.to(device), leaves[2])
    return [y, *torch.autograd.grad(y, leaves, normal(batch, outputs))]


def _transform(kind: str, device: torch.device) -> list[Tensor]:
    """A flow's density, and all its gradients."""
    call, leaves = calls.transform(kind, SIZES)
    leaves = [leaf.to(device).requires_grad_() for leaf in leaves]
    y, log_det = call(*leaves)
    with torch.no_grad():
        alone = call(*leaves)
    return [*alone, y, log_det, *torch.autograd.grad(y.sum() + log_det.sum(), leaves)]


def _inverse(device: torch.device) -> list[Tensor]:
    """A flow's inverse, and its gradients."""
    torch.manual_seed(0)
    flow = MAF(7, transforms=2, hidden_features=(16, 16)).to(device)
    drawn = flow.rsample(5, generator=torch.Generator().manual_seed(1))
    return [drawn, *torch.autograd.grad(drawn.square().sum(), list(flow.parameters()))]


def _masks() -> Iterator[tuple[str, tuple[int, int], Mask]]:
    yield "staircase", (150, 200), staircase(150, 200)
    yield "permuted", (150, 200), staircase(150, 200, permuted=True)
    generator = torch.Generator().manual_seed(2)
    yield "blocks", (150, 200), Mask.from_dense(torch.rand(200, 150, generator=generator) < 0.5)


def cases() -> list[Smoke]:
    """Every kind of model with its gradients and its samples, and masked layers in every type and of every path."""
    found = []
    for kind in [*calls.MODELS, *RECURRENT]:
        dtype = next(_model(kind)[0].parameters()).dtype
        found.append(Smoke(f"{kind}: log_prob and gradients", lambda device, k=kind: _log_prob(k, device), dtype))
        found.append(Smoke(f"{kind}: sample", lambda device, k=kind: _sample(k, device), dtype))
    for kind in calls.TRANSFORMS:
        found.append(Smoke(f"{kind}: gradients", lambda device, k=kind: _transform(k, device)))
    found.append(Smoke("a flow's inverse: gradients", _inverse))
    for dtype in TOLERANCES:
        for name, (inputs, outputs), mask in _masks():
            for batch in (3, 70):
                found.append(
                    Smoke(
                        f"masked_linear {str(dtype)[6:]} {name} B {batch}",
                        lambda device, b=batch, i=inputs, o=outputs, t=dtype, m=mask: _masked_linear(
                            (b, i, o), t, m, device
                        ),
                        dtype,
                    )
                )
    return found


def difference(given: Tensor, expected: Tensor) -> float:
    """The largest, as a part of the largest magnitude; infinite where one is not finite."""
    given, expected = given.detach().double().cpu(), expected.detach().double().cpu()
    if given.shape != expected.shape or not bool(given.isfinite().all()) or not bool(expected.isfinite().all()):
        return float("inf")
    if given.numel() == 0:
        return 0.0
    return ((given - expected).abs().max() / expected.abs().max().clamp_min(1.0)).item()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.smoke", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="*", help="names of cases, with * and ?")
    parser.add_argument("--alone", action="store_true", help="without the CPU: nothing is compared")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    arguments = parser.parse_args()
    chosen = [case for case in cases() if fnmatch.fnmatchcase(case.name, arguments.only)]
    if arguments.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        print(f"bench.smoke: no case is named {arguments.only}", file=sys.stderr)
        return 2
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench.smoke: --device cuda was asked for, but torch sees no CUDA device", file=sys.stderr)
        return 2
    # What is compared is float32 throughout: cuDNN's recurrent networks are of TF32 otherwise.
    torch.backends.cudnn.allow_tf32 = False
    for case in chosen:
        found = case.run(device)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if arguments.alone:
            print(f"{case.name}: ran", flush=True)
            continue
        pairs = zip(found, case.run(torch.device("cpu")), strict=True)
        worst = max(difference(given, expected) for given, expected in pairs)
        right = worst <= TOLERANCES[case.dtype]
        print(f"{case.name}: {worst:.1e}{'' if right else ', more than ' + format(TOLERANCES[case.dtype], '.0e')}")
        sys.stdout.flush()
        if not right:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
