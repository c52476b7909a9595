"""accelerate on chains of transforms: the density of adjacent ones in one call of the op."""

import grids

grids.skip_module_without("zuko and nflows", "zuko", "nflows")

import copy  # noqa: E402

import accelerate_cases  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import zuko  # noqa: E402
from nflows import transforms  # noqa: E402
from nflows.transforms import autoregressive  # noqa: E402

import ar_fast  # noqa: E402
from ar_fast import functional  # noqa: E402


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    accelerate_cases.measured_as_faster(monkeypatch)


def affine(variables=5, context=3, hidden=20, **options):
    arguments = {"use_residual_blocks": False, "activation": torch.tanh, **options}
    return autoregressive.MaskedAffineAutoregressiveTransform(
        variables, hidden, context or None, num_blocks=2, **arguments
    )


def spline(context=3, tails="linear"):
    options = {"num_bins": 4, "tails": tails, "tail_bound": 3.0, "num_blocks": 1}
    return autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(5, 20, context or None, **options)


def first():
    return transforms.PointwiseAffineTransform(0.5, 1.5)


def nflows_chain(make=affine, count=3, context=3, permutations=True):
    parts = [first()]
    for _ in range(count):
        parts += [make(context=context), *([transforms.RandomPermutation(5)] if permutations else [])]
    return transforms.CompositeTransform(parts)


def zuko_chain(kind=zuko.flows.MAF, context=3, leading=False, **options):
    flow = kind(5, context, transforms=3, hidden_features=(20, 20), **options)
    if leading:
        own = zuko.lazy.UnconditionalTransform(
            zuko.transforms.MonotonicAffineTransform, torch.zeros(5), torch.full((5,), 0.3), buffer=True
        )
        flow.transform = zuko.lazy.LazyComposedTransform(own, *flow.transform.transforms)
    return flow.transform


def evaluate(chain, x, context):
    if isinstance(chain, transforms.CompositeTransform):
        return chain(x, context)
    return chain(context).call_and_ladj(x)


CHAINS = {
    "affine": nflows_chain,
    "affine, no permutations": lambda: nflows_chain(permutations=False),
    "affine, no context": lambda: nflows_chain(context=0),
    "affine, residual": lambda: nflows_chain(lambda **own: affine(use_residual_blocks=True, **own)),
    "reversed": lambda: transforms.CompositeTransform([affine(), transforms.ReversePermutation(5), affine()]),
    "spline": lambda: nflows_chain(spline),
    "zuko MAF": zuko_chain,
    "zuko MAF, no context": lambda: zuko_chain(context=0),
    "zuko MAF, standardized": lambda: zuko_chain(leading=True, activation=torch.nn.Tanh),
    "zuko MAF, residual": lambda: zuko_chain(residual=True, activation=torch.nn.ELU),
    "zuko NSF": lambda: zuko_chain(zuko.flows.NSF),
}


def inputs(name, rows=7, dtype=torch.float32):
    return torch.randn(rows, 5, dtype=dtype), None if "no context" in name else torch.randn(rows, 3, dtype=dtype)


