"""RNN: against torch.nn, with every head, cell and depth; contexts, orders and dropout."""

import pytest
import torch
from model_cases import bit_for_bit, make_context
from offset_nade_cases import draw_events
from rnn_model_cases import HEADS, STACKS, make_rnn

from ar_fast import heads, models

FIXED_SEED = 0
pytestmark = pytest.mark.heavy
EVERY_HEAD = pytest.mark.parametrize("name", HEADS)
EVERY_STACK = pytest.mark.parametrize(("cell", "num_layers"), STACKS)


def by_torch(model, x, context=None):
    """The parameters by torch.nn's module: x (B, D) as the model's units have it, context (B, C)."""
    order = torch.arange(model.variables) if model.order is None else model.order
    inputs = x[:, order[:-1]]
    inputs = torch.nn.functional.one_hot(inputs.long(), 3) if isinstance(model.head, heads.Categorical) else inputs
    inputs = inputs.double().reshape(len(x), model.variables - 1, -1)
    inputs = torch.cat([torch.zeros_like(inputs[:, :1]), inputs], 1)
    if context is not None:
        inputs = torch.cat([inputs, context[:, None].expand(-1, model.variables, -1)], 2)
    hidden, _ = model.rnn.to_torch()(inputs)
    return (hidden @ model.out_weight.T + model.out_bias)[:, order.argsort()]


@EVERY_HEAD
@EVERY_STACK
def test_it_is_torchs_module(cell, num_layers, name):
    model = make_rnn((2, 3), cell, num_layers, head=HEADS[name], order=[3, 1, 0, 5, 4, 2], context_features=2)
    x, context = draw_events(model, 4), make_context(2, 4)
    encoded = model.head.encode(x.flatten(1), torch.float64)
    expected = by_torch(model, encoded, context)
    torch.testing.assert_close(model(x, context), expected, rtol=1e-12, atol=1e-12)
    log_prob = model.head.log_prob(expected, x.flatten(1))
    torch.testing.assert_close(model.log_prob(x, context, per_variable=True).flatten(1), log_prob)
    gradients = torch.autograd.grad(model.log_prob(x, context).sum(), list(model.parameters()))
    for got, wanted in zip(gradients, torch.autograd.grad(log_prob.sum(), list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted)


@EVERY_HEAD
@EVERY_STACK
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_variable_at_a_time_and_samples(cell, num_layers, name, dtype, device):
    options = {"head": HEADS[name], "context_features": 2, "dtype": dtype, "device": device}
    model = make_rnn((2, 3), cell, num_layers, order=[3, 1, 0, 5, 4, 2], **options)
    context = make_context(2, 4, device=device, dtype=dtype)
    x, sampled = model.sample((), context, seed=1, return_log_prob=True)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(sampled, model.log_prob(x, context), **tolerance)
    expected, state = model(x, context), model.begin(context=context)
    while state.parameters is not None:
        torch.testing.assert_close(state.parameters, expected[:, state.variable], **tolerance)
        state = model.next(state, x.flatten(1)[:, state.variable])
    known = torch.zeros(2, 3, dtype=torch.bool, device=device)
    known.view(-1)[[3, 1]] = True
    completed, of_drawn = model.sample((), context, seed=2, given=x, known=known, return_log_prob=True)
    assert torch.equal(completed[:, known], x[:, known])
    terms = model.log_prob(completed, context, per_variable=True).masked_fill(known, 0.0).flatten(1).sum(1)
    torch.testing.assert_close(of_drawn, terms, **tolerance)


@bit_for_bit
@EVERY_STACK
def test_samples_do_not_depend_on_how_a_run_is_cut(cell, num_layers, device, monkeypatch):
    model = make_rnn(9, cell, num_layers, dtype=torch.float32, device=device)
    whole, log_prob = model.sample(6, seed=3, return_log_prob=True)
    monkeypatch.setattr("ar_fast.models.rnn._CALL_MULTIPLY_ADDS", 1)
    cut, other = model.sample(6, seed=3, return_log_prob=True)
    assert torch.equal(whole, cut)
    torch.testing.assert_close(other, log_prob, rtol=1e-6, atol=0)
    assert torch.equal(model.sample(2, seed=3, first_index=4), whole[4:])


def test_another_order_has_the_same_parameters():
    model = make_rnn(5)
    other = model.in_order([4, 2, 0, 1, 3])
    assert other.rnn is model.rnn and other.count_parameters() == model.count_parameters()
    x = torch.rand(3, 5).round().double()
    torch.testing.assert_close(other.log_prob(x), model.log_prob(x[:, [4, 2, 0, 1, 3]]))


def test_parameters_do_not_grow_with_the_event():
    count = {size: models.RNN(size, 16, "lstm", 2).count_parameters() for size in (4, 4000)}
    first, second = 4 * 16 * (16 + 1) + 8 * 16, 4 * 16 * 32 + 8 * 16
    assert set(count.values()) == {first + second + 17}


def test_dropout_is_of_training_only():
    model, x = make_rnn(9, "gru", 2, dropout=0.5), torch.ones(2, 9, dtype=torch.float64)
    assert not torch.equal(model.log_prob(x), model.log_prob(x))
    drawn = model.sample(3, seed=1)
    model.eval()
    assert torch.equal(model.log_prob(x), model.log_prob(x)) and torch.equal(model.sample(3, seed=1), drawn)
    torch.testing.assert_close(model.log_prob(x), make_rnn(9, "gru", 2).log_prob(x))
    # The steps written out drop alike: where nothing is dropped half of the values are doubled.
    torch.manual_seed(0)
    mean = torch.stack([model.train().rnn._by_steps(*_inputs(model))[0] for _ in range(400)]).mean(0)
    torch.manual_seed(0)
    other = torch.stack([model.rnn(*_inputs(model))[0] for _ in range(400)]).mean(0)
    assert (mean - other).abs().max() < 0.12


def _inputs(model):
    inputs = torch.ones(1, 4, 1, dtype=torch.float64)
    return inputs, model.rnn.zero_states(inputs, (1,))


def test_what_is_refused():
    for head in (heads.Categorical([2, 3]), heads.PerVariable([heads.Bernoulli(), heads.GaussianMixture(1)])):
        with pytest.raises(ValueError, match="RNN: head must have as many parameters for every variable"):
            models.RNN(2, 3, head=head)
