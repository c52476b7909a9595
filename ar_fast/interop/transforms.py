"""What the readers of the libraries share: how the inverse of a transform object is planned, checked and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..conditioners.conditioner import Conditioner, Unsuitable, find
from ..conditioners.stepping import Incremental, Univariate, distinct_rows
from .checks import check_parameters, probe, random, randomized, trying, uniform
from .crossover import Crossover
from .density import Densities, Density, Evaluation, HeadDensity, Path, check_density, crossovers_of_density
from .fused import Fused, Head
from .inverses import Inverse, check_inverse, crossovers, everywhere
from .report import Part

__all__ = ["Kind", "TransformPlan", "modules_in", "read_transform", "steps_of"]


class Kind(Protocol):
    """What a library's file says about its autoregressive transforms.

    Attributes:
        library: its name.
        network: the attribute that holds the conditioner.
        replaced: what the report calls the method of the inverse that is replaced.
        evaluates: what it calls that of the density's direction; None where this file does not replace it.
        stops_early: whether the library's passes can end where two agree.
    """

    library: str
    network: str
    replaced: str
    evaluates: str | None
    stops_early: bool

    def conditioners(self, module: nn.Module, network: nn.Module) -> Iterator[Conditioner]:
        """What the conditioner may be; the first that gives its output is taken."""

    def raw(self, network: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
        """The conditioner's outputs (B, outputs) as stored."""

    def univariate(self, module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        """The inverse of the univariate transforms: (y (B, n), parameters (B, n, K)) -> x (B, n). It may take any
        number n of variables, or all of them only."""

    def heads(self, module: nn.Module) -> Iterator[Head]:
        """What the univariate transform may be as one of the op's; nothing if it is none."""

    def parametric(self, module: nn.Module) -> bool:
        """Whether the univariate transform has parameters of its own."""

    def passes(self, module: nn.Module) -> int | None:
        """How many passes the original makes; None is one for each variable."""

    def one_pass(self, module: nn.Module, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        """One pass of the original's inverse: what it makes of x."""

    def original(self, module: nn.Module, y: Tensor, context: Tensor | None) -> Tensor:
        """All passes of the original."""

    def evaluated(self, module: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The original's direction of the density: (x (B, D), context (B, C)) -> (y, log|det dy/dx|)."""

    def attributes(self, module: nn.Module, inverse: Inverse | None, density: Evaluation | None) -> dict[str, Any]:
        """The attributes through which the module runs the inverse, or without one its own passes until two agree, and
        the direction of the density, or without one its own."""


# Up to this many variables a defect that the masks show is looked for in the network, by a gradient for each of them.
_MOST_CHECKED = 64
# All passes of the original's inverse are compared where they take at most this many multiply-adds, of which a pass has
# some of its own: about 0.1 seconds. A clock would leave the comparison out where the machine is busy.
_MOST_OF_PASSES, _OF_A_PASS = 200_000_000, 200_000


@dataclass(frozen=True)
class TransformPlan:
    """How a transform's inverse runs.

    Attributes:
        kind: the library's part of it.
        conditioner: what was read; None if the library's own passes run, with an early end.
        every: whether the univariate inverse takes all variables only.
        crossovers: where this is faster than the library's passes, without and with gradients.
        head: the univariate transform as the op knows it, or None.
        density: where one op for the direction of the density is faster than the original, without and with gradients;
            None if it does not run.
        with_network: whether that op runs the network, too; otherwise the network runs by itself before it.
        modules: the names and classes of the modules in the transform; a copy that has others runs as the original.
    """

    kind: Kind
    conditioner: Conditioner | None = None
    every: bool = False
    crossovers: tuple[Crossover, Crossover] | None = None
    head: Head | None = None
    density: tuple[Crossover, Crossover] | None = None
    with_network: bool = True
    modules: tuple[tuple[str, type], ...] | None = None

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        if self.modules is not None and self.modules != modules_in(module):
            return {}
        density = None if self.density is None else self.evaluate(module)
        return self.kind.attributes(module, self.inverse(module), density)

    def evaluate(self, module: nn.Module) -> Evaluation:
        """The direction of the density of a module, which needs a conditioner and a head; see ``density``."""
        steps = steps_of(module, self.kind.network, self.conditioner)
        if self.with_network:
            return Densities([Density(steps, self.head)], crossovers=self.density)

        def parameters(x: Tensor, context: Tensor | None) -> Tensor:
            return self.kind.raw(find(module, self.kind.network), x, context)

        return HeadDensity(parameters, steps, self.head, self.density)

    def inverse(self, module: nn.Module) -> Inverse | None:
        if self.conditioner is None:
            return None
        univariate = self.kind.univariate(module)
        if self.every:
            own: Univariate = everywhere(univariate, self.conditioner.variables)
        else:

            def own(y: Tensor, parameters: Tensor, indices: Tensor) -> Tensor:
                return univariate(y, parameters)

        steps = steps_of(module, self.kind.network, self.conditioner)
        fused = None if self.head is None else Fused(steps, self.head)
        parametric = self.kind.parametric(module)
        return Inverse(steps, own, parametric, self.crossovers, fused, lambda: self.kind.passes(module))


def steps_of(module: nn.Module, network: str, conditioner: Conditioner) -> Incremental:
    """The conditioner of a transform, which is of use while all modules in the transform stay what they are."""
    return Incremental(conditioner, find(module, network), root=module)


def modules_in(module: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(part)) for name, part in module.named_modules())


def read_transform(kind: Kind, name: str, module: nn.Module) -> tuple[TransformPlan | None, list[Part]]:
    """The plan of a transform, and its parts of the report; no plan where the original's inverse is faster.

    Raises:
        Unsuitable: if it cannot be accelerated at all.
    """
    like = next((own for own in module.parameters() if own.is_floating_point()), None)
    if like is None or like.is_meta:
        raise Unsuitable("it has no parameters with values")
    copied = probe(module)
    exact = randomized(probe(copied))
    try:
        plan, deviation, notes = _planned(kind, copied, exact)
    except Unsuitable as reason:
        if not kind.stops_early:
            raise
        by = "the library's own passes, which end where two agree bit for bit (checked at the first call)"
        part = Part(name, type(module).__name__, kind.library, kind.replaced, by, 0.0, (f"not incremental: {reason}",))
        return TransformPlan(kind), [part]
    part = Part(name, type(module).__name__, kind.library, kind.replaced, "", deviation, notes)
    alone, training = plan.crossovers
    speed = f"speed-up of the inverse: {alone}; with gradients: {training}"
    if alone.never and training.never:
        by = f"its own passes, which are faster here ({speed})"
        return None, [replace(part, by=by)]
    tier = "incremental, each hidden unit once" if plan.head is None else f"one fused pass of the op, {plan.head.name}"
    part = replace(part, by=f"{tier} ({speed})")
    plan, density = _density(kind, name, module, copied, exact, plan)
    return replace(plan, modules=modules_in(module)), [part, *density]


def _density(
    kind: Kind, name: str, module: nn.Module, copied: nn.Module, exact: nn.Module, plan: TransformPlan
) -> tuple[TransformPlan, list[Part]]:
    """The plan with the direction of the density, and what the report says of it, where an op can run it."""
    if plan.head is None or kind.evaluates is None:
        return plan, []
    for with_network, what in (
        (True, f"one op for network, {plan.head.name} and log|det|"),
        (False, f"its network, then one op for {plan.head.name} and log|det|, whose"),
    ):
        try:
            with trying("its forward pass"):
                deviation, found = _density_checked(copied, exact, replace(plan, with_network=with_network))
        except Unsuitable:
            continue
        alone, training = found
        speed = f"speed-up: {alone}; with gradients: {training}"
        part = Part(name, type(module).__name__, kind.library, kind.evaluates, "", deviation)
        if alone.never and training.never:
            return plan, [replace(part, by=f"its own path, since the op would save too little ({speed})")]
        by = f"{what} ({speed})" if with_network else f"{what} {speed}"
        return replace(plan, density=found, with_network=with_network), [replace(part, by=by)]
    return plan, []


def _density_checked(
    copied: nn.Module, exact: nn.Module, plan: TransformPlan
) -> tuple[float, tuple[Crossover, Crossover]]:
    own, kind = plan.conditioner, plan.kind

    def paths(module: nn.Module) -> tuple[Path, Path]:
        def original(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
            return kind.evaluated(module, x, context)

        return plan.evaluate(module), original

    draw = random if plan.head.domain is None else uniform
    check_density(*paths(exact), own, draw(next(exact.parameters()), 3, own.variables))
    like = next(copied.parameters())
    ours, original = paths(copied)
    deviation = check_density(ours, original, own, draw(like, 3, own.variables))
    key = type(copied), plan.head, plan.with_network
    if plan.with_network:
        parameters = list(copied.requires_grad_(True).parameters())
        found = crossovers_of_density(
            key, ours, original, own, lambda rows: draw(like, rows, own.variables), parameters
        )
        copied.requires_grad_(False)
        return deviation, found
    # Both paths run the same network, so what it takes is left out.
    given, network = _Given(), find(copied, kind.network)

    def values(rows: int) -> Tensor:
        given.outputs[:] = [random(like, rows, own.variables * own.parameters).requires_grad_()]
        return draw(like, rows, own.variables)

    setattr(copied, kind.network, given)
    found = crossovers_of_density(key, ours, original, own, values, given.outputs)
    setattr(copied, kind.network, network)
    return deviation, found


class _Given(nn.Module):
    """A network with given outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return self.outputs[0]


def _planned(kind: Kind, copied: nn.Module, exact: nn.Module) -> tuple[TransformPlan, float, tuple[str, ...]]:
    """Reads a copy, checks the reading on one in float64 with random parameters, and measures it with the real ones."""
    conditioner, notes = _conditioner(kind, copied, exact)
    reasons: list[str] = []
    fused: list[str] = []
    for head in (*kind.heads(copied), None):
        # Some transforms have the unit interval as their domain.
        for draw in (random, uniform):
            try:
                with trying("its inverse"):
                    plan, deviation = _checked(kind, copied, exact, TransformPlan(kind, conditioner, head=head), draw)
                    if head is None:
                        notes = (
                            *notes,
                            f"not fused: {fused[0] if fused else 'the op has no such univariate transform'}",
                        )
                    return plan, deviation, notes
            except Unsuitable as reason:
                (reasons if head is None else fused).append(str(reason))
    raise Unsuitable("; ".join(dict.fromkeys(reasons)))


def _checked(
    kind: Kind, copied: nn.Module, exact: nn.Module, plan: TransformPlan, draw: Callable[..., Tensor]
) -> tuple[TransformPlan, float]:
    """The plan with its crossover, and the deviation of the inverse with the parameters as they are."""
    like, variables = next(copied.parameters()), plan.conditioner.variables
    if plan.head is not None and like.dtype not in (torch.float32, torch.float64):
        raise Unsuitable(f"the op's results have another dtype than {like.dtype}")
    inverse = plan.inverse(copied)
    if inverse.fused is not None and not inverse.fused.fits():
        raise Unsuitable("its masks are no staircase when the units are sorted")
    y = draw(next(exact.parameters()), 2, variables)
    # The backward pass uses the univariate inverse in any case.
    plan = replace(plan, every=_compared(kind, exact, replace(plan, head=None), y, False)[1].every)
    plan = _compared(kind, exact, plan, y, False)[1]
    y = draw(like, 2, variables)
    work = len(y) * sum(parameter.numel() for parameter in copied.parameters()) + _OF_A_PASS
    all_passes = (kind.passes(copied) or variables) * work <= _MOST_OF_PASSES
    deviation, plan = _compared(kind, copied, plan, y, all_passes)
    ours, original = _paths(kind, copied, plan)

    def values(rows: int) -> Tensor:
        return draw(like, rows, variables)

    key, parameters = (type(copied), plan.head), list(copied.requires_grad_(True).parameters())
    found = crossovers(key, ours, original, plan.conditioner, values, parameters)
    copied.requires_grad_(False)
    return replace(plan, crossovers=found), deviation


def _conditioner(kind: Kind, copied: nn.Module, exact: nn.Module) -> tuple[Conditioner, tuple[str, ...]]:
    network, reasons = find(exact, kind.network), []
    like = next(network.parameters())
    for conditioner in kind.conditioners(copied, find(copied, kind.network)):
        try:
            with trying("its conditioner"):
                x = random(like, 3, conditioner.variables)
                context = random(like, 3, conditioner.context_features) if conditioner.context_features else None
                steps = Incremental(conditioner, network)
                check_parameters(steps, lambda x, context: kind.raw(network, x, context), x, context)
                return conditioner, _notes(kind, copied, steps)
        except Unsuitable as reason:
            reasons.append(str(reason))
    raise Unsuitable("; ".join(dict.fromkeys(reasons)) or "its conditioner is of no known form")


def _notes(kind: Kind, copied: nn.Module, steps: Incremental) -> tuple[str, ...]:
    schedule, passes = steps.settle(), kind.passes(copied)
    if passes is not None and passes < schedule.levels:
        raise Unsuitable(f"it makes {passes} passes where its masks need {schedule.levels}")
    if schedule.sees_context is None or bool(schedule.sees_context.all()):
        return ()
    own = steps.conditioner
    blind = (~schedule.sees_context).nonzero()[:, 0].tolist()
    if own.variables > _MOST_CHECKED:
        return (f"kept: by its masks variables {', '.join(map(str, blind[:5]))} do not see the context",)
    # The masks say it, and this asks the network itself.
    from ..dependence import check_autoregressive

    like = next(steps.network.parameters())
    found = check_autoregressive(
        lambda x, context: kind.raw(steps.network, x, context),
        own.variables,
        order=schedule.variables,
        x=random(like, 4, own.variables),
        context=random(like, own.context_features),
        outputs=own.owners(),
    )
    names = ", ".join(map(str, found.without_context[:5]))
    return (f"kept: check_autoregressive finds that variables {names} do not see the context",) if names else ()


def _paths(kind: Kind, module: nn.Module, plan: TransformPlan) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    inverse = plan.inverse(module)

    def ours(y: Tensor, context: Tensor | None) -> Tensor:
        return inverse(y, None if context is None else distinct_rows(context))[0]

    def original(y: Tensor, context: Tensor | None) -> Tensor:
        return kind.original(module, y, context)

    return ours, original


def _compared(
    kind: Kind, module: nn.Module, plan: TransformPlan, y: Tensor, all_passes: bool
) -> tuple[float, TransformPlan]:
    """The deviation of the inverse; the univariate transforms are inverted together where they cannot be one by one."""

    def compare(plan: TransformPlan) -> float:
        ours, original = _paths(kind, module, plan)

        def one_pass(x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
            return kind.one_pass(module, x, y, context)

        return check_inverse(ours, one_pass, original, plan.conditioner, y, all_passes)

    if plan.every or plan.head is not None:
        return compare(plan), plan
    try:
        with trying("its univariate inverse"):
            return compare(plan), plan
    except Unsuitable:
        plan = replace(plan, every=True)
        return compare(plan), plan
