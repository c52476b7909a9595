"""How many random cases a property has, and how a call of an op is compared with its twin."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import torch
from strategies import Call
from torch import Tensor

from ar_fast import _fallback, functional, reference

#: Cases of all properties together.
CASES = {"fast": 500, "full": 2_000}
# How many properties share them: two of each op, four of each model, those of flows and of texts.
_PROPERTIES = 2 * 15 + 4 * 12 + 6 + 1


def check(test: Callable, seed: int, full: bool, *strategies: Any) -> None:
    """Runs ``test`` for this property's share of the cases; ``make fuzz`` sets AR_FAST_CASES, for all together.

    The cases follow from ``seed`` alone, so that a run is repeated by AR_FAST_TEST_SEED; a failure prints the smallest
    case found.
    """
    cases = int(os.environ.get("AR_FAST_CASES") or CASES["full" if full else "fast"])
    settings = hypothesis.settings(
        max_examples=max(1, -(-cases // _PROPERTIES)),
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        # Without explanations, which take as long again.
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    hypothesis.seed(seed)(settings(hypothesis.given(*strategies)(test)))()


# ---- Ops that are a density or a product: results and gradients


def check_equal(call: Call, subset: int, second: bool) -> None:
    """Results, and gradients of some leaves, equal those of the twin in float64; nothing given is written."""
    leaves = [name for index, name in enumerate(call.leaves) if subset >> index & 1]
    second = second and call.twice and call.dtype == torch.float64
    before = call.map(lambda name, tensor: tensor.detach().clone())
    got = _results(lambda *arguments: functional.call(call.op, *arguments), call, leaves, second)
    want = _results(_fallback.REFERENCES[call.op], call.wide(), leaves, second)
    for (_, own), (_, old) in zip(call.tensors(), before.tensors(), strict=True):
        torch.testing.assert_close(own.detach(), old, rtol=0, atol=0, equal_nan=True)
    assert list(got) == list(want)
    for name, own in got.items():
        assert_close(name, own, want[name], call)


def _results(function: Callable, call: Call, leaves: Sequence[str], second: bool) -> dict[str, Tensor]:
    own: list[Tensor] = []

    def leaf(name: str, tensor: Tensor) -> Tensor:
        if name in leaves and tensor.is_floating_point():
            # A view of its own, so that a tensor that is given twice has two gradients.
            tensor = tensor.detach().requires_grad_()
            own.append(tensor)
        return tensor

    arguments = call.map(leaf).arguments
    results = function(*arguments.values())
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    named = {f"result {i}": result for i, result in enumerate(results)}
    if not own:
        return named
    total = sum((_weights(result) * result.double()).sum() for result in results)
    if not total.requires_grad:
        return named | {f"gradient {i}": torch.zeros_like(tensor) for i, tensor in enumerate(own)}
    gradients = torch.autograd.grad(total, own, create_graph=second, allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, own, strict=True)]
    named |= {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    total = sum((_weights(gradient) * gradient).sum() for gradient in gradients) if second else None
    if total is not None and total.requires_grad:
        twice = torch.autograd.grad(total, own, allow_unused=True)
        twice = [torch.zeros_like(t) if g is None else g for g, t in zip(twice, own, strict=True)]
        named |= {f"second gradient {i}": gradient for i, gradient in enumerate(twice)}
    return named


def _weights(tensor: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, tensor.numel(), dtype=torch.float64).reshape(tensor.shape)


def assert_close(name: str, got: Tensor, want: Tensor, call: Call, times: float = 1.0) -> None:
    """Within rounding of the arithmetic and of the type of the result, in units of the largest number."""
    assert got.shape == want.shape, f"{name}: {list(got.shape)} and not {list(want.shape)}"
    if not want.numel():
        return
    arithmetic = 1e-9 if call.dtype == torch.float64 else 5e-4
    # A narrow bin of a spline makes rounding larger.
    transform = str(call.arguments.get("transform", ""))
    arithmetic *= 100 if transform.startswith("spline") or "second" in name else 1
    stored = 8 * torch.finfo(got.dtype).eps if got.is_floating_point() else 0.0
    tolerance = times * (arithmetic + stored) * max(1.0, float(want.detach().double().abs().nan_to_num().max()))
    torch.testing.assert_close(
        got.detach().double(),
        want.detach().double(),
        rtol=0,
        atol=tolerance,
        equal_nan=True,
        msg=lambda m: f"{name}: {m}",
    )


# ---- Samplers


def check_draws(call: Call, cut: int) -> None:
    """All positions drawn in two calls equal the twin's draws; nothing given is written.

    A draw may differ where rounding decides. Then it is rounding only if all draws agree once the numbers are moved a
    little.
    """
    for attempt in range(3):
        before = call.map(lambda name, tensor: tensor.clone())
        got = _in_two_calls(call, min(cut, call.arguments["stop"]))
        for (_, own), (_, old) in zip(call.tensors(), before.tensors(), strict=True):
            torch.testing.assert_close(own, old, rtol=0, atol=0, equal_nan=True)
        wide = call.wide()
        want = _fallback.REFERENCES[call.op](*wide.arguments.values())
        # Draws that run away multiply each other's rounding, up to the end of their type.
        if (want[0].abs().nan_to_num() > 1e4).any():
            return
        if attempt == 2 or _same_values(got[0], want[0], call):
            break
        call = call.map(_moved)
    for index, (own, reference_s) in enumerate(zip(got, want, strict=True)):
        if own is None or own.dtype == torch.bool:
            assert own is reference_s or torch.equal(own, reference_s)
            continue
        # log p divides a draw's rounding by the scale of its component, which may be small.
        times = 10 if index == 1 and call.arguments.get("head", "bernoulli") not in ("bernoulli", "categorical") else 1
        assert_close(f"result {index}", own, reference_s, call, times)
    assert got[1].dtype == torch.float64 and got[0].dtype == reference.compute_dtype(call.dtype)


def _same_values(got: Tensor, want: Tensor, call: Call) -> bool:
    tolerance = (1e-9 if call.dtype == torch.float64 else 5e-4) * max(
        1.0, float(want.abs().max()) if len(want) else 1.0
    )
    return got.shape == want.shape and torch.allclose(got.double(), want, rtol=0, atol=tolerance, equal_nan=True)


def _moved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or name in ("given", "last"):
        return tensor
    return tensor + 0.03 * torch.randn(tensor.shape, dtype=torch.float64).to(tensor.dtype)


def _in_two_calls(call: Call, cut: int) -> list[Tensor]:
    arguments = call.arguments
    first = functional.call(call.op, *(arguments | {"stop": cut}).values())
    state = {"state": first[2]}
    if call.op == "rnn_sample":
        cell_state = first[3] if arguments["cell"] == "lstm" else None
        state |= {"cell_state": cell_state, "last": first[4], "finished": first[5]}
    second = functional.call(call.op, *(arguments | {"start": cut} | state).values())
    return [torch.cat([first[0], second[0]], 1), first[1] + second[1], *second[2:]]


# ---- Errors


def check_error(call: Call, argument: str, way: str) -> None:
    """The op raises, and its message names the op and the argument, or the device where that is what differs."""
    # Which of two arguments of different lengths or devices is wrong, the op cannot know; nor which of two sizes that
    # disagree, where an end of a layer's units says how large its weight is.
    vague = way in ("device", "one more", "one less", "number") or argument == "ends"
    try:
        functional.call(call.op, *call.arguments.values())
    except (RuntimeError, TypeError, ValueError) as error:
        message = str(error)
        assert f"{call.op}: " in message, f"{argument}, {way}: {message}"
        assert vague or argument in message, f"{argument}, {way}: {message}"
        assert "ATen" not in message and "INTERNAL" not in message, message
    else:
        raise AssertionError(f"{argument}, {way}: no error")
