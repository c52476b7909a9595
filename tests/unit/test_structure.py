"""What follows from how a model was made survives whatever is done to its parameters and buffers."""

import copy
import pickle

import pytest
import torch
from masked_cases import make_mask
from structure_cases import CASES, ORDER, VARIABLES, build, data, make
from torch.func import functional_call, grad, stack_module_state, vmap

from ar_fast import Mask, models
from ar_fast.nn import MaskedLinear

pytestmark = pytest.mark.heavy

INTEGERS = (torch.int16, torch.int32, torch.int64, torch.bool)


def check(got, model, head, *, tolerance=0.0):
    """``got`` computes and draws what ``model`` does, one variable at a time too."""
    x, context = data(head, device=model.device)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(got.log_prob(x, context), model.log_prob(x, context), **close)
    torch.testing.assert_close(got(x, context), model(x, context), **close)
    torch.testing.assert_close(
        got.sample(2, context, seed=0), model.sample(2, context, seed=0), rtol=max(tolerance, 1e-9), atol=1e-9
    )
    state, want = (one.begin(() if context is not None else 6, context) for one in (got, model))
    while want.variable is not None:
        torch.testing.assert_close(state.parameters, want.parameters, **close)
        value = x[:, want.variable]
        state, want = got.next(state, value), model.next(want, value)
    assert got.count_parameters() == model.count_parameters()


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_nothing_derived_is_a_buffer(kind, head):
    model = make(kind, head)
    assert [name for name, buffer in model.named_buffers() if buffer.dtype in INTEGERS] == []
    saved = {name for name, tensor in model.state_dict().items() if tensor.dtype in INTEGERS}
    assert saved == ({"orders", "mask_in_use"} if kind == "MADE-masks" else {"order"})


def from_meta(kind, head):
    """A model on the meta device: by the argument and, the same, by the default device."""
    with torch.device("meta"):
        model = build(kind, head, dtype=torch.float64)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    by_argument = build(kind, head, dtype=torch.float64, device="meta")
    assert model.state_dict().keys() == by_argument.state_dict().keys()
    return model


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_copies_and_meta_devices(device, kind, head):
    model = make(kind, head, device=device)
    state = model.state_dict()
    assigned, emptied, moved = from_meta(kind, head), from_meta(kind, head), copy.deepcopy(model).to("meta")
    assigned.load_state_dict(state, assign=True)
    skipped = torch.nn.utils.skip_init(type(model), **arguments(model), device=device)
    for other in (emptied, moved, skipped):
        other.to_empty(device=device).load_state_dict(state)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), assigned, emptied, moved, skipped):
        check(other, model, head)
        other.log_prob(*data(head, device=device)).sum().backward()
    if model.standardization is not None:
        x, context = data(head, device=device)
        fresh = from_meta(kind, head).to_empty(device=device)
        fresh.reset_parameters()
        assert fresh.log_prob(x, context).isfinite().all()


