"""Methods by name: what goes around, what is stepped, what is averaged, and how these are put together.

A new way to go around, or a new average, is a function and a line in `ROUNDS` or `AVERAGES`; it then goes together with all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, make_dataclass
from functools import lru_cache
from typing import Annotated, Any

from torch.optim import Optimizer

from lookaround.methods.averages import (
    DenseWindow,
    Ema,
    Lawa,
    PowerEma,
    Swad,
    Tail,
    Wsm,
    ema,
    lawa_average,
    power_ema,
    tail_average,
    wsm,
)
from lookaround.methods.base import Method, Setup
from lookaround.methods.joined import AveragedMembers, AveragedMemberSettings, JoinedEnsemble
from lookaround.methods.members import GreedySoup, MemberEnsemble, MemberSettings, SoupSettings, UniformSoup
from lookaround.methods.optimizers import OPTIMIZERS, gradients_a_step
from lookaround.methods.rounds import (
    DartSettings,
    DilocoSettings,
    LookaheadSettings,
    LookaroundSettings,
    OuterSettings,
    dart,
    diloco,
    lookahead,
    lookaround,
    snoo,
)
from lookaround.methods.settings import Help, Settings, Wrapping
from lookaround.methods.snapshots import Snapshots, SnapshotSettings
from lookaround.methods.swa import LateSWA, Swa
from lookaround.methods.trajectory import Trajectory
from lookaround.optim import SAM


@dataclass(frozen=True, kw_only=True)
class Ascent(Wrapping):
    """Settings of sam."""

    rho: Annotated[float, Help("radius of the ascent step", least=0)] = 0.05
    adaptive: Annotated[bool, Help("scale the ascent step by each weight's size (ASAM)")] = False


@dataclass(frozen=True)
class Entry:
    """A method, or a part that makes methods with others.

    Attributes:
        settings: the class of its settings.
        build: makes it of a setup, the settings and what it is around: an inner optimizer, or another method.
        summary: what it is, in a line.
        inner: the optimizer, where the method is that optimizer; None where it is a setting.
        held_out: whether it chooses by held-out data.
        gradients: minibatch gradients of a step.
    """

    settings: type[Settings]
    build: Callable[[Setup, Any, Any], Method]
    summary: str
    inner: str | None = None
    held_out: bool = False
    gradients: int = 1

    def cost(self, inner: str, chosen: Mapping[str, Any]) -> int:
        """The most minibatch gradients that a step takes with this inner optimizer."""
        return self.gradients * gradients_a_step(inner, chosen)


def _plain(setup: Setup, settings: Settings, inner: Optimizer) -> Method:
    return Trajectory(setup, inner)


def _joined(setup: Setup, settings: Any, inner: Optimizer) -> Method:
    return JoinedEnsemble(
        setup, lambda own: lookaround(own, settings, inner), lambda own: MemberEnsemble(own, own.inner(own.model))
    )


@dataclass(frozen=True, kw_only=True)
class _JoinedSettings(LookaroundSettings):
    """Settings of lookaround+logit-ensemble."""


ROUNDS = {
    "lookahead": Entry(LookaheadSettings, lookahead, "one trajectory, pulled back every k steps"),
    "lookaround": Entry(LookaroundSettings, lookaround, "d branches, averaged every k steps"),
    "snoo": Entry(OuterSettings, snoo, "lookahead with outer Nesterov momentum"),
    "diloco": Entry(DilocoSettings, diloco, "lookaround with outer Nesterov momentum"),
    "dart": Entry(DartSettings, dart, "lookaround that begins late and averages rarely"),
}
"""What goes around an inner optimizer."""
_BRANCHED = ("lookaround", "diloco", "dart")  # until their start, if they have one, they are one trajectory
STEPS = {
    "sam": Entry(Ascent, _plain, "sharpness-aware minimisation; a step costs two gradients", gradients=2),
}
"""What is stepped in place of the inner optimizer alone."""
AVERAGES: dict[str, Entry] = {
    "ema": Entry(Ema, ema, "exponential moving average of all points"),
    "tail": Entry(Tail, tail_average, "uniform mean of the last part of all points"),
    "lawa": Entry(Lawa, lawa_average, "mean of the last few of widely spaced points"),
    "power-ema": Entry(PowerEma, power_ema, "moving average over a fixed part of the run so far"),
    "wsm": Entry(Wsm, wsm, "average that stands in for a decay of the rate; with schedule=constant"),
    "swa": Entry(Swa, LateSWA, "stochastic weight averaging at the end, at a constant rate"),
    "dswa": Entry(Swa, lambda s, o, inner: LateSWA(s, o, inner, 2), "swa, and swa again from its result"),
    "tswa": Entry(Swa, lambda s, o, inner: LateSWA(s, o, inner, 3), "swa in three folds"),
    "swad": Entry(Swad, DenseWindow, "mean over a window that held-out loss opens and closes", held_out=True),
}
"""What averages the points of any training."""
_PLAIN = {
    name: Entry(Settings, _plain, f"{OPTIMIZERS[name].__name__} alone: one trajectory, no average", inner=name)
    for name in OPTIMIZERS
}
_WHOLE = {
    "logit-ensemble": Entry(
        MemberSettings, lambda s, o, inner: MemberEnsemble(s, inner), "mean of d networks' logits, each on one copy"
    ),
    "logit-ensemble+swa": Entry(AveragedMemberSettings, AveragedMembers, "logit ensemble of the members' SWA averages"),
    "lookaround+logit-ensemble": Entry(_JoinedSettings, _joined, "lookaround's network and d members', in turns"),
    "snapshot-ensemble": Entry(SnapshotSettings, Snapshots, "mean of the logits at the ends of cosine cycles"),
    "uniform-soup": Entry(SoupSettings, UniformSoup, "mean of d networks that part half-way"),
    "greedy-soup": Entry(SoupSettings, GreedySoup, "those of the d networks that held-out data keep", held_out=True),
}
METHODS: dict[str, Entry] = {**_PLAIN, **ROUNDS, **STEPS, **AVERAGES, **_WHOLE}
"""Methods of one name; ROUND+sam+AVERAGE, of which any may be left out, are methods too."""


def find(name: str) -> Entry:
    """The method of this name, or put together of the parts that it names.

    Raises:
        ValueError: for an unknown name, or parts that do not go together in this order.

    Example:
        >>> from lookaround.methods import find
        >>> find("lookaround+sam").gradients, find("lookahead+ema").summary
        (2, 'lookahead + ema')
    """
    if name in METHODS:
        return METHODS[name]
    parts = name.split("+")
    unknown = [part for part in parts if part not in METHODS]
    if unknown:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {unknown[0]!r}; choose from {known}, or join some (see lookaround methods)")
    kinds = [kind for part in parts for kind, table in enumerate((ROUNDS, STEPS, AVERAGES)) if part in table]
    if len(kinds) < len(parts) or kinds != sorted(set(kinds)):
        raise ValueError(f"{name} cannot be joined; write ROUND+sam+AVERAGE, such as {_EXAMPLES}")
    return _joined_parts(name)


_EXAMPLES = "lookaround+ema, lookahead+sam or sam+tail"


@lru_cache
def _joined_parts(name: str) -> Entry:
    parts = name.split("+")
    entries = [METHODS[part] for part in parts]
    # The last part's fields come first, as those of the method that is named last are its own.
    settings = make_dataclass("Joined", [], bases=tuple(e.settings for e in entries), frozen=True, kw_only=True)
    average = AVERAGES.get(parts[-1])
    going = next((ROUNDS[part] for part in parts if part in ROUNDS), METHODS["sgd"])

    def build(setup: Setup, chosen: Any, inner: Optimizer) -> Method:
        trained = going.build(setup, chosen, inner)
        return trained if average is None else average.build(setup, chosen, trained)

    return Entry(
        settings,
        build,
        " + ".join(parts),
        held_out=any(entry.held_out for entry in entries),
        gradients=2 if "sam" in parts else 1,
    )


def spreads(name: str, settings: Any) -> bool:
    """Whether the method's branches can be shared out to processes: alone, or joined with an average of their averages.

    Example:
        >>> from lookaround.methods import find, spreads
        >>> [spreads(name, find(name).settings()) for name in ("lookaround+ema", "dart", "sgd", "logit-ensemble")]
        [True, False, False, False]
    """
    branched = name.partition("+")[0] in _BRANCHED and name not in _WHOLE
    return branched and not getattr(settings, "start", 0)


def build(name: str, setup: Setup, settings: Any) -> Method:
    """The named method.

    Raises:
        ValueError: for an unknown name, or settings that the method, the run's length or the network do not allow.
    """
    entry = find(name)
    optimizer: Any = setup.inner(setup.model)
    if "sam" in name.split("+"):
        optimizer = SAM(optimizer, rho=settings.rho, adaptive=settings.adaptive)
    alone = name in AVERAGES
    return entry.build(setup, settings, Trajectory(setup, optimizer) if alone else optimizer)
