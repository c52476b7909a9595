"""Chains of autoregressive transforms and permutations: the density of adjacent ones in one call of the op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from ..conditioners.conditioner import Conditioner, Unsuitable
from .checks import probe, random, randomized, trying
from .crossover import Crossover
from .density import Densities, Density, check_density, crossovers_of_density
from .fused import Head
from .inverses import hooks_of
from .report import Part
from .transforms import TransformPlan, modules_in, steps_of

__all__ = ["Chain", "ChainKind", "ChainPlan", "read_chain"]

#: How a run of transforms is evaluated: (the run, x, context) -> y and log|det|, or None where the original must run.
Evaluate = Callable[[Densities, Tensor, Tensor | None], tuple[Tensor, Tensor] | None]


class ChainKind(Protocol):
    """What a library's file says about its chains.

    Attributes:
        library: its name.
        evaluates: what the report calls the method that is replaced.
    """

    library: str
    evaluates: str

    def children(self, module: Any) -> Sequence[nn.Module]:
        """The transforms in the order of the density."""

    def order(self, child: Any) -> Callable[[], Tensor] | None:
        """What gives the permutation y = x[:, order()] that a child is; None for any other child."""

    def evaluated(self, module: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The original's direction of the density: (x (B, D), context (B, C)) -> (y, log|det dy/dx|)."""

    def evaluate(self, module: Any, chain: Chain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The same by the chain; None where the original must run."""

    def attributes(self, module: Any, chain: Chain) -> dict[str, Any]:
        """The attributes through which the module runs the chain."""


@dataclass(frozen=True)
class Link:
    """An autoregressive transform of a chain: where its conditioner is, and what was read."""

    network: str
    conditioner: Conditioner
    head: Head


class Chain:
    """The density of one chain object: runs of transforms by the op, and what stands between them alone.

    Args:
        kind: the library's part of it.
        module: the chain.
        links: for each child what was read; None for any other child.
        crossovers: where the runs are faster than the original, without and with gradients; None is everywhere.

    Raises:
        Unsuitable: if there are no two adjacent transforms that can run together.
    """

    def __init__(
        self,
        kind: ChainKind,
        module: Any,
        links: Sequence[Link | None],
        crossovers: tuple[Crossover, Crossover] | None = None,
    ) -> None:
        self.children = list(kind.children(module))
        self._kind, self._module = kind, module
        # Where a run starts and stops.
        self.runs: dict[int, tuple[int, Densities]] = {}
        start = 0
        transforms: list[Density] = []
        orders: dict[int, Any] = {}
        for index, (child, link) in enumerate(zip(self.children, links, strict=True)):
            order = kind.order(child)
            density = None if link is None else Density(steps_of(child, link.network, link.conditioner), link.head)
            if density is not None and transforms and density.form == transforms[-1].form:
                transforms.append(density)
            elif order is not None and transforms and len(transforms) - 1 not in orders:
                orders[len(transforms) - 1] = order
            else:
                self._add(start, index, transforms, orders, crossovers)
                start, transforms, orders = index, [] if density is None else [density], {}
        self._add(start, len(self.children), transforms, orders, crossovers)
        if not self.runs:
            raise Unsuitable("it has no two transforms that can run together")
        fused = [self.children[index] for start, (stop, _) in self.runs.items() for index in range(start, stop)]
        # The runs look at those of the networks themselves.
        seen = {id(hooks) for _, run in self.runs.values() for hooks in run.hooks}
        self._hooks = [hooks for child in fused for hooks in hooks_of(child) if id(hooks) not in seen]

    def _add(
        self,
        start: int,
        stop: int,
        transforms: list[Density],
        orders: dict[int, Callable[[], Tensor]],
        crossovers: tuple[Crossover, Crossover] | None,
    ) -> None:
        if len(transforms) > 1 and transforms[0].form.domain is None:
            self.runs[start] = stop, Densities(transforms, orders, crossovers)

    @property
    def transforms(self) -> int:
        """How many transforms run together with others."""
        return sum(len(run.transforms) for _, run in self.runs.values())

    def __call__(
        self,
        x: Tensor,
        context: Tensor | None,
        alone: Callable[[int, Tensor], tuple[Tensor, Tensor]],
        evaluate: Evaluate = lambda run, x, context: run(x, context),
    ) -> tuple[Tensor, Tensor] | None:
        """y and log|det dy/dx|; None where the original must run. ``alone`` evaluates the child with an index."""
        now = self._kind.children(self._module)
        if len(now) != len(self.children) or any(
            own is not child for own, child in zip(now, self.children, strict=True)
        ):
            return None
        if any(self._hooks):
            return None
        index, total = 0, None
        while index < len(self.children):
            run = self.runs.get(index)
            if run is None:
                x, log_det = alone(index, x)
                index += 1
            else:
                index, densities = run
                found = evaluate(densities, x, context)
                if found is None:
                    return None
                x, log_det = found
            total = log_det if total is None else total + log_det
        return x, total


@dataclass(frozen=True)
class ChainPlan:
    """How the density of a chain runs; the arguments are those of :class:`Chain`.

    Attributes:
        modules: the names and classes of the modules in the chain; a copy that has others runs as the original.
    """

    kind: ChainKind
    links: tuple[Link | None, ...]
    crossovers: tuple[Crossover, Crossover]
    modules: tuple[tuple[str, type], ...]

    def attributes(self, module: Any) -> dict[str, Any]:
        if self.modules != modules_in(module):
            return {}
        return self.kind.attributes(module, Chain(self.kind, module, self.links, self.crossovers))


def read_chain(
    kind: ChainKind, name: str, module: Any, plans: Mapping[int, object]
) -> tuple[ChainPlan | None, list[Part]]:
    """The plan of a chain and its part of the report; neither where its transforms cannot run together.

    Args:
        kind: the library's part of it.
        name: its path.
        module: the chain.
        plans: the plans of the modules in it, by the modules' ids.
    """
    links = tuple(_link(plans.get(id(child))) for child in kind.children(module))
    first = next((link for link in links if link is not None), None)
    if first is None:
        return None, []
    own = first.conditioner
    try:
        copied = probe(module)
        with trying("its forward pass"):
            exact = randomized(probe(copied))
            check_density(*_paths(kind, exact, links), own, random(next(exact.parameters()), 3, own.variables))
            like, paths = next(copied.parameters()), _paths(kind, copied, links)
            deviation = check_density(*paths, own, random(like, 3, own.variables))
            key = type(copied), tuple(links)
            parameters = list(copied.requires_grad_(True).parameters())
            found = crossovers_of_density(key, *paths, own, lambda rows: random(like, rows, own.variables), parameters)
            count = Chain(kind, copied, links).transforms
    except Unsuitable:
        return None, []
    alone, training = found
    speed = f"speed-up: {alone}; with gradients: {training}"
    part = Part(name, type(module).__name__, kind.library, kind.evaluates, "", deviation)
    if alone.never and training.never:
        return None, [replace(part, by=f"its own path, since the op would save too little ({speed})")]
    by = f"one op for {count} transforms with their networks and permutations, and log|det| ({speed})"
    return ChainPlan(kind, links, found, modules_in(module)), [replace(part, by=by)]


def _link(plan: object) -> Link | None:
    if not isinstance(plan, TransformPlan) or plan.head is None or plan.kind.evaluates is None:
        return None
    return Link(plan.kind.network, plan.conditioner, plan.head)


def _paths(kind: ChainKind, module: Any, links: Sequence[Link | None]) -> tuple[Any, Any]:
    chain = Chain(kind, module, links)

    def original(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return kind.evaluated(module, x, context)

    def ours(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return kind.evaluate(module, chain, x, context)

    return ours, original
