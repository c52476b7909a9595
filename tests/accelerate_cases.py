"""What the tests of accelerate share: a plain masked layer, and comparisons of a module before and after."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ar_fast.interop.crossover import Crossover

ALWAYS = Crossover((1,), (9.0,))


class PlainMaskedLinear(nn.Linear):
    """A layer in the style of pytorch-made; with ``transposed`` its mask is stored as (I, O)."""

    def __init__(self, mask: Tensor, bias: bool = True, transposed: bool = False) -> None:
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.transposed = transposed
        self.register_buffer("mask", (mask.T if transposed else mask).float())

    def set_mask(self, mask: Tensor) -> None:
        self.mask.data.copy_(mask.T if self.transposed else mask)

    def forward(self, input: Tensor) -> Tensor:
        mask = self.mask.T if self.transposed else self.mask
        return nn.functional.linear(input, mask * self.weight, self.bias)


def plain_network(variables: int = 5, hidden: int = 16, outputs: int = 2, activation=nn.ReLU) -> nn.Sequential:
    degrees = [torch.arange(1, variables + 1), torch.arange(hidden) % (variables - 1) + 1]
    own = torch.arange(variables).repeat_interleave(outputs)
    return nn.Sequential(
        PlainMaskedLinear(degrees[1][:, None] >= degrees[0]),
        activation(),
        PlainMaskedLinear(degrees[1][:, None] >= degrees[1]),
        activation(),
        PlainMaskedLinear(own[:, None] >= degrees[1]),
    )


def measured_as_faster(monkeypatch, fused: bool = True, with_network: bool = True) -> None:
    """Every measurement says that ours is faster, so that it runs whatever this machine does at the time; without
    ``fused`` no inverse runs in one call of the op, without ``with_network`` no op runs a network in the direction of
    the density, as if all were too large for it."""
    from ar_fast.interop import chains, density, inverses, masked_layers, transforms

    def refused(*arguments):
        raise transforms.Unsuitable("it is turned off")

    if not fused:
        monkeypatch.setattr(transforms, "Fused", refused)
    if not with_network:
        for module in (transforms, chains):
            monkeypatch.setattr(module, "Density", refused)
    for module in (density, inverses, masked_layers):
        monkeypatch.setattr(module, "measured", lambda *arguments, **named: ALWAYS)
        monkeypatch.setattr(module, "_measured", {})


@dataclass(frozen=True)
class Case:
    """A flow or transform, its density or forward pass, and its inverse, both of (module, values, context)."""

    name: str
    make: Callable[[], nn.Module]
    forward: Callable[..., Tensor]
    inverse: Callable[..., Tensor]
    variables: int = 5
    context_features: int = 0
    draw: Callable[..., Tensor] = torch.randn
    tier: str = "fused"
    #: The original's inverse does not run in float64.
    float32_only: bool = False
    #: Whether an op runs the direction of the density where the inverse is fused.
    one_op: bool = True

    def values(self, rows: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        context = torch.randn(rows, self.context_features).to(dtype) if self.context_features else None
        return self.draw(rows, self.variables).to(dtype), context


def states(module: nn.Module) -> dict[str, dict]:
    """What stands in the __dict__ of each submodule."""
    return {name: dict(part.__dict__) for name, part in module.named_modules()}


def perturb(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def gradients(call: Callable[..., Tensor], module: nn.Module, x: Tensor, context: Tensor | None) -> list[Tensor]:
    """Of a weighted sum of the result, with respect to the values, the context and the parameters."""
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    result = call(module, x, context)
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype).reshape(result.shape)
    wanted = [x, *([] if context is None else [context]), *(p for p in module.parameters() if p.requires_grad)]
    found = torch.autograd.grad((weights * result).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(own) if grad is None else grad for own, grad in zip(wanted, found, strict=True)]


def assert_close(found: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=factor * 100 * eps * scale)


def check_values(case: Case, fused: bool = True, by: str = "one op for network") -> None:
    """Equal before and after in both directions, bit for bit after restore, with the state as it was. ``by``
    begins what the report says of the direction of the density."""
    import ar_fast

    module = case.make().eval()
    x, context = case.values()
    keys = list(module.state_dict())
    with torch.no_grad():
        forward, inverse = case.forward(module, x, context), case.inverse(module, x, context)
    # After a call, since pyro keeps what it last computed.
    before = states(module)
    with ar_fast.accelerated(module):
        report = ar_fast.acceleration_report(module)
        assert report.parts and not report.left, str(report)
        tiers = [part.by for part in report.parts if part.replaced == "inverse"]
        expected = "incremental" if case.tier == "fused" and not fused else case.tier
        assert tiers and all(expected in tier for tier in tiers), str(report)
        one_op = sum(part.by.startswith(by) for part in report.parts)
        assert one_op == (len(tiers) if expected == "fused" and case.one_op else 0), str(report)
        assert list(module.state_dict()) == keys
        with torch.no_grad():
            assert_close(case.forward(module, x, context), forward)
            assert_close(case.inverse(module, x, context), inverse)
    with torch.no_grad():
        assert torch.equal(case.forward(module, x, context), forward)
        assert torch.equal(case.inverse(module, x, context), inverse)
    after = states(module)
    assert list(after) == list(before)
    for name, state in before.items():
        assert list(after[name]) == list(state)
        changing = ("_cached", "_cache", "_inv")
        assert all(after[name][key] is value for key, value in state.items() if not key.startswith(changing))


def check_gradients(case: Case) -> None:
    """All together not further from those in float64 than twice the original's in float32, in the median of three
    draws: what rounding does to the gradient of a spline differs from draw to draw by a factor of ten."""
    import ar_fast

    for call in (case.forward, case.inverse):
        ratios = []
        for _ in range(3):
            module = case.make().eval()
            x, context = case.values()
            exact = copy.deepcopy(module).double()
            original = gradients(call, module, x, context)
            if case.float32_only and call is case.inverse:
                reference = [grad.double() for grad in original]
            else:
                reference = gradients(call, exact, x.double(), None if context is None else context.double())
            with ar_fast.accelerated(module):
                found = gradients(call, module, x, context)
            assert any(bool((grad != 0).any()) for grad in found)
            ours, theirs = (
                torch.cat([(own - true).flatten() for own, true in zip(grads, reference, strict=True)]).norm()
                for grads in (found, original)
            )
            size = torch.cat([true.flatten() for true in reference]).norm()
            ratios.append(float(ours / (theirs + 10 * torch.finfo(torch.float32).eps * size)))
        assert sorted(ratios)[1] <= 2, ratios


def check_network_by_itself(case: Case, monkeypatch) -> None:
    """All of this where no op runs the network in the direction of the density."""
    measured_as_faster(monkeypatch, with_network=False)
    check_values(case, by="its network, then one op for")
    check_gradients(case)
    check_second_order(case)
    check_copies(case)


def check_second_order(case: Case) -> None:
    """The gradient of a gradient, as a penalty on gradients has it."""
    import ar_fast

    module = case.make().eval().double()
    x, context = case.values(dtype=torch.float64)
    x.requires_grad_()

    def penalty() -> list[Tensor]:
        (grad,) = torch.autograd.grad(case.forward(module, x, context).sum(), x, create_graph=True)
        parameters = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(grad.square().sum(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if own is None else own for own, p in zip(found, parameters, strict=True)]

    expected = penalty()
    with ar_fast.accelerated(module):
        found = penalty()
    assert any(bool((grad != 0).any()) for grad in found)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-7, atol=1e-7)


def check_copies(case: Case) -> None:
    """A deep copy is accelerated and uses its own parameters."""
    import ar_fast

    module = case.make().eval()
    x, context = case.values()
    with ar_fast.accelerated(module):
        with torch.no_grad():
            before = case.forward(module, x, context), case.inverse(module, x, context)
        other = perturb(copy.deepcopy(module))
        assert len(ar_fast.acceleration_report(other).parts) == len(ar_fast.acceleration_report(module).parts)
        with torch.no_grad():
            assert all(
                torch.equal(own, call(module, x, context))
                for own, call in zip(before, (case.forward, case.inverse), strict=True)
            )
            found = case.forward(other, x, context), case.inverse(other, x, context)
            ar_fast.restore(other)
            expected = case.forward(other, x, context), case.inverse(other, x, context)
    for own, theirs, old in zip(found, expected, before, strict=True):
        assert_close(own, theirs, 10)  # the steep bins of a spline; check_values is strict
        assert not torch.equal(own, old)
