"""Forward-mode differentiation: tangents come out right, and never silently zero, where nothing requires a gradient."""

import copy
import functools

import pytest
import torch
from masked_cases import make_mask
from structure_cases import CASES, VARIABLES, data, make
from torch.autograd import forward_ad

import ar_fast
from ar_fast import _fallback, _library, functional, nn

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def _(recwarn):
    """The references say once that they run."""


def tangent(function, inputs, tangents):
    """The forward-mode derivative of a function of tensors."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(inputs, tangents, strict=True)]
        return forward_ad.unpack_dual(function(*duals)).tangent


def by_reverse_mode(function, inputs, tangents):
    """The same by the gradients that the kernels give: the sum over outputs would not do, so one output at a time."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return along(function(*leaves), leaves, tangents)


def along(values, leaves, tangents):
    rows = []
    for value in values.flatten():
        gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        rows.append(sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True) if g is not None))
    return torch.stack(rows)


def log_prob_of(model, head, what):
    """log_prob as a function of what has a tangent: x and the context, or all parameters."""
    x, context = data(head, rows=3, device=model.device)
    names = [name for name, _ in model.named_parameters()]
    if what == "inputs":
        inputs = [tensor for tensor in (x, context) if tensor is not None]
        return (lambda x, context=None: model.log_prob(x, context)), inputs

    def of_parameters(*parameters):
        wrapped = LogProb(model)
        tensors = {f"model.{name}": tensor for name, tensor in zip(names, parameters, strict=True)}
        return torch.func.functional_call(wrapped, tensors, (x, context))

    return of_parameters, [parameter.detach() for parameter in model.parameters()]


class LogProb(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, context):
        return self.model.log_prob(x, context)


@pytest.mark.parametrize("what", ["inputs", "parameters"])
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_log_prob_of_a_frozen_model(device, kind, head, what):
    model = make(kind, head, device=device).requires_grad_(False)
    model.validate_args = False
    if what == "inputs" and head == "list":
        pytest.skip("has neither a real variable nor a context to differentiate by")
    function, inputs = log_prob_of(model, head, what)
    tangents = [torch.randn_like(tensor) for tensor in inputs]
    if what == "inputs":
        want = by_reverse_mode(function, inputs, tangents)
    else:
        trained = copy.deepcopy(model).requires_grad_()
        want = along(trained.log_prob(*data(head, rows=3, device=device)), list(trained.parameters()), tangents)
    assert want.any()
    torch.testing.assert_close(tangent(function, inputs, tangents), want)
    with torch.no_grad():
        torch.testing.assert_close(tangent(function, inputs, tangents), want)
    torch.testing.assert_close(torch.func.jvp(function, tuple(inputs), tuple(tangents))[1], want)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_jacobian_and_forward_of_a_frozen_model(device, kind, head):
    model = make(kind, head, device=device).requires_grad_(False)
    model.validate_args = False
    x, context = data(head, rows=2, device=device)
    if head == "list":
        pytest.skip("has neither a real variable nor a context to differentiate by")
    inputs = (x,) if context is None else (x, context)
    for function in (model, model.log_prob):
        want = torch.autograd.functional.jacobian(function, inputs)
        got = torch.autograd.functional.jacobian(function, inputs, strategy="forward-mode", vectorize=True)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("kind", "head"), [case for case in CASES if case.values[1] == "PerVariable"])
def test_a_second_derivative(kind, head):
    """Forward over reverse, through the references; by reverse mode twice it raises."""
    model = make(kind, head)
    model.validate_args = False
    x, context = data(head, rows=2)
    context = context.requires_grad_()
    direction = torch.randn_like(context)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(context, direction)
        (gradient,) = torch.autograd.grad(model.log_prob(x, dual).sum(), dual, create_graph=True)
        got = forward_ad.unpack_dual(gradient).tangent
    step = 1e-6 * direction
    above, below = (torch.autograd.grad(model.log_prob(x, c).sum(), c)[0] for c in (context + step, context - step))
    assert got.any()
    torch.testing.assert_close(got, (above - below) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "gelu"])
@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_a_masked_layer(device, kind, activation):
    layer = nn.MaskedLinear(4, 5, make_mask(kind, 5, 4), activation=activation, dtype=torch.float64, device=device)
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    inputs = [x, layer.weight.detach(), layer.bias.detach()]
    tangents = [torch.randn_like(tensor) for tensor in inputs]

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    want = by_reverse_mode(function, inputs, tangents).reshape(3, 5)
    layer.requires_grad_(False)
    with ar_fast.frozen(layer), torch.no_grad():
        torch.testing.assert_close(tangent(function, inputs, tangents), want)
    torch.testing.assert_close(torch.func.jvp(function, tuple(inputs), tuple(tangents))[1], want)
    got = torch.autograd.functional.jacobian(layer, x, strategy="forward-mode", vectorize=True)
    torch.testing.assert_close(got, torch.autograd.functional.jacobian(layer, x))


