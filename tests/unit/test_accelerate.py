"""accelerate and restore on plain masked layers: what stays as it was, and what is refused."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import accelerate_cases
import pytest
import torch
from accelerate_cases import PlainMaskedLinear, plain_network
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import ar_fast
from ar_fast.interop import masked_layers
from ar_fast.interop.attaching import attached
from ar_fast.interop.crossover import Crossover

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    accelerate_cases.measured_as_faster(monkeypatch)


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the op."""
    count, own = [], masked_layers._masked_linear

    def call(*arguments):
        count.append("masked_linear")
        return own(*arguments)

    monkeypatch.setattr(masked_layers, "_masked_linear", call)
    return count


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_masks_of_both_orientations(transposed, bias, calls):
    mask = torch.rand(7, 4) < 0.6
    layer = PlainMaskedLinear(mask, bias=bias, transposed=transposed)
    x = torch.randn(3, 2, 4)
    expected = layer(x)
    ar_fast.accelerate(layer)
    calls.clear()
    accelerate_cases.assert_close(layer(x), expected)
    assert calls == ["masked_linear"]


def test_square_transposed_masks_are_refused():
    """Nothing about them tells the orientation but the output."""
    layer = PlainMaskedLinear(torch.ones(5, 5).tril() > 0, transposed=True)
    with pytest.raises(ValueError, match="its output differs"):
        ar_fast.accelerate(layer)
    symmetric = PlainMaskedLinear(torch.ones(5, 5) > 0, transposed=True)
    assert attached(ar_fast.accelerate(symmetric))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype, calls):
    network = plain_network().to(dtype)
    x = torch.randn(6, 5).to(dtype)
    expected = network(x)
    ar_fast.accelerate(network)
    calls.clear()
    torch.testing.assert_close(network(x), expected)
    assert calls == ["masked_linear"] * 3


def test_gradients_and_masked_weights():
    network = plain_network()
    x = torch.randn(6, 5)
    original = accelerate_cases.gradients(lambda net, x, _: net(x), network, x, None)
    ar_fast.accelerate(network)
    found = accelerate_cases.gradients(lambda net, x, _: net(x), network, x, None)
    for own, other in zip(found, original, strict=True):
        accelerate_cases.assert_close(own, other)
    assert bool((found[1][network[0].mask == 0] == 0).all())


