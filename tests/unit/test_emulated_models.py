"""One smoke test of every kind of model under the emulation: what it computes there equals what it computes on the CPU.

The kernels are compared with their references op by op, on either; this is that each model reaches them with the right
arguments. All other tests of whole models under the emulation are of the full suite.
"""

import deep_nade_cases
import emulated
import head_cases
import offset_nade_cases
import pytest
import rnn_model_cases
import tabular_cases
import torch
from model_cases import CASES, make_context, make_model, random_binary

from ar_fast import _library, heads, models

FIXED_SEED = 0


def results(model, x, context=None):
    """log_prob, its gradient by every parameter, the conditionals and samples with their log_prob."""
    log_prob = model.log_prob(x, context)
    gradients = torch.autograd.grad(log_prob.sum(), list(model.parameters()), allow_unused=True)
    with torch.no_grad():
        parameters = model(x, context)
    samples, sampled = model.sample(5, context, seed=3, return_log_prob=True)
    return [log_prob.detach(), *(g for g in gradients if g is not None), parameters, samples, sampled]


def assert_equal_on_both(model, x, context=None):
    want = results(model, x, context)
    with emulated.fiber_order("random"), _library.use("ar_fast_emulated"):
        got = results(model, x, context)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_every_kind(kind, context_features):
    model = make_model(kind, (3, 7), context_features)
    assert_equal_on_both(model, random_binary(4, 3, 7), make_context(context_features, 4) if context_features else None)


@pytest.mark.parametrize("kind", ["NADE", "MADE", "MADE-residual", "FVSBN", "ARMLP"])
@pytest.mark.parametrize("name", head_cases.HEADS)
def test_every_head(kind, name):
    head = head_cases.HEADS[name]
    x = torch.randn(3, 4, dtype=torch.float64)
    if name != "GaussianMixture":
        x = head_cases.all_events(head, 4)[::7][:3]
    assert_equal_on_both(head_cases.model_of(head, kind), x)


@pytest.mark.parametrize("layers", deep_nade_cases.LAYERS, ids=str)
def test_every_depth_of_a_deep_nade(layers):
    model = deep_nade_cases.make(5, layers, head=heads.Categorical(3), context_features=2)
    assert_equal_on_both(model, torch.randint(3, (4, 5)), make_context(2, 4))


@pytest.mark.parametrize("name", offset_nade_cases.MODEL_HEADS)
def test_every_head_of_an_offset_nade(name):
    model = offset_nade_cases.make((3, 4), (2, 1), head=offset_nade_cases.MODEL_HEADS[name])
    assert_equal_on_both(model, offset_nade_cases.draw_events(model, 3))


@pytest.mark.parametrize("name", rnn_model_cases.HEADS)
def test_every_head_of_an_rnn(name):
    model = rnn_model_cases.make_rnn((3, 4), "lstm", 2, head=rnn_model_cases.HEADS[name], context_features=2)
    assert_equal_on_both(model, offset_nade_cases.draw_events(model, 3), make_context(2, 3))


@pytest.mark.parametrize(("cell", "num_layers"), rnn_model_cases.STACKS)
def test_text(cell, num_layers):
    model = rnn_model_cases.make_char_rnn(cell, num_layers, embedding_features=3)
    prompts = {"prompt": rnn_model_cases.random_tokens(5, 3), "prompt_lengths": torch.tensor([3, 0, 2, 1, 3])}

    def drawn():
        *first, state = model.sample(
            5, 9, **prompts, stop="c", top_k=4, top_p=0.9, seed=3, return_log_prob=True, return_state=True
        )
        return [*first, *model.sample(5, 4, state=state, return_log_prob=True)]

    want = drawn()
    with emulated.fiber_order("random"), _library.use("ar_fast_emulated"):
        got = drawn()
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", tabular_cases.KINDS)
def test_tables(kind):
    assert_equal_on_both(tabular_cases.make(kind), tabular_cases.table(4))


def test_rnade():
    model = models.RNADE(6, 7, components=2, dtype=torch.float64)
    assert_equal_on_both(model, torch.randn(4, 6, dtype=torch.float64))