def test_a_tangent_of_one_of_several_arguments(device):
    """Each differentiable argument of each op alone, and the other operands without any."""
    weights = {"in_weight": (3, 2), "in_bias": (2,), "out_weight": (3, 2), "out_bias": (3,), "activation_scale": (3,)}
    tensors = {"x": torch.rand(4, 3, dtype=torch.float64, device=device)}
    tensors |= {name: torch.randn(shape, dtype=torch.float64, device=device) for name, shape in weights.items()}
    for op in (functional.nade, functional.nade_log_prob):
        for name, tensor in tensors.items():

            def function(value, op=op, name=name):
                return op(**tensors | {name: value})

            step = torch.randn_like(tensor)
            want = by_reverse_mode(function, [tensor], [step])
            assert want.any()
            torch.testing.assert_close(tangent(function, [tensor], [step]).flatten(), want)
    parameters, x = torch.randn(4, 3, dtype=torch.float64, device=device), tensors["x"]
    for function, value in (
        (lambda p: functional.head_log_prob(p, x), parameters),
        (lambda x: functional.head_log_prob(parameters, x), x),
    ):
        step = torch.randn_like(value)
        want = by_reverse_mode(function, [value], [step])
        torch.testing.assert_close(tangent(function, [value], [step]).flatten(), want)


OPS = sorted(
    name.removeprefix("ar_fast::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("ar_fast::")
)


def argument(kind):
    """A value of a schema's type, of no use but as an argument."""
    values = {"Tensor": lambda: torch.ones(2, 2), "int": lambda: 1, "float": lambda: 1.0, "bool": lambda: False,
              "str": lambda: "", "List[Tensor]": lambda: [torch.ones(2, 2)], "List[int]": lambda: [1],
              "List[float]": lambda: [1.0]}  # fmt: skip
    return None if kind.startswith("Optional") else values[kind]()


@pytest.mark.skipif(_library.backend == "reference", reason="there are no compiled ops")
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_compiled_ops_refuse_a_tangent(ops, name, trained):
    """Each op, those of samples and of gradients too, in each of its tensors: called directly, past the references of
    ar_fast.functional, it would drop it."""
    op = getattr(ops, name)
    doors = [op]
    if ops is torch.ops.ar_fast and hasattr(_library._C, name):
        doors.append(getattr(_library._C, name))
    kinds = [str(one.type) for one in op.default._schema.arguments]
    for index, kind in enumerate(kinds):
        if "Tensor" not in kind:
            continue
        for door in doors:
            arguments = [argument(one) for one in kinds]
            with forward_ad.dual_level():
                tensor = torch.ones(2, 2, requires_grad=trained)
                dual = forward_ad.make_dual(tensor, torch.ones(2, 2))
                arguments[index] = [dual] if kind.startswith("List") else dual
                with pytest.raises(RuntimeError, match=f"{name}: tensors must have no tangent"):
                    door(*arguments)


@pytest.mark.skipif(_library.backend == "reference", reason="there are no compiled ops")
def test_there_are_ops():
    assert {"nade_sample", "nade_backward", "head_log_prob_backward", "masked_linear_grad_weight"} <= set(OPS)


def test_no_tensor_is_looked_at_outside_of_a_dual_level(monkeypatch):
    def never(arguments):
        raise AssertionError("looked at the arguments")

    monkeypatch.setattr(functional._call, "_any_tangent", never)
    model = make("NADE", "Bernoulli")
    model.log_prob(torch.ones(2, VARIABLES, dtype=torch.float64))
    with forward_ad.dual_level(), pytest.raises(AssertionError, match="looked at the arguments"):
        model.log_prob(torch.ones(2, VARIABLES, dtype=torch.float64))


def test_without_a_tangent_the_kernels_run_in_a_dual_level(monkeypatch):
    monkeypatch.setattr(_fallback, "call", functools.partial(pytest.fail, "a reference ran"))
    model = make("NADE", "Bernoulli")
    x = torch.ones(2, VARIABLES, dtype=torch.float64)
    want = model.log_prob(x)
    with forward_ad.dual_level():
        assert torch.equal(model.log_prob(x), want)