def arguments(model):
    """The arguments of its constructor, except the device."""
    return model.config() | {"head": model.head, "order": ORDER, "dtype": model.dtype}


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_moves_to_other_dtypes_and_devices(device, kind, head):
    model = make(kind, head, device=device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        # 16-bit weights lose digits: what they became is what the moved model must compute.
        rounded = {name: tensor.to(dtype) for name, tensor in model.named_parameters()}
        moved = copy.deepcopy(model).to(dtype)
        assert moved.dtype == dtype
        moved.to(torch.float64)
        want = copy.deepcopy(model)
        want.load_state_dict(dict(model.named_buffers()) | rounded, strict=False)
        check(moved, want, head)
    x, context = data(head, device=device, dtype=torch.float32)
    got = copy.deepcopy(model).half().log_prob(x, None if context is None else context.half())
    assert got.dtype == torch.float32 and got.isfinite().all()
    if torch.cuda.is_available():
        check(copy.deepcopy(model).to("cuda").to(device), model, head)
        check(copy.deepcopy(model).to("cuda"), model.to("cuda"), head)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_parameters_that_come_to_another_device_without_the_module(device, kind, head):
    """functional_call, as assign=True, hands parameters to a model that is elsewhere."""
    model = make(kind, head, device=device)
    x, context = data(head, device=device)
    elsewhere = copy.deepcopy(model).to("meta")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert torch.equal(functional_call(elsewhere, tensors, (x, context)), model(x, context))
    assert elsewhere(x.to("meta"), None if context is None else context.to("meta")).is_meta


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_averages_of_weights(device, kind, head):
    """Averaging weights leaves the structure alone: one that it would change is refused."""
    model = make(kind, head, device=device)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for _ in range(3):
            averaged.update_parameters(model)
    check(averaged.module, model, head, tolerance=1e-12)
    if kind == "MADE-masks":
        with torch.no_grad():
            averaged.update_parameters(model.use_mask(2))
        model.use_mask(1)
        check(averaged.module, model, head, tolerance=1e-12)
    for _ in range(3):
        state = {name: 0.9 * tensor + 0.1 * model.state_dict()[name] for name, tensor in state.items()}
    other = make(kind, head, seed=2, device=device)
    other.load_state_dict(state)
    check(other, model, head, tolerance=1e-12)
    name = "orders" if kind == "MADE-masks" else "order"
    for wrong in (state[name] * 0.4, (state[name] * 0.4).long()):
        with pytest.raises(RuntimeError, match=r"order: must (hold integers, got|be a permutation of 0 ... 3, got)"):
            other.load_state_dict(state | {name: wrong})


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_vmap_over_stacked_models(kind, head):
    members = [make(kind, head, seed=seed) for seed in (1, 2, 3)]
    x, context = data(head)
    base = copy.deepcopy(members[0]).to("meta")
    parameters, buffers = stack_module_state(members)

    def log_prob(parameters, buffers):
        tensors = {f"model.{name}": tensor for name, tensor in (parameters | buffers).items()}
        return functional_call(LogProb(base), tensors, (x, context))

    want = torch.stack([member.log_prob(x, context) for member in members])
    torch.testing.assert_close(vmap(log_prob)(parameters, buffers), want)
    gradients = vmap(grad(lambda *tensors: log_prob(*tensors).sum()))(parameters, buffers)
    for index, member in enumerate(members):
        member.log_prob(x, context).sum().backward()
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad)
    # A transform leaves nothing behind in the model that it first ran in.
    base.to_empty(device="cpu").load_state_dict(members[1].state_dict())
    check(base, members[1], head)


class LogProb(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, context):
        return self.model.log_prob(x, context)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_inference_mode_leaves_nothing_that_cannot_be_trained(device, kind, head):
    model, other, assigned = (
        make(kind, head, device=device),
        make(kind, head, seed=2, device=device),
        from_meta(kind, head),
    )
    x, context = data(head, device=device)
    want, state = model.log_prob(x, context), copy.deepcopy(model).state_dict()
    with torch.inference_mode():
        other.load_state_dict(state)
        assigned.load_state_dict(state, assign=True)
        changed = [other, assigned]
        if kind == "MADE-masks":
            other.use_mask(0).next_mask()
        if type(model)._any_order:
            changed.append(other.in_order([3, 2, 1, 0]).in_order(ORDER))
        for trained in changed:
            assert torch.equal(trained.log_prob(x, context), want)
    for trained in changed:
        trained.zero_grad()
        trained.log_prob(x, context).sum().backward()
        assert trained.log_prob(x, context).requires_grad
        assert all(parameter.grad is not None for parameter in trained.parameters())


def test_resizing_in_inference_mode(device):
    model = make("OffsetNADE", "Bernoulli", device=device, order=None)
    with torch.inference_mode():
        larger = model.resized(7)
    larger.log_prob(torch.ones(2, 7, device=device, dtype=torch.float64)).sum().backward()
    assert model.in_weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_an_order_is_checked_when_it_is_used(device, kind, head):
    model = make(kind, head, device=device)
    x, context = data(head, device=device)
    model.order[0] = model.order[1]
    with pytest.raises(ValueError, match=r"order: must be a permutation of 0 ... 3, got . 2 times"):
        model.log_prob(x, context)
    if kind != "MADE-masks":
        model.order = torch.tensor([0.5, 1, 2, 3])
        with pytest.raises(ValueError, match=r"order: must hold integers, got torch.float32"):
            model.sample(2, context)


