"""The references against independent definitions: what the kernels are compared with must itself be right."""

import pytest
import torch
from torch.nn import functional as F

from ar_fast import Mask, _philox, _vocabulary, reference

FIXED_SEED = 0

KNOWN_ANSWERS = [  # Random123's kat_vectors: counter, key, and the first two words of philox4x32-10.
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB)),
]


@pytest.mark.parametrize("philox_uniform", [reference.philox_uniform, _philox.philox_uniform])
@pytest.mark.parametrize("counter, key, words", KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words, philox_uniform):
    sample = counter[0] | counter[1] << 32
    sample -= 2**64 if sample >= 2**63 else 0
    uniform = philox_uniform(key[0] | key[1] << 32, torch.tensor(sample), torch.tensor(counter[2]), slot=counter[3])
    assert uniform.item() == ((words[0] << 20 | words[1] >> 12) + 0.5) * 2.0**-52


def test_the_reference_knows_the_names_of_the_library():
    assert reference.HEADS == _vocabulary.HEADS
    assert reference.ACTIVATIONS == _vocabulary.ACTIVATIONS
    assert reference.MLP_ACTIVATIONS == _vocabulary.MLP_ACTIVATIONS


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(x, in_weight, in_bias, out_weight, out_bias, order, scale, activation):
    """NADE as it is written down, each conditional on its own."""
    logits = torch.empty(x.shape, dtype=torch.float64)
    for p, i in enumerate(order):
        before = order[:p]
        hidden = activation(scale[i] * (in_bias + x[:, before] @ in_weight[before]))
        logits[:, i] = hidden @ out_weight[i] + out_bias[i]
    return logits


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_nade_is_its_definition(activation):
    order = torch.tensor([2, 0, 4, 1, 3])
    x, scale = random(3, 5), random(5, seed=1)
    arguments = random(5, 7, seed=2), random(7, seed=3), random(5, 7, seed=4), random(5, seed=5)
    expected = definition(x, *arguments, order, scale, getattr(torch, activation))
    actual = reference.nade(x, *arguments, order, activation_scale=scale, activation=activation)
    torch.testing.assert_close(actual, expected)
    per_variable = -F.binary_cross_entropy_with_logits(expected, x, reduction="none")
    options = {"order": order, "activation_scale": scale, "activation": activation}
    torch.testing.assert_close(reference.nade_log_prob(x, *arguments, **options), per_variable.sum(1))
    torch.testing.assert_close(reference.nade_log_prob(x, *arguments, **options, per_variable=True), per_variable)


def test_categories_gather_the_rows_that_one_hot_vectors_scale():
    categories = torch.tensor([[2, 0, 1], [0, 3, 1]])
    offsets = torch.tensor([0, 3, 7, 9])
    order = torch.tensor([1, 2, 0])
    in_weight, in_bias, out_weight, out_bias = random(9, 4), random(4), random(3, 4), random(3)
    actual = reference.nade(categories, in_weight, in_bias, out_weight, out_bias, order, in_offsets=offsets)
    for row, x in enumerate(categories.tolist()):
        state = in_bias
        for i in order.tolist():
            logit = torch.sigmoid(state) @ out_weight[i] + out_bias[i]
            torch.testing.assert_close(actual[row, i], logit)
            state = state + in_weight[offsets[i] + x[i]]


def test_uniform_offsets_are_the_default():
    x = torch.tensor([[1, 0, 2], [0, 2, 1]])
    order = torch.tensor([2, 0, 1])
    arguments = random(9, 4), random(4), random(6, 4, seed=1), random(6)
    expected = reference.nade(x, *arguments, order)
    offsets = {"in_offsets": torch.arange(0, 10, 3), "out_offsets": torch.arange(0, 7, 2)}
    torch.testing.assert_close(reference.nade(x, *arguments, order, **offsets), expected)
    uneven = reference.nade(x, *arguments, order, out_offsets=torch.tensor([0, 1, 4, 6]))
    assert uneven.shape == (2, 6) and not torch.equal(uneven, expected)
    torch.testing.assert_close(uneven[:, 0], expected[:, 0])


def test_a_row_of_in_bias_is_that_row_s_bias():
    x, in_weight, out_weight, out_bias = random(3, 5), random(5, 4), random(5, 4, seed=1), random(5)
    in_bias = random(3, 4, seed=2)
    together = reference.nade(x, in_weight, in_bias, out_weight, out_bias)
    for row in range(3):
        alone = reference.nade(x[row : row + 1], in_weight, in_bias[row], out_weight, out_bias)
        torch.testing.assert_close(together[row : row + 1], alone)


def test_gradients():
    x = random(2, 4).requires_grad_()
    arguments = [random(4, 3), random(3), random(4, 3, seed=1), random(4)]
    order, scale = torch.tensor([2, 0, 3, 1]), random(4, seed=3).requires_grad_()
    for argument in arguments:
        argument.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, scale, *arguments: reference.nade_log_prob(x, *arguments, order, activation_scale=scale),
        (x, scale, *arguments),
    )
    weight, bias, mask = (
        random(4, 3).requires_grad_(),
        random(4).requires_grad_(),
        Mask.from_degrees([1, 2, 3], range(4)),
    )
    input = random(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *tensors: reference.masked_linear(*tensors, *mask.plan), (input, weight, bias)
    )


@pytest.mark.parametrize("op", ["nade_sample", "masked_mlp_sample"])
def test_sampling_goes_on_from_a_returned_state(op):
    order = torch.tensor([3, 0, 2, 1])
    if op == "nade_sample":
        state, weights = torch.zeros(6, 3, dtype=torch.float64), (random(4, 3), random(4, 3, seed=1), random(4))

        def run(state, start, stop):
            structure = order, None, None, None, None, None, 4, "tanh", "bernoulli", 0, None
            return reference.nade_sample(state, *weights, *structure, 9, 5, start, stop, 1.0)
    else:
        state = torch.zeros(6, 7, dtype=torch.float64)
        layers = [random(3, 4), random(4, 3)], [random(3), random(4)]
        plan = [torch.tensor([1, 2, 3]), torch.tensor([0, 1, 2, 3])], [torch.tensor([0, 1, 2, 3])]

        def run(state, start, stop):
            structure = [0, -1, -1, 1, 1, -1, -1, 0], order, None, None, None, None, 4, "relu", "bernoulli", 0, None
            return reference.masked_mlp_sample(state, *layers, *plan, *structure, 9, 5, start, stop, 1.0)

    before = state.clone()
    whole, whole_log_prob, whole_state = run(state, 0, 4)
    first, first_log_prob, middle = run(state, 0, 1)
    rest, rest_log_prob, last = run(middle, 1, 4)
    assert torch.equal(state, before)
    assert torch.equal(whole, torch.cat([first, rest], 1)) and torch.equal(whole_state, last)
    torch.testing.assert_close(whole_log_prob, first_log_prob + rest_log_prob)
    assert run(state, 2, 2)[0].shape == (6, 0)
