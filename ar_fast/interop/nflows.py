"""nflows and copies of it: transforms with an ``autoregressive_net``, whose inverse is a loop of passes."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..conditioners.conditioner import Add, AddContext, Conditioner, Elementwise, GateByContext, Masked, Unsuitable
from ..conditioners.stepping import distinct_rows
from .attaching import shallow
from .chains import Chain
from .density import Evaluation
from .fused import Head
from .inverses import Inverse, Passes, agree
from .masked_layers import is_masked
from .plain import Reading, add_function, add_normalized

__all__ = ["CHAIN", "KIND", "Nflows", "is_chain", "matches"]


def matches(module: Any) -> bool:
    names = "autoregressive_net", "_elementwise_forward", "_elementwise_inverse", "inverse"
    return all(hasattr(module, name) for name in names) and isinstance(module.autoregressive_net, nn.Module)


def is_chain(module: Any) -> bool:
    return hasattr(module, "_cascade") and isinstance(getattr(module, "_transforms", None), nn.ModuleList)


def is_made(network: Any) -> bool:
    return all(hasattr(network, name) for name in ("initial_layer", "blocks", "final_layer"))


def read_made(network: Any, parameters: int | None, gated: bool) -> Iterator[Conditioner]:
    """What a MADE may be. With ``gated`` the context enters as in normflows (added to the first layer, and a gate at
    the end of each residual block), else as in nflows (through the activation, and added within each block)."""
    first = network.initial_layer.weight.shape[1]
    outputs = network.final_layer.weight.shape[0]
    if isinstance(getattr(network, "preprocessing", None), nn.Module):
        raise Unsuitable(f"its inputs pass through {type(network.preprocessing).__name__} first")
    context = getattr(network, "context_layer", None)
    for activated in (True, False):
        reading = Reading([Masked(0, "initial_layer")])
        if context is not None:
            function = None if gated else "activation"
            reading.add(AddContext(reading.last, "context_layer", function))
        residual = [hasattr(block, "linear_layers") for block in network.blocks]
        if activated and not any(residual) and hasattr(network, "activation"):
            add_function(reading, "activation", network.activation)
        elif activated:
            continue
        for index, block in enumerate(network.blocks):
            read_block(reading, f"blocks.{index}.", block, gated)
        reading.add(Masked(reading.last, "final_layer"))
        yield Conditioner(
            tuple(reading.steps),
            first,
            outputs // first if parameters is None else parameters,
            context_features=0 if context is None else context.weight.shape[1],
            inactive=tuple(reading.inactive),
        )


def read_block(reading: Reading, path: str, block: Any, gated: bool) -> None:
    context = getattr(block, "context_layer", None)
    if hasattr(block, "linear_layers"):
        before = reading.last
        norms = block.batch_norm_layers if getattr(block, "use_batch_norm", False) else (None, None)
        for index, norm in enumerate(norms):
            if norm is not None:
                add_normalized(reading, f"{path}batch_norm_layers.{index}", norm)
            add_function(reading, f"{path}activation", block.activation)
            reading.add(Masked(reading.last, f"{path}linear_layers.{index}"))
            if index == 0 and context is not None and not gated:
                reading.add(AddContext(reading.last, f"{path}context_layer"))
        if context is not None and gated:
            reading.add(GateByContext(reading.last, f"{path}context_layer"))
        reading.add(Add(reading.last, before))
    elif hasattr(block, "linear") and is_masked(block.linear):
        if getattr(block, "batch_norm", None) is not None:
            add_normalized(reading, f"{path}batch_norm", block.batch_norm)
        reading.add(Masked(reading.last, f"{path}linear"))
        reading.add(Elementwise(reading.last, f"{path}activation"))
    else:
        raise Unsuitable(f"{path[:-1]}, {type(block).__name__}, is a block of no known form")
    if hasattr(block, "dropout"):
        reading.inactive.append(f"{path}dropout")


class Nflows:
    """Its ``inverse`` takes the values and the context and returns the result and log|det|."""

    library = "nflows"
    network = "autoregressive_net"
    replaced = "inverse"
    evaluates = "forward"
    stops_early = True
    gated = False

    def conditioners(self, module: Any, network: Any) -> Iterator[Conditioner]:
        if not is_made(network):
            raise Unsuitable(f"its conditioner, {type(network).__name__}, is of no known form")
        yield from read_made(network, None, self.gated)
        yield from read_made(network, None, not self.gated)

    def raw(self, network: Any, x: Tensor, context: Tensor | None) -> Tensor:
        return network(x, context)

    def univariate(self, module: Any) -> Callable[[Tensor, Tensor], Tensor]:
        def inverse(y: Tensor, parameters: Tensor) -> Tensor:
            own = module
            if getattr(module, "features", y.shape[1]) != y.shape[1]:
                own = shallow(module, features=y.shape[1])
            # The splines write into the parameters.
            return own._elementwise_inverse(y, parameters.clone().flatten(1))[0]

        return inverse

    def heads(self, module: Any) -> Iterator[Head]:
        if hasattr(module, "_unconstrained_scale_and_shift"):
            # The scale comes first. The constants of the sigmoid stand in the code only.
            least = float(getattr(module, "_epsilon", 1e-3))
            yield Head("affine_softplus", (least,), (1, 0))
            yield Head("affine_sigmoid", (2.0, least), (1, 0))
            return
        names = "num_bins", "tails", "tail_bound", "min_bin_width", "min_bin_height", "min_derivative"
        if all(hasattr(module, name) for name in names) and module.tails in (None, "linear"):
            bound = float(module.tail_bound)
            low, high = (0.0, 1.0) if module.tails is None else (-bound, bound)
            hidden = getattr(module.autoregressive_net, "hidden_features", None)
            widths = module.min_bin_width, module.min_bin_height, module.min_derivative
            constants = low, high, *widths, 1.0 if hidden is None else hidden**-0.5
            yield Head("spline_softplus", constants, domain=(low, high) if module.tails is None else None)

    def parametric(self, module: Any) -> bool:
        return any("autoregressive_net" not in name for name, _ in module.named_parameters())

    def passes(self, module: Any) -> int | None:
        return None

    def one_pass(self, module: Any, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        return module._elementwise_inverse(y, module.autoregressive_net(x, context))[0]

    def original(self, module: Any, y: Tensor, context: Tensor | None) -> Tensor:
        return type(module).inverse(module, y, context)[0]

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return type(module).forward(module, x, context)

    def attributes(self, module: Any, inverse: Inverse | None, density: Evaluation | None) -> dict[str, Any]:
        def inverted(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            tensors = None
            if inputs.dim() == 2 and (context is None or context.dim() == 2):
                tensors = inverse.usable(inputs, context)
            if tensors is None:
                return type(self).inverse(self, inputs, context)
            x, log_det = inverse(inputs, None if context is None else distinct_rows(context), tensors)
            if log_det is not None:
                return x, log_det
            # One pass from the result gives it again, now with log|det|.
            _, log_det = self._elementwise_inverse(inputs, self.autoregressive_net(x, context))
            return x, log_det

        passes = Passes(module)

        def until_equal(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            def short() -> tuple[Tensor, Tensor]:
                x, log_det = torch.zeros_like(inputs), None
                for _ in range(math.prod(inputs.shape[1:])):
                    before = x
                    x, log_det = self._elementwise_inverse(inputs, self.autoregressive_net(before, context))
                    if agree(x, before):
                        break
                return x, log_det

            x, log_det = passes(short, lambda: type(self).inverse(self, inputs, context), inputs, context)
            return x, log_det

        replacing = until_equal if inverse is None else inverted
        replacing.__name__ = "inverse"
        own = {"inverse": types.MethodType(replacing, module)}
        if density is not None:

            def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
                found = density(inputs, context)
                return type(self).forward(self, inputs, context) if found is None else found

            own["forward"] = types.MethodType(forward, module)
        return own


class NflowsChain:
    """CompositeTransform, which applies its transforms and adds up what they return as log|det|."""

    library = "nflows"
    evaluates = "forward"

    def children(self, module: Any) -> list[nn.Module]:
        return list(module._transforms._modules.values())

    def order(self, child: Any) -> Callable[[], Tensor] | None:
        if not isinstance(child._buffers.get("_permutation"), Tensor) or getattr(child, "_dim", None) != 1:
            return None
        return lambda: child._buffers["_permutation"]

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return type(module).forward(module, x, context)

    def evaluate(self, module: Any, chain: Chain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        return chain(x, context, lambda index, x: chain.children[index](x, context))

    def attributes(self, module: Any, chain: Chain) -> dict[str, Any]:
        def forward(self: Any, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            found = CHAIN.evaluate(self, chain, inputs, context)
            return type(self).forward(self, inputs, context) if found is None else found

        return {"forward": types.MethodType(forward, module)}


KIND = Nflows()
CHAIN = NflowsChain()
