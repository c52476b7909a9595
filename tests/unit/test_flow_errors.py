"""Flows: what is refused, with which words, and the files."""

import json

import pytest
import torch
from flow_cases import CASES, make_context, make_flow

from ar_fast import flows, models
from ar_fast.flows import MAF, Affine, Spline

BAD = [
    ({"features": 0}, "features must be an integer >= 1, got 0"),
    ({"features": 2.0}, "features must be an integer >= 1, got 2.0"),
    ({"context_features": -1}, "context_features must be an integer >= 0, got -1"),
    ({"transforms": 0}, "transforms must be an integer >= 1, got 0"),
    ({"hidden_features": ()}, r"hidden_features must be 1 to 16 positive integers, got \(\)"),
    ({"univariate": "cubic"}, "univariate must be one of affine, spline, or .* got 'cubic'"),
    ({"activation": "sin"}, "activation must be one of .* got 'sin'"),
    ({"orders": "snake"}, "orders must be 'alternating', 'random' or 5 orders, got 'snake'"),
    ({"orders": [[0, 1, 2]]}, "orders must be one for each of 5 transforms, got 1"),
    ({"orders": [[0, 0, 2]] * 5}, "order: must be a permutation of 0 ... 2, got 0 2 times"),
    ({"order_seed": -1}, r"order_seed must be an integer in 0 ... 2\^63 - 1, got -1"),
    ({"dtype": torch.bfloat16}, "dtype must be float32 or float64, .* got torch.bfloat16"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[str(own[0]) for own in BAD])
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAF(**({"features": 3} | arguments))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Affine(slope=1.0), "Affine: slope must be a number between 0 and 1, got 1.0"),
        (lambda: Spline(bins=0), "Spline: bins must be a positive integer, got 0"),
        (lambda: Spline(bound=0), "Spline: bound must be a positive finite number, got 0"),
        (lambda: Spline(slope="a"), "Spline: slope must be a number between 0 and 1, got 'a'"),
    ],
)
def test_univariate_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs():
    flow, x, context = MAF(3, 2), torch.zeros(4, 3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"MAF: x must have shape \(\*batch, 3\), got \(4, 2\)"):
        flow.log_prob(torch.zeros(4, 2), context)
    with pytest.raises(ValueError, match=r"MAF: x must be bool, integer or of the model's dtype, torch.float32, got"):
        flow.log_prob(x.double(), context)
    with pytest.raises(TypeError, match="MAF: x must be a tensor, got list"):
        flow.log_prob([0.0, 0.0, 0.0], context)
    with pytest.raises(ValueError, match=r"MAF: context must have shape \(\*batch, 2\) .* got None"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match=r"context_batch the last dimensions of the batch \(4,\), got \(3, 2\)"):
        flow.log_prob(x, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="MAF: context must be None in a model without context_features"):
        MAF(3).log_prob(x, context)
    for bad in (float("nan"), float("inf")):
        x[1, 2] = bad
        with pytest.raises(ValueError, match=rf"MAF: x must be finite, got {bad} at index \(1, 2\)"):
            flow.log_prob(x, context)
        with pytest.raises(ValueError, match="MAF: z must be finite"):
            flow.from_noise(x, context)
    flow.validate_args = False
    assert flow.log_prob(x, context).isfinite().tolist() == [True, False, True, True]


def test_sampling_arguments():
    flow = MAF(3)
    with pytest.raises(ValueError, match="MAF: n must be an integer >= 0 or a shape of those, got -1"):
        flow.sample(-1)
    with pytest.raises(ValueError, match="MAF: seed and generator must not both be given, got seed 1"):
        flow.sample(2, seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"MAF: seed must be an integer in .* got 1.5"):
        flow.rsample(2, seed=1.5)


@pytest.mark.parametrize("kind, context_features", CASES)
def test_files(kind, context_features, tmp_path):
    flow = make_flow(kind, 4, context_features, orders="random", order_seed=5)
    x, context = torch.randn(3, 4, dtype=torch.float64), make_context(context_features, 3)
    flow.save(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors"]
    other = flows.load(tmp_path / "new")
    assert repr(other) == repr(flow) and torch.equal(other.log_prob(x, context), flow.log_prob(x, context))
    other.reset_parameters()
    assert not torch.equal(other.log_prob(x, context), flow.log_prob(x, context))
    assert other.load(tmp_path / "new") is other
    assert torch.equal(other.log_prob(x, context), flow.log_prob(x, context))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inverse": True}, "load: inverse must be True as in this model, got False"),
        ({"orders": "alternating"}, "load: orders must be 'alternating' as in this model, got 'random'"),
        ({"order_seed": 6}, "load: order_seed must be 6 as in this model, got 5"),
        ({"univariate": Affine(slope=0.1)}, "load: univariate must be"),
        ({"transforms": 2}, "load: transforms must be 2 as in this model, got 3"),
    ],
)
def test_files_of_other_flows_are_refused(arguments, message, tmp_path):
    make_flow("MAF affine", 4, orders="random", order_seed=5).save(tmp_path)
    other = make_flow("MAF affine", 4, **({"orders": "random", "order_seed": 5} | arguments))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        other.load(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_files_that_are_no_flows_are_refused(tmp_path):
    models.NADE(3, 4).save(tmp_path / "nade")
    with pytest.raises(ValueError, match="load: model must be MAF, got 'NADE'"):
        flows.load(tmp_path / "nade")
    MAF(3).save(tmp_path / "maf")
    with pytest.raises(ValueError, match=r"load: model must be one of .* got 'MAF'"):
        models.load(tmp_path / "maf")
    path = tmp_path / "maf" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["univariate"]["name"] = "cubic"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"load: config.json must describe a MAF"):
        flows.load(tmp_path / "maf")
    with pytest.raises(FileNotFoundError):
        flows.load(tmp_path / "none")


def test_a_state_dict_brings_its_orders():
    flow = make_flow("MAF affine", 5, orders="random", order_seed=1)
    other = make_flow("MAF affine", 5, orders="random", order_seed=2)
    x = torch.randn(3, 5, dtype=torch.float64)
    state = flow.state_dict()
    other.load_state_dict(state)
    assert torch.equal(other.log_prob(x), flow.log_prob(x)) and torch.equal(
        other.sample(3, seed=0), flow.sample(3, seed=0)
    )
    state["transforms.0.order"] = torch.tensor([0, 0, 1, 2, 3])
    with pytest.raises(RuntimeError, match=r"transforms.0: order: must be a permutation"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*transforms.0.order"):
        other.load_state_dict({name: tensor for name, tensor in state.items() if not name.endswith("order")})