def calls_of(monkeypatch, call):
    """How many transforms each call of the op ran, by the permutations or their absence that it was given."""
    used, own = [], functional.call

    def counting(name, *arguments):
        if name == "masked_mlp_flow":
            used.append(len(arguments[6]))
        return own(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(functional, "call", counting)
        call()
    return used


@pytest.mark.parametrize("name", CHAINS)
def test_values_and_gradients_in_one_call(name, monkeypatch):
    chain = CHAINS[name]().double()
    x, context = inputs(name, dtype=torch.float64)

    def both(module, x, context):
        y, log_det = evaluate(module, x, context)
        return torch.cat([y, log_det[:, None]], 1)

    keys, before = list(chain.state_dict()), accelerate_cases.states(chain)
    expected, grads = both(chain, x, context), accelerate_cases.gradients(both, chain, x, context)
    fast = ar_fast.accelerate(chain)
    assert "one op for" in str(ar_fast.acceleration_report(fast))
    count = 2 if name == "reversed" else 3
    assert calls_of(monkeypatch, lambda: evaluate(fast, x, context)) == [count]
    torch.testing.assert_close(both(fast, x, context), expected, rtol=1e-9, atol=1e-9)
    for own, other in zip(accelerate_cases.gradients(both, fast, x, context), grads, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-8)
    assert list(chain.state_dict()) == keys
    assert torch.equal(both(ar_fast.restore(fast), x, context), expected)
    assert {part: list(own) for part, own in accelerate_cases.states(chain).items()} == {
        part: list(own) for part, own in before.items()
    }


@pytest.mark.parametrize("shapes", [((4, 7, 5), (7, 3)), ((4, 7, 5), (3,)), ((7, 5), (3,)), ((2, 4, 7, 5), (4, 7, 3))])
def test_batch_shapes_of_values_and_context(shapes, monkeypatch):
    chain = zuko_chain(leading=True)
    x, context = (torch.randn(shape) for shape in shapes)
    expected = evaluate(chain, x, context)
    ar_fast.accelerate(chain)
    found = []
    used = calls_of(monkeypatch, lambda: found.extend(evaluate(chain, x, context)))
    assert used == [3]
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        accelerate_cases.assert_close(own, other, 10)


def test_transforms_of_other_forms_cut_the_chain(monkeypatch):
    parts = [
        affine(),
        affine(),
        first(),
        spline(),
        transforms.RandomPermutation(5),
        spline(),
        affine(hidden=12),
        affine(),
    ]
    chain = transforms.CompositeTransform(parts)
    x, context = inputs("")
    expected = chain(x, context)
    ar_fast.accelerate(chain)
    # The widths of layers may differ, what they are may not.
    assert calls_of(monkeypatch, lambda: chain(x, context)) == [2, 2, 2]
    for own, other in zip(chain(x, context), expected, strict=True):
        accelerate_cases.assert_close(own, other, 10)


def test_two_permutations_after_each_other(monkeypatch):
    parts = [affine(), transforms.RandomPermutation(5), transforms.ReversePermutation(5), affine(), affine()]
    chain = transforms.CompositeTransform(parts)
    x, context = inputs("")
    expected = chain(x, context)
    ar_fast.accelerate(chain)
    assert sorted(calls_of(monkeypatch, lambda: chain(x, context))) == [1, 2]
    for own, other in zip(chain(x, context), expected, strict=True):
        accelerate_cases.assert_close(own, other, 10)


def test_a_single_transform_and_splines_with_a_domain_are_no_chain():
    for chain in (
        transforms.CompositeTransform([affine(), transforms.RandomPermutation(5), first()]),
        transforms.CompositeTransform([spline(tails=None), spline(tails=None)]),
    ):
        report = str(ar_fast.acceleration_report(ar_fast.accelerate(chain)))
        assert "one op for network" in report and "transforms with their networks" not in report


@pytest.mark.parametrize("part", ["network", "transform", "permutation"])
def test_hooks_run_as_often_as_before(part, monkeypatch):
    chain = ar_fast.accelerate(nflows_chain())
    x, context = inputs("")
    child = chain._transforms[2 if part == "permutation" else 1]
    seen = []
    hooked = child.autoregressive_net.final_layer if part == "network" else child
    handle = hooked.register_forward_hook(lambda *arguments: seen.append(1))
    assert 3 not in calls_of(monkeypatch, lambda: chain(x, context)) and seen == [1]
    handle.remove()
    assert calls_of(monkeypatch, lambda: chain(x, context)) == [3] and seen == [1]


def test_a_replaced_child_and_a_replaced_permutation_are_used(monkeypatch):
    chain, x, context = nflows_chain(), *inputs("")
    ar_fast.accelerate(chain)
    chain._transforms[2]._permutation.copy_(torch.tensor([4, 3, 2, 1, 0]))
    assert calls_of(monkeypatch, lambda: chain(x, context)) == [3]
    expected = ar_fast.restore(copy.deepcopy(chain))(x, context)
    for own, other in zip(chain(x, context), expected, strict=True):
        accelerate_cases.assert_close(own, other, 10)
    chain._transforms[3] = first()
    expected = ar_fast.restore(copy.deepcopy(chain))(x, context)
    assert 3 not in calls_of(monkeypatch, lambda: chain(x, context))
    for own, other in zip(chain(x, context), expected, strict=True):
        accelerate_cases.assert_close(own, other, 10)


def test_another_network_is_used_and_a_copy_with_it_runs_as_the_original(monkeypatch):
    """Of one transform alone as in a chain, in both directions; also a network that only got more layers."""
    for change in ("network", "block"):
        chain, other, (x, context) = nflows_chain(), affine(), inputs("")
        ar_fast.accelerate(chain)
        if change == "network":
            chain._transforms[1].autoregressive_net = other.autoregressive_net
        else:
            chain._transforms[1].autoregressive_net.blocks.append(other.autoregressive_net.blocks[0])
        copied = copy.deepcopy(chain)
        for own in (chain, copied):
            expected = ar_fast.restore(copy.deepcopy(own))
            for found, theirs in (
                (own(x, context), expected(x, context)),
                (own.inverse(x, context), expected.inverse(x, context)),
                (own._transforms[1](x, context), expected._transforms[1](x, context)),
                (own._transforms[1].inverse(x, context), expected._transforms[1].inverse(x, context)),
            ):
                for mine, other_one in zip(found, theirs, strict=True):
                    accelerate_cases.assert_close(mine, other_one, 30)


@pytest.mark.parametrize("make", [nflows_chain, zuko_chain])
def test_a_copy_uses_its_own_parameters(make, monkeypatch):
    chain, (x, context) = ar_fast.accelerate(make()), inputs("")
    expected = evaluate(chain, x, context)
    other = accelerate_cases.perturb(copy.deepcopy(chain))
    assert calls_of(monkeypatch, lambda: evaluate(other, x, context)) == [3]
    changed = evaluate(other, x, context)
    assert not torch.allclose(changed[0], expected[0])
    for own, theirs in zip(evaluate(chain, x, context), expected, strict=True):
        assert torch.equal(own, theirs)
    for own, theirs in zip(changed, evaluate(ar_fast.restore(other), x, context), strict=True):
        accelerate_cases.assert_close(own, theirs, 10)


def test_another_dtype_and_autocast_run_as_before(monkeypatch):
    chain, (x, context) = ar_fast.accelerate(nflows_chain()), inputs("")
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_of(monkeypatch, lambda: chain(x, context)) == []
    with pytest.raises(RuntimeError, match="dtype"):
        chain(x.double(), context.double())


@pytest.mark.parametrize("hooked", [False, True])
def test_a_transform_that_is_not_kept(hooked):
    """Only the method of the transform lives when it runs; with a hook the original runs."""
    for chain in (zuko_chain(), zuko_chain().transforms[0]):
        x, context = inputs("")
        expected = chain(context).call_and_ladj(x)
        ar_fast.accelerate(chain)
        if hooked:
            next(part for part in chain.modules() if hasattr(part, "mask")).register_forward_hook(lambda *given: None)
        for own, other in zip(chain(context).call_and_ladj(x), expected, strict=True):
            accelerate_cases.assert_close(own, other, 10)


def test_a_dropout_that_acts_runs_as_before(monkeypatch):
    chain, (x, context) = nflows_chain(lambda **own: affine(dropout_probability=0.5, **own)), inputs("")
    ar_fast.accelerate(chain.eval())
    assert calls_of(monkeypatch, lambda: chain(x, context)) == [3]
    chain.train()
    assert calls_of(monkeypatch, lambda: chain(x, context)) == []