@pytest.mark.parametrize("name", ["NADE", "DeepNADE", "OffsetNADE", "RNN"])
def test_an_order_that_was_written_is_the_order_from_then_on(device, name):
    model, other = make(name, "Bernoulli", device=device), make(name, "Bernoulli", device=device, order=[3, 2, 1, 0])
    model.order.copy_(torch.tensor([3, 2, 1, 0]))
    check(model, other, "Bernoulli")


# Masked layers.


@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_a_masked_layer_survives_too(device, kind):
    mask, other = make_mask(kind, 5, 4), make_mask("sorted", 5, 4)
    layer = MaskedLinear(4, 5, mask, dtype=torch.float64, device=device)
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    want, state = layer(x), layer.state_dict()
    assert list(layer.buffers()) == []
    with torch.device("meta"):
        assigned = MaskedLinear(4, 5, other)
        emptied = torch.nn.Sequential(MaskedLinear(4, 5, mask, dtype=torch.float64))
    assigned.set_mask(mask)
    assigned.load_state_dict(state, assign=True)
    emptied.to_empty(device=device).load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    skipped = torch.nn.utils.skip_init(MaskedLinear, 4, 5, mask, dtype=torch.float64, device=device)
    skipped.load_state_dict(state)
    with torch.inference_mode():
        made = MaskedLinear.from_linear(layer, Mask.from_dense(mask.to_dense().clone()))
        made.set_mask(Mask.from_dense(mask.to_dense().clone()))
    for other in (assigned, emptied, skipped, made, copy.deepcopy(layer), copy.deepcopy(layer).to("meta")):
        if next(other.parameters()).is_meta:
            got = functional_call(other, state, (x,))
        else:
            got = other(x)
            got.sum().backward()
        # from_dense may put inputs that no output tells apart in another order of summation.
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14 if other is made else 0)
    other = copy.deepcopy(layer).float().half().double()
    other.load_state_dict(state)
    assert torch.equal(other(x), want)
    stacked, _ = stack_module_state([layer, other])
    got = vmap(lambda tensors: functional_call(copy.deepcopy(layer).to("meta"), tensors, (x,)))(stacked)
    torch.testing.assert_close(got, torch.stack([want, want]))


def test_skip_init_keeps_the_mask():
    layer = torch.nn.utils.skip_init(MaskedLinear, 4, 4, torch.eye(4).bool(), bias=False)
    torch.nn.init.ones_(layer.weight)
    assert layer(torch.ones(4)).tolist() == [1, 1, 1, 1]


def test_a_mask_without_values_is_refused():
    for refused in (lambda: Mask.from_dense(torch.ones(2, 2, dtype=torch.bool, device="meta")),
                 lambda: Mask.from_degrees(torch.ones(2, dtype=torch.int64, device="meta"), [1])):  # fmt: skip
        with pytest.raises(ValueError, match="must have values, got a tensor on the meta device"):
            refused()


# Standardisation: from the values that are used.


