"""A `torch.optim.Optimizer` around another one: everything a framework relies on, passed through or done once."""

from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from lookaround.optim.checks import WRAPPERS, check_names_are_free, check_wrappers, step_arguments
from lookaround.optim.inner import HOOKS
from lookaround.optim.plain import check_fits, load_plain, marked
from lookaround.showing import refuse

Closure = Callable[[], Any]
Group = dict[str, Any]


class Wrapper(Optimizer):
    """The part all wrappers share: groups, state, hooks and checkpoints of the ``inner`` optimizer, with the wrapper's own beside.

    ``param_groups`` and ``defaults`` are the inner optimizer's own objects, and ``state`` reads as its own. What a wrapper adds to a
    group has its ``name`` and an underscore before it (``lookahead_k``), what it adds to a parameter's entry its name and a dot
    (``lookahead.slow``). What the inner optimizer has and the wrapper has not (another wrapper's ``around``, say) is passed through.
    """

    name: ClassVar[str]
    # Settings that are no choice of the user's, and not for `repr`.
    _unshown: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            WRAPPERS.setdefault(f"{cls.name}_", cls.__name__)

    def __init__(self, inner: Optimizer, settings: Group) -> None:
        self._check_inner(inner)
        check_names_are_free(inner, f"{self.name}_", settings, type(self).__name__)
        self._restore(inner)
        for group in self.param_groups:
            for stale in filter(self._owns_setting, list(group)):  # of an earlier wrapper of this kind
                del group[stale]
            group.update({self._key(key): value for key, value in settings.items()})

    @classmethod
    def _check_inner(cls, inner: Any) -> None:
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"{cls.__name__} wraps a torch.optim.Optimizer, got {inner!r}: pass e.g. torch.optim.SGD(params, lr=0.1)"
            )
        if any(type(wrapped) is cls for wrapped in chain(inner)):
            raise ValueError(f"{cls.__name__} cannot be wrapped around {cls.__name__}: use one, with other settings")

    def _restore(self, inner: Optimizer) -> None:
        """Set the attributes `Optimizer.__init__` would, but for the groups and the state, which are the inner optimizer's."""
        self.inner = inner
        for hooks in HOOKS:
            setattr(self, hooks, OrderedDict())
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        self._warned_capturable_if_run_uncaptured = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "inner" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    @property
    def param_groups(self) -> list[Group]:
        """The inner optimizer's parameter groups: the same list."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state, with this wrapper's tensors in the parameters' entries."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's defaults: the same mapping."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def add_param_group(self, param_group: Group) -> None:
        """Add a group to the inner optimizer; it takes over this wrapper's settings and place in the round."""
        self.inner.add_param_group(param_group)
        for key, value in self.param_groups[0].items():
            if self._owns_setting(key):
                self.param_groups[-1].setdefault(key, value)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, as the inner optimizer does it."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def train(self) -> None:
        """What an inner optimizer with modes of its own does in ``train()``; nothing with others."""
        self._pass_on("train")

    def eval(self) -> None:
        """What an inner optimizer with modes of its own does in ``eval()``; nothing with others."""
        self._pass_on("eval")

    def _pass_on(self, mode: str) -> None:
        if callable(change := getattr(self.inner, mode, None)):
            if not isinstance(self.inner, Wrapper):  # which knows what of it is shown
                refuse(f"{mode}() of a {type(self).__name__}", self.params())
            change()

    def step(self, closure: Closure | None = None, **options: Any) -> Any:
        """Take one step of the wrapper.

        Args:
            closure: re-evaluates the model and returns the loss; passed to the inner optimizer, which calls it.
            **options: further arguments of the inner optimizer's ``step``, passed to it.

        Returns:
            What the inner optimizer returns: the closure's loss, or None without one.
        """
        if not (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks):
            return self._step(closure, options)
        args, kwargs = (self,) if closure is None else (self, closure), options
        for before in self._optimizer_step_pre_hooks.values():
            args, kwargs = before(self, args, kwargs) or (args, kwargs)
        loss = self._step(*step_arguments(*args[1:], **kwargs))
        for after in self._optimizer_step_post_hooks.values():
            after(self, args, kwargs)
        return loss

    # torch decorates `step` to run the hooks registered for every optimizer. Those run once, in the step of the innermost optimizer.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Closure | None, options: dict[str, Any]) -> Any:
        raise TypeError(f"{type(self).__name__} defines no step of its own")

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state dict, with this wrapper's settings in the groups and its tensors in the parameters' entries.

        The schema is torch's, so it saves with `torch.save`, loads with ``weights_only=True`` and goes through
        `torch.distributed.checkpoint.state_dict`. As with every torch optimizer the tensors are the live ones, not copies.
        """
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self._saved()
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def _saved(self) -> Group:
        """The inner optimizer's state dict, whose dtypes can be told from the parameters'."""
        state_dict = self.inner.state_dict()
        self._check_schema(state_dict)
        return (
            state_dict if isinstance(self.inner, Wrapper) else marked(state_dict, self.params(), f"{self.name}.dtype")
        )

    def _check_schema(self, state_dict: Group) -> None:
        """Raise ValueError for a state dict in which there is no place for the wrapper's part."""
        if not {"state", "param_groups"} <= state_dict.keys():
            raise ValueError(
                f"a state dict with {', '.join(map(repr, state_dict))} has not torch's schema of 'state' and 'param_groups', which "
                f"{type(self).__name__} puts its own part into: wrap an optimizer whose state_dict() has it"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, or the state dict of a plain inner optimizer (then the next step begins a first round).

        Raises:
            ValueError: the checkpoint has other groups, other shapes, other wrappers or other settings of a kind that cannot
                change, or a part of it is missing; nothing is changed then.
        """
        state_dict = copy(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        self._check_schema(state_dict)
        check_fits(state_dict, self.param_groups, chain(self)[-1])
        check_wrappers(state_dict["param_groups"], self.param_groups, type(self).__name__)
        self._load(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _load(self, state_dict: Group) -> None:
        fresh = {key: value for key, value in self.param_groups[0].items() if self._owns_setting(key)}
        self._load_inner(state_dict)
        for group in self.param_groups:
            for key, value in fresh.items():
                group.setdefault(key, value)

    def _load_inner(self, state_dict: Group) -> None:
        if isinstance(self.inner, Wrapper):
            self.inner.load_state_dict(state_dict)
        else:
            load_plain(self.inner, state_dict, f"{self.name}.dtype")

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in HOOKS and k not in ("step", "_opt_called")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state["inner"])
        self.__dict__.update(state)

    def __copy__(self) -> "Wrapper":
        """Another handle on the same optimizer: a shallow copy shares everything, what is in the model too."""
        twin = object.__new__(type(self))
        twin.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("step", "_opt_called")})
        return twin

    def __repr__(self) -> str:
        hidden = tuple(f"    {self._key(setting)}" for setting in self._unshown)
        lines = [line for line in repr(self.inner).splitlines() if not line.startswith(hidden)]
        return f"{type(self).__name__} around " + "\n".join(lines)

    def _key(self, setting: str) -> str:
        return self.name + "_" + setting

    def _owns_setting(self, key: str) -> bool:
        return key.startswith(f"{self.name}_")

    def _get(self, setting: str) -> Any:
        return self.inner.param_groups[0][self._key(setting)]

    def _set(self, setting: str, value: Any) -> None:
        for group in self.param_groups:
            group[self._key(setting)] = value

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [param for group in self.param_groups for param in group["params"]]


def chain(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and all those it is wrapped around, outermost first.

    >>> import torch
    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> chain(sgd) == [sgd]
    True
    """
    return [optimizer, *(chain(optimizer.inner) if isinstance(optimizer, Wrapper) else [])]