def test_what_stays_as_it_was():
    network = plain_network()
    before, parameters = accelerate_cases.states(network), list(network.parameters())
    keys = list(network.state_dict())
    ar_fast.accelerate(network)
    layer = network[0]
    assert type(layer) is PlainMaskedLinear and layer.forward.__name__ == "forward"
    assert layer.forward.__self__ is layer
    assert all(own is other for own, other in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == keys
    assert repr(network) == repr(plain_network())
    ar_fast.restore(network)
    after = accelerate_cases.states(network)
    assert [list(state) for state in after.values()] == [list(state) for state in before.values()]
    assert all(after[name][key] is value for name, state in before.items() for key, value in state.items())


def test_hooks_run():
    network = plain_network()
    seen = []
    network[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    network[2].register_forward_hook(lambda module, inputs, output: output + 1)
    network[4].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(1))
    x = torch.randn(6, 5)
    expected = network(x)
    ar_fast.accelerate(network)
    accelerate_cases.assert_close(network(x), expected)
    network(x).sum().backward()
    assert seen == [1]


def test_checking_a_module_runs_no_hook_and_draws_no_number():
    network = plain_network()
    network[0].register_forward_hook(lambda *arguments: pytest.fail("the hook ran"))
    state = torch.get_rng_state()
    ar_fast.accelerate(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_copies_use_their_own_parameters():
    network = ar_fast.accelerate(plain_network())
    x = torch.randn(6, 5)
    expected = network(x)
    averaged = AveragedModel(network)
    deep = copy.deepcopy(network)
    for other in (deep, averaged.module):
        assert attached(other[0]) and other[0].forward.__self__ is other[0]
        accelerate_cases.perturb(other)
        assert torch.equal(network(x), expected) and not torch.equal(other(x), expected)
        found = other(x)
        accelerate_cases.assert_close(found, ar_fast.restore(other)(x))
    averaged.update_parameters(network)
    shallow = copy.copy(network[0])
    assert not attached(shallow) and "forward" not in shallow.__dict__
    replica = network[0]._replicate_for_data_parallel()
    assert not attached(replica) and "forward" not in replica.__dict__


def test_functional_call_assigned_and_replaced_parameters():
    network, other = ar_fast.accelerate(plain_network()), plain_network()
    x = torch.randn(6, 5)
    expected = other(x)
    own = network(x)
    accelerate_cases.assert_close(torch.func.functional_call(network, dict(other.named_parameters()), x), expected)
    assert torch.equal(network(x), own)
    network[0].weight = nn.Parameter(other[0].weight.detach().clone())
    network[0].bias = None
    other[0].bias = None
    network.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)
    accelerate_cases.assert_close(network(x), other(x))


def test_transforms_of_torch_func_and_compilers_see_the_original(calls):
    network = ar_fast.accelerate(plain_network())
    x = torch.randn(6, 5)
    expected = network(x)
    calls.clear()
    accelerate_cases.assert_close(torch.vmap(network)(x), expected)
    torch.func.jvp(network, (x,), (x,))
    accelerate_cases.assert_close(torch.jit.trace(network, x, check_trace=False)(x), expected)
    accelerate_cases.assert_close(torch.compile(network, backend="eager", fullgraph=True)(x), expected)
    assert calls == []


@pytest.mark.parametrize("how", ["copy_", "set_mask", "load_state_dict", "replaced"])
def test_another_mask(how):
    layer = ar_fast.accelerate(PlainMaskedLinear(torch.rand(6, 4) < 0.5))
    x = torch.randn(3, 4)
    layer(x)
    mask = torch.rand(6, 4) < 0.5
    if how == "copy_":
        layer.mask.copy_(mask)
    elif how == "set_mask":
        layer.set_mask(mask)
    elif how == "load_state_dict":
        layer.load_state_dict({**layer.state_dict(), "mask": mask.float()})
    else:
        layer.mask = mask.float()
    found = layer(x)
    accelerate_cases.assert_close(found, ar_fast.restore(layer)(x))


def test_a_mask_that_becomes_other_numbers():
    layer = ar_fast.accelerate(PlainMaskedLinear(torch.rand(6, 4) < 0.5))
    layer.mask.mul_(0.5)
    x = torch.randn(3, 4)
    found = layer(x)
    assert torch.equal(found, ar_fast.restore(layer)(x))


def test_autocast_gives_the_dtype_of_a_linear_layer():
    layer = ar_fast.accelerate(PlainMaskedLinear(torch.rand(6, 4) < 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 4)).dtype == torch.bfloat16


def test_parametrized_weights():
    network = plain_network()
    parametrizations.weight_norm(network[0])
    x = torch.randn(3, 5)
    expected = network(x)
    ar_fast.accelerate(network)
    accelerate_cases.assert_close(network(x), expected)
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    other = accelerate_cases.perturb(copy.deepcopy(network))
    found = other(x)
    assert attached(other[0]) and not torch.allclose(found, expected)
    accelerate_cases.assert_close(found, ar_fast.restore(other)(x))
    assert "forward" not in other[0].__dict__


def test_twice_is_a_no_op_that_says_so():
    network = ar_fast.accelerate(plain_network())
    forward = network[0].forward
    with pytest.warns(UserWarning, match="accelerated already"):
        assert ar_fast.accelerate(network) is network
    assert network[0].forward is forward
    outer = nn.Sequential(network, PlainMaskedLinear(torch.ones(10, 10) > 0))
    ar_fast.accelerate(outer)
    assert network[0].forward is forward and attached(outer[1])
    names = {part.name for part in ar_fast.acceleration_report(outer).parts}
    assert names == {"0.0", "0.2", "0.4", "1"}


def test_a_scope_ends_as_it_began():
    network = plain_network()
    with ar_fast.accelerated(network) as own:
        assert own is network and attached(network[0])
    assert not any(attached(part) for part in network.modules())
    ar_fast.accelerate(network)
    with ar_fast.accelerated(network):
        pass
    assert attached(network[0])
    ar_fast.restore(network)
    ar_fast.accelerate(network[0])
    with ar_fast.accelerated(network):
        assert attached(network[2])
    assert attached(network[0]) and not attached(network[2])


class Doubling(PlainMaskedLinear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_refusals_name_the_reason():
    with pytest.raises(ValueError, match=r"accelerate: module must have masked linear layers .* got Linear with none$"):
        ar_fast.accelerate(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="Doubling: its output differs"):
        ar_fast.accelerate(Doubling(torch.rand(4, 3) < 0.5))
    network = nn.Sequential(*plain_network(), Doubling(torch.ones(10, 10) > 0))
    with pytest.raises(ValueError, match="under strict every part must be accelerated"):
        ar_fast.accelerate(network, strict=True)
    assert not any(attached(part) for part in network.modules())
    (left,) = ar_fast.acceleration_report(ar_fast.accelerate(network)).left
    assert left.name == "5" and left.kind == "Doubling"
    x = torch.randn(3, 5)
    accelerate_cases.assert_close(network(x), ar_fast.restore(network)(x))
    with pytest.raises(ValueError, match="acceleration_report: module must be one"):
        ar_fast.acceleration_report(network)


def test_layers_that_cannot_be_replaced():
    layer = PlainMaskedLinear(torch.rand(4, 3) < 0.5)
    layer.forward = lambda input: input
    scaled = PlainMaskedLinear(torch.rand(4, 3) < 0.5)
    scaled.mask.mul_(0.5)
    halves = PlainMaskedLinear(torch.rand(4, 3) < 0.5).to(torch.complex64)
    meta = PlainMaskedLinear(torch.rand(4, 3) < 0.5).to("meta")
    for module, reason in (
        (layer, "replaced on the object"),
        (scaled, "other numbers than zeros and ones"),
        (halves, "got torch.complex64"),
        (meta, "meta device"),
    ):
        with pytest.raises(ValueError, match=reason):
            ar_fast.accelerate(module)


def test_the_report_says_what_runs():
    network = nn.Sequential(*plain_network(), Doubling(torch.ones(10, 10) > 0))
    text = str(ar_fast.acceleration_report(ar_fast.accelerate(network)))
    assert text.startswith("3 parts accelerated, 1 left as they were")
    assert (
        "0: PlainMaskedLinear.forward [plain]: ar_fast masked_linear (speed-up of the forward pass: B 1 9.00x" in text
    )
    assert "5: Doubling left: its output differs" in text
    assert "Pickles and torch.save hold the original" in text


def test_pickles_hold_the_original_and_open_without_ar_fast(tmp_path):
    network = ar_fast.accelerate(plain_network())
    x = torch.randn(6, 5)
    torch.save(network, tmp_path / "whole.pt")
    (tmp_path / "whole.pickle").write_bytes(pickle.dumps(network))
    torch.save((x, ar_fast.restore(network)(x)), tmp_path / "expected.pt")
    script = f"""
        import sys
        sys.modules["ar_fast"] = None
        sys.path.insert(0, {str(tmp_path)!r})
        import pickle, torch
        x, expected = torch.load("expected.pt")
        for network in torch.load("whole.pt", weights_only=False), pickle.load(open("whole.pickle", "rb")):
            assert torch.equal(network(x), expected)
            for part in network.modules():
                assert not any("ar_fast" in name or name == "forward" for name in part.__dict__)
    """
    (tmp_path / "accelerate_cases.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n\n" + inspect.getsource(PlainMaskedLinear)
    )
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=tmp_path, env=_environment())
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert not attached(again[0]) and attached(ar_fast.accelerate(again)[0])


def _environment():
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_import_ar_fast_imports_no_flow_library():
    script = """
        import sys
        import ar_fast
        names = {"zuko", "nflows", "normflows", "pyro"}
        assert not (names | {"sbi"}) & set(sys.modules), names & set(sys.modules)
        ar_fast.interop.incremental, ar_fast.interop.sbi.builder
        assert not {f"ar_fast.interop.{name}" for name in names} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=TESTS.parent)


def test_the_original_runs_at_the_batch_sizes_where_it_is_faster(monkeypatch, calls):
    times = iter([Crossover((1, 64), (2.0, 0.5)), Crossover((1, 64), (0.5, 2.0))])
    monkeypatch.setattr(masked_layers, "measured", lambda *arguments, **named: next(times))
    layer = ar_fast.accelerate(PlainMaskedLinear(torch.rand(6, 4) < 0.5))
    for rows, training, runs in ((1, False, True), (63, False, True), (64, False, False), (1, True, False),
                                 (63, True, False), (64, True, True), (1000, True, True)):  # fmt: skip
        calls.clear()
        with torch.set_grad_enabled(training):
            layer(torch.randn(rows, 4))
        assert bool(calls) == runs, (rows, training)


def test_a_layer_whose_own_path_is_always_faster_is_left_alone(monkeypatch):
    monkeypatch.setattr(masked_layers, "measured", lambda *arguments, **named: Crossover((1,), (0.5,)))
    network = plain_network()
    ar_fast.accelerate(network, strict=True)
    assert not any("forward" in part.__dict__ for part in network)
    assert "its own path, since ar_fast's would save too little" in str(ar_fast.acceleration_report(network))


def test_only_modules_and_posteriors_are_taken():
    for call in (ar_fast.accelerate, ar_fast.restore, ar_fast.acceleration_report):
        with pytest.raises(TypeError, match=r"module must be a torch.nn.Module or a posterior of sbi, got int"):
            call(3)
