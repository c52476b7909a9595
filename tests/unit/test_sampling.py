"""Samples of every model: their log_prob, and that how the work is cut does not change them."""

import pytest
import torch
from model_cases import CASES, bit_for_bit, make_context, make_model

import ar_fast.models.sampling as driver

FIXED_SEED = 0
pytestmark = pytest.mark.models


@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_log_prob_of_a_sample(kind, context_features, temperature, dtype, device):
    model = make_model(kind, 23, context_features, device=device, dtype=dtype)
    context = make_context(context_features, 3, device=device, dtype=dtype)
    samples, log_prob = model.sample(5, context, seed=13, temperature=temperature, return_log_prob=True)
    assert samples.dtype == log_prob.dtype == model.compute_dtype
    # In 16 bits, evaluation rounds hidden layers and context to storage; sampling keeps them in float32.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    torch.testing.assert_close(log_prob, model.log_prob(samples, context), rtol=tolerance, atol=tolerance)


@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_do_not_depend_on_how_many_are_drawn(kind, context_features, dtype, device):
    model = make_model(kind, 35, context_features, device=device, dtype=dtype)
    context = make_context(context_features, 2, device=device, dtype=dtype)
    whole = model.sample(100, context, seed=5, return_log_prob=True)
    first = model.sample(40, context, seed=5, return_log_prob=True)
    rest = model.sample(60, context, seed=5, first_index=40, return_log_prob=True)
    for of_whole, of_first, of_rest in zip(whole, first, rest, strict=True):
        assert torch.equal(of_whole, torch.cat([of_first, of_rest]))
    one = model.sample(1, context, seed=5, first_index=17, return_log_prob=True)
    assert torch.equal(one[0], whole[0][17:18]) and torch.equal(one[1], whole[1][17:18])


@bit_for_bit
@torch.no_grad()
@pytest.mark.parametrize("kind, context_features", CASES)
def test_samples_do_not_depend_on_blocks_and_chunks(kind, context_features, device, monkeypatch):
    model = make_model(kind, 17, context_features, device=device, dtype=torch.float32)
    context = make_context(context_features, 3, device=device, dtype=torch.float32)
    known = torch.zeros(17, dtype=torch.bool, device=device)
    known[model.order[:4]] = True
    options = {"seed": 6, "given": torch.ones(17, device=device), "known": known, "return_log_prob": True}
    whole, whole_log_prob = model.sample(7, context, **options)
    monkeypatch.setattr(driver, "_BLOCK_ELEMENTS", 100)
    blocks, blocks_log_prob = model.sample(7, context, **options)
    assert torch.equal(whole, blocks) and torch.equal(whole_log_prob, blocks_log_prob)
    monkeypatch.setattr(driver, "_CHUNK_POSITIONS", 3)
    parts, parts_log_prob = model.sample(7, context, **options)
    assert torch.equal(whole, parts)
    torch.testing.assert_close(whole_log_prob, parts_log_prob, rtol=1e-6, atol=0)
