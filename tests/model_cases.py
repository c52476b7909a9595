"""The models that the tests of the model interface run over."""

import pytest
import torch

from ar_fast import _library, models, orderings

KINDS = ["NADE", "MADE", "MADE-residual", "MADE-masks", "FVSBN", "ARMLP", "DeepNADE", "OffsetNADE", "RNN", "RNN-LSTM"]
# Of those, the ones that condition on a prefix of their order only.
FIXED_ORDER_KINDS = [kind for kind in KINDS if kind != "DeepNADE"]
# Those whose weights are shared between variables, so that all must have as many parameters.
SHARED_KINDS = ("OffsetNADE", "RNN", "RNN-LSTM")
CASES = [pytest.param(kind, context, id=f"{kind}{'-context' * bool(context)}") for kind in KINDS for context in (0, 3)]

bit_for_bit = pytest.mark.skipif(_library.backend == "reference", reason="the references sample through BLAS")


def make_model(kind, event_shape, context_features=0, *, device="cpu", dtype=torch.float64, order="random", **options):
    """A small model whose conditionals are far from uniform, and depend on each variable before and on the context."""
    if order == "random":
        order = orderings.random(event_shape, seed=7)
    options |= {"order": order, "context_features": context_features, "device": device, "dtype": dtype}
    if kind == "NADE":
        model = models.NADE(event_shape, hidden_features=13, **options)
    elif kind == "ARMLP":
        model = models.ARMLP(event_shape, hidden_features=5, **options)
    elif kind == "FVSBN":
        model = models.FVSBN(event_shape, **options)
    elif kind == "DeepNADE":
        options = {"activation": "tanh"} | options
        model = models.DeepNADE(event_shape, hidden_features=[13], **options)
    elif kind == "OffsetNADE":
        # A window over all that is before, and output weights of each variable's own: nothing is left out or shared.
        shape = (event_shape,) if isinstance(event_shape, int) else event_shape
        window = max(1, shape[0] - 1) if len(shape) == 1 else shape[-2:]
        options = {"activation": "tanh", "shared_output": False} | options
        model = models.OffsetNADE(event_shape, hidden_features=13, window=window, **options)
    elif kind in ("RNN", "RNN-LSTM"):
        options |= {"cell": "lstm", "num_layers": 2} if kind == "RNN-LSTM" else {}
        model = models.RNN(event_shape, hidden_features=9, **options)
    else:
        # 37 units in a layer and no relu: every path between an input and a later output carries something.
        options = {"activation": "tanh"} | options
        if kind == "MADE-residual":
            options = {"direct": True, "residual": True} | options
        if kind == "MADE-masks":
            options = {"degrees": "random", "degree_seed": 3, "n_masks": 3, "direct": True} | options
        hidden_features = [31, 31, 31] if kind == "MADE-residual" else [37, 29]
        model = models.MADE(event_shape, hidden_features, **options)
        if kind == "MADE-masks":
            model.use_mask(1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            # Sums of several paths are larger: less each, or some events are too rare for a chi-square test.
            gain = 0.9 if kind == "MADE-residual" else 1.5
            scale = gain / parameter.shape[-1] ** 0.5 if kind.startswith("MADE") and parameter.dim() == 2 else 0.8
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def make_context(context_features, *batch, device="cpu", dtype=torch.float64):
    if context_features == 0:
        return None
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*batch, context_features, generator=generator).to(device, dtype)


def all_binary(variables, device="cpu"):
    """All 2^D binary vectors, the last variable fastest."""
    return torch.cartesian_prod(*[torch.tensor([0, 1])] * variables).to(device)


def random_binary(*shape, device="cpu", dtype=torch.float64, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).lt(0.5).to(device, dtype)
