"""Samples of every model: their log_prob, and that how the work is cut does not change them."""

import pytest
import torch
from model_cases import CASES, bit_for_bit, make_context, make_model

import ar_fast.models.sampling as driver
from ar_fast import _library, functional

FIXED_SEED = 0
pytestmark = pytest.mark.heavy


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
def test_samples_do_not_depend_on_how_many_are_drawn(kind, context_features, dtype, device, emulation):
    variables, n = (17, 40) if emulation else (35, 100)
    model = make_model(kind, variables, context_features, device=device, dtype=dtype)
    context = make_context(context_features, 2, device=device, dtype=dtype)
    whole = model.sample(n, context, seed=5, return_log_prob=True)
    first = model.sample(25, context, seed=5, return_log_prob=True)
    rest = model.sample(n - 25, context, seed=5, first_index=25, return_log_prob=True)
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
    monkeypatch.setattr(driver, "_CHUNK_ELEMENTS", 1)
    parts, parts_log_prob = model.sample(7, context, **options)
    assert torch.equal(whole, parts)
    torch.testing.assert_close(whole_log_prob, parts_log_prob, rtol=1e-6, atol=0)


BAD_LATER = {
    "nade order": ("nade_sample", {"order": [0, 1, 2, 3, 9, 5]}, "order must be a permutation"),
    "nade out_offsets": ("nade_sample", {"out_offsets": [0, 1, 2, 3, 5, 4, 6]}, "out_offsets must ascend"),
    "nade out_offsets outside": ("nade_sample", {"out_offsets": [0, 1, 2, 3, 4, 99, 6]}, "out_offsets must"),
    "nade in_offsets outside": ("nade_sample", {"in_offsets": [0, 1, 2, 3, -7, 5, 6]}, "in_offsets must"),
    "armlp order": ("armlp_sample", {"order": [0, 1, 2, 3, 6, 5]}, "order must be a permutation"),
    "armlp offsets": ("armlp_sample", {"offsets": [0, 1, 2, 3, 4, 9, 6]}, "offsets must"),
    "masked_mlp order": ("masked_mlp_sample", {"order": [0, 1, 2, 3, 6, 5]}, "order must be a permutation"),
    "masked_mlp out_offsets": ("masked_mlp_sample", {"out_offsets": [0, 1, 2, 3, 9, 5, 6]}, "out_offsets must"),
    "masked_mlp unit_ends": ("masked_mlp_sample", {"unit_ends": [0, 1, 2, 3, 9, 5]}, "unit_ends.0. must ascend"),
    "masked_mlp extents": ("masked_mlp_sample", {"extents": [0, 1, 2, 3, 9]}, "extents.0. must"),
    "offset_nade order": ("offset_nade_sample", {"order": [0, 1, 2, 3, 6, 5]}, "order must be a permutation"),
}


@pytest.mark.skipif(_library.backend == "reference", reason="the compiled ops look at the positions of a call only")
@pytest.mark.parametrize(("op", "change", "message"), BAD_LATER.values(), ids=BAD_LATER)
def test_structure_is_checked_at_the_positions_of_a_call(op, change, message):
    """A call that goes on at position 3 raises for what it would read out of place, and draws up to there."""
    tensors = {
        name: torch.tensor(value, dtype=torch.int32 if name in ("unit_ends", "extents") else torch.int64)
        for name, value in change.items()
    }
    six, ends, sees = torch.zeros(6, 2), tensors.pop("unit_ends", None), tensors.pop("extents", None)
    ends = torch.arange(6, dtype=torch.int32).clamp(max=5) if ends is None else ends
    sees = torch.arange(1, 6, dtype=torch.int32) if sees is None else sees
    arguments = {
        "nade_sample": (torch.zeros(1, 2), six, six, torch.zeros(6)),
        "armlp_sample": (torch.zeros(1, 6), torch.zeros(30, 2), torch.tensor([0, 30]), six, six, torch.zeros(6)),
        "masked_mlp_sample": (
            torch.zeros(1, 11),
            [torch.zeros(5, 6), torch.zeros(6, 5)],
            [torch.zeros(5), torch.zeros(6)],
            [sees, torch.arange(6, dtype=torch.int32)],
            [ends],
        ),
        "offset_nade_sample": (torch.zeros(1, 2), torch.zeros(2, 3), torch.zeros(3), torch.zeros(1, 3), torch.zeros(1)),
    }[op]
    options = {"grid": (1, 6, 1), "window": (0, 2)} if op == "offset_nade_sample" else {}
    if "in_offsets" in change:
        options["head"] = "categorical"
    call = getattr(functional, op)
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        call(*arguments, **tensors, **options, seed=0, start=3, stop=6)
    if op != "armlp_sample" and "order" not in change:
        call(*arguments, **tensors, **options, seed=0, start=0, stop=2)