@pytest.mark.parametrize(
    ("kind", "head"), [case for case in CASES if case.values[1] in ("GaussianMixture", "PerVariable")]
)
def test_a_standardisation_is_what_its_buffers_hold(device, kind, head):
    """Written in place, as DistributedDataParallel's broadcast does, or handed over by functional_call."""
    model, other = make(kind, head, device=device), build(kind, head, dtype=torch.float64, device=device)
    if kind == "MADE-masks":
        other.use_mask(1)
    other.load_state_dict(dict(model.named_parameters()), strict=False)
    x, context = data(head, device=device)
    want = model.log_prob(x, context)
    assert not torch.allclose(other.log_prob(x, context), want)
    tensors = {f"model.{name}": tensor for name, tensor in dict(model.named_buffers()).items()}
    assert torch.equal(functional_call(LogProb(other), tensors, (x, context)), want)
    for name, buffer in other.named_buffers():
        buffer.data.copy_(model.get_buffer(name))
    check(other, model, head)
    for buffer in other.standardization.buffers():
        buffer.fill_(float(buffer is other.standardization.scale))
    fresh = build(kind, head, dtype=torch.float64, device=device)
    fresh.load_state_dict(other.state_dict())
    check(other, fresh, head)
    # A state_dict without one: a model that has set its own says so and keeps it.
    parameters, model = dict(other.named_parameters()), make(kind, head, device=device)
    decisive = {name: tensor for name, tensor in model.state_dict().items() if name not in dict(model.named_buffers())}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with pytest.raises(RuntimeError, match=r"Missing key.*standardization.scale|Missing key.*standardization.shift"):
        model.load_state_dict(decisive | parameters)
    result = model.load_state_dict(decisive | parameters, strict=False)
    assert result.missing_keys == ["standardization.shift", "standardization.scale"]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_functional_call_differentiates_the_given_parameters(device, monkeypatch, kind, head):
    """Also what is computed again in the backward pass is of those, and not of the model's own."""
    monkeypatch.setattr(models.deep_nade, "_BLOCK_ELEMENTS", 1)
    model, other = make(kind, head, device=device), make(kind, head, seed=2, device=device)
    x, context = data(head, device=device)
    given = {f"model.{name}": tensor.detach().clone().requires_grad_() for name, tensor in other.named_parameters()}
    buffers = {f"model.{name}": tensor for name, tensor in other.named_buffers()}
    value = functional_call(LogProb(model), given | buffers, (x, context))
    want = other.log_prob(x, context)
    torch.testing.assert_close(value, want)
    value.sum().backward()
    want.sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(given[f"model.{name}"].grad, parameter.grad)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_batch_of_gradients(device, monkeypatch, kind, head):
    """As ``torch.autograd.functional.jacobian`` takes them with vectorize=True: also of what is computed again."""
    monkeypatch.setattr(models.deep_nade, "_BLOCK_ELEMENTS", 1)
    model = make(kind, head, device=device)
    parameters = list(model.parameters())
    value = model.log_prob(*data(head, rows=3, device=device))
    vectors = torch.eye(3, dtype=value.dtype, device=device)
    got = torch.autograd.grad(value, parameters, vectors, is_grads_batched=True, retain_graph=True)
    for row in range(3):
        want = torch.autograd.grad(value[row], parameters, retain_graph=True)
        torch.testing.assert_close([gradient[row] for gradient in got], list(want))


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_a_backward_pass_after_a_step_is_refused(device, monkeypatch, kind, head):
    monkeypatch.setattr(models.deep_nade, "_BLOCK_ELEMENTS", 1)
    model = make(kind, head, device=device)
    loss = model.log_prob(*data(head, device=device)).sum()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    with pytest.raises(RuntimeError, match=r"modified (by an )?in ?place"):
        loss.backward()


# Files of before.


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_keys_of_a_checkpoint(tmp_path, kind, head):
    """They are those that models always had, and a saved directory holds the same."""
    import safetensors.torch

    model, other = make(kind, head), make(kind, head, seed=2)
    decisive = {"MADE-masks": {"orders": (2, 4), "mask_in_use": ()}}.get(kind, {"order": (VARIABLES,)})
    state = model.state_dict()
    names = set(decisive) | {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert state.keys() == names
    assert {name: tuple(state[name].shape) for name in decisive} == decisive
    model.save(tmp_path)
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == names
    check(models.load(tmp_path), model, head)
    check(other.load(tmp_path), model, head)
    for name in decisive:
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            other.load_state_dict({key: tensor for key, tensor in state.items() if key != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*extra"):
        other.load_state_dict(state | {"extra": torch.zeros(1)})
