"""An outer optimizer: it moves φ by a gradient that is the way from the mean of the branches back to φ (DiLoCo, SNOO)."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookaround.tensors import clone, copy_, wide_dtype

MakeOuter = Callable[[list[Tensor]], Optimizer]


class Outer:
    """A torch optimizer over φ.

    Args:
        make: builds it from parameters.
        weights: the model's, which it is built for; φ itself is there from the first round on.

    Raises:
        TypeError: ``make`` is no function from parameters to a torch optimizer.

    Attributes:
        optimizer: what ``make`` has built, to read or to schedule its settings.
    """

    def __init__(self, make: MakeOuter, weights: Sequence[Tensor]) -> None:
        self._phi: dict[Hashable, nn.Parameter] = {w: _parameter(w) for w in weights if w.requires_grad}
        made = make(list(self._phi.values())) if callable(make) else make
        if not isinstance(made, Optimizer) or not callable(make):
            raise TypeError(
                f"outer has to be a function from parameters to a torch.optim.Optimizer, got {made!r}: "
                "pass e.g. lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)"
            )
        self.optimizer = made

    def follow(self, slow: Mapping[Hashable, Tensor]) -> None:
        """Have the optimizer's parameters be φ, where that is now; those of weights that are new join its last group."""
        for key, phi in slow.items():
            ours = self._phi.get(key)
            if ours is None:
                self._phi[key] = nn.Parameter(phi)
                self.optimizer.param_groups[-1]["params"].append(self._phi[key])
            elif not _is_same(ours, phi):
                self._replace(key, ours, nn.Parameter(phi))
        for key in [key for key in self._phi if key not in slow]:
            self._remove(self._phi.pop(key))

    def _replace(self, key: Hashable, old: nn.Parameter, new: nn.Parameter) -> None:
        self._phi[key] = new
        for group in self.optimizer.param_groups:
            group["params"][:] = [new if p is old else p for p in group["params"]]
        if old in self.optimizer.state:
            self.optimizer.state[new] = _like(self.optimizer.state.pop(old), new)

    def _remove(self, old: nn.Parameter) -> None:
        self.optimizer.state.pop(old, None)
        for group in self.optimizer.param_groups:
            group["params"][:] = [p for p in group["params"] if p is not old]

    @torch.no_grad()
    def step(self, gradients: Mapping[Hashable, Tensor]) -> None:
        """One step with the gradient φ - mean of each parameter."""
        for key, phi in self._phi.items():
            phi.grad = gradients.get(key)
        try:
            self.optimizer.step()
        finally:
            for phi in self._phi.values():
                phi.grad = None

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Inside, steps may be taken; afterwards φ and the optimizer are as they were."""
        phi = list(self._phi.values())
        values, state = clone(phi), deepcopy(_by_place(self.optimizer))
        groups = [{k: deepcopy(v) for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        try:
            yield
        finally:
            copy_(phi, values)
            self._put_back(state)
            for group, before in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(before)

    def _put_back(self, state: dict[Any, Any]) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.state.clear()
        self.optimizer.state.update({params[k] if isinstance(k, int) else k: entry for k, entry in state.items()})

    def entries(self) -> dict[Hashable, dict[str, Any]]:
        """What the optimizer keeps, by the model's parameter."""
        state = self.optimizer.state
        return {key: state[phi] for key, phi in self._phi.items() if phi in state}

    def settings(self) -> dict[str, Any]:
        """The settings of its groups, each under ``GROUP.SETTING``."""
        groups = enumerate(self.optimizer.param_groups)
        return {f"{i}.{k}": v for i, group in groups for k, v in group.items() if k != "params"}

    def load_entries(self, entries: Mapping[Hashable, dict[str, Any]]) -> None:
        """Take over copies of what `entries` gave."""
        state: dict[Any, Any] = {self._phi[key]: _like(deepcopy(e), self._phi[key]) for key, e in entries.items()}
        self.optimizer.state.clear()
        self.optimizer.state.update(state)

    def load_settings(self, settings: Mapping[str, Any]) -> None:
        """Take over what `settings` gave."""
        for i, group in enumerate(self.optimizer.param_groups):
            group.update({k: deepcopy(settings[f"{i}.{k}"]) for k in group if f"{i}.{k}" in settings})


def _parameter(weight: Tensor) -> nn.Parameter:
    """What stands for φ until there is one: of its shape and dtype."""
    same = wide_dtype(weight.dtype) == weight.dtype
    return nn.Parameter(weight.detach() if same else torch.empty_like(weight, dtype=wide_dtype(weight.dtype)))


def _is_same(ours: Tensor, phi: Tensor) -> bool:
    if hasattr(ours, "to_local"):
        return bool(ours.to_local().data_ptr() == phi.to_local().data_ptr())  # type: ignore[attr-defined]
    return ours.data_ptr() == phi.data_ptr() and ours.dtype == phi.dtype


def _like(entry: dict[str, Any], new: Tensor) -> dict[str, Any]:
    """A state entry for φ in another place: what has φ's shape goes to its device and dtype."""
    return {
        key: v.to(new.device, new.dtype) if isinstance(v, Tensor) and v.shape == new.shape and key != "step" else v
        for key, v in entry.items()
    }


def _by_place(optimizer: Optimizer) -> dict[Any, Any]:
    """The state by the place of each parameter, so that it can be copied without them."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    places = {p: i for i, p in enumerate(params)}
    return {places.get(key, key) if isinstance(key, Tensor) else key: entry for key, entry in optimizer.state.items()}
