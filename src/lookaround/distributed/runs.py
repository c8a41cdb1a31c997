"""A whole training in a checkpoint that any number of processes goes on from: model, optimizer, branches."""

import io
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lookaround.distributed.checkpoints import Checkpoints

_MODEL, _STATE, _ROW = "model.", "state.", "row."


class Branched(Protocol):
    """An optimizer with branches, such as `lookaround.Lookaround`."""

    @property
    def local_branches(self) -> range:
        """The branches here."""

    def params(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""

    def part_state_dict(self) -> dict[str, Any]:
        """This process's part of the state of all branches."""

    def load_parts(self, parts: list[tuple[range, dict[str, Any]]]) -> None:
        """Go on from the parts of all processes."""

    def wants(self, label: str) -> bool:
        """Whether this process takes what stands under a label."""


def save_run(checkpoints: Checkpoints, step: int, model: nn.Module, optimizer: Branched) -> None:
    """Save model, optimizer and all branches after ``step`` steps, for any number of processes to go on from.

    Every process calls this, after the loop over ``around()``: in the middle of a round too.

    Raises:
        ValueError: inside that loop or ``averaged()``.
        OSError: a file cannot be written; earlier checkpoints stay.

    Example:
        >>> from lookaround.distributed import Checkpoints, load_run, save_run
        >>> import tempfile, torch
        >>> from lookaround import Lookaround
        >>> def new():
        ...     model = torch.nn.Linear(2, 1)
        ...     return model, Lookaround(torch.optim.SGD(model.parameters(), lr=0.1), branches=2, k=5, model=model)
        >>> checkpoints, (model, optimizer) = Checkpoints(tempfile.mkdtemp()), new()
        >>> for branch in optimizer.around():
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> save_run(checkpoints, 1, model, optimizer)
        >>> again, its_optimizer = new()
        >>> load_run(checkpoints, again, its_optimizer), torch.equal(again.weight, model.weight)
        (1, True)
    """
    part, local = optimizer.part_state_dict(), optimizer.local_branches
    state: dict[str, Any] = {
        f"{_STATE}{number}.{label}": value
        for number, entry in part.pop("state").items()
        for label, value in (entry.items() if isinstance(number, int) else [("", entry)])
    }
    state[f"{_ROW}{local.start}"] = _packed({"local": [local.start, local.stop], "part": part})
    if not local.start:
        state |= {_MODEL + name: value for name, value in model.state_dict().items()}
    checkpoints.save(step, state)


def load_run(checkpoints: Checkpoints, model: nn.Module, optimizer: Branched) -> int | None:
    """Go on from the last whole checkpoint of `save_run`, by whatever number of processes; return its step.

    The model and the optimizer are built as they were, but for the mesh. With the same placement of branches the training goes on bit
    for bit; with another up to the order in which branches are added.

    Returns:
        None, with nothing changed, where there is no whole checkpoint.

    Raises:
        ValueError: the checkpoint does not fit the model or the optimizer.
    """
    step = checkpoints.latest()
    if step is None:
        return None
    state = _templates(checkpoints, step, model, optimizer)
    checkpoints.read(step, state)
    model.load_state_dict({key.removeprefix(_MODEL): value for key, value in state.items() if key.startswith(_MODEL)})
    rows = [_unpacked(value) for key, value in state.items() if key.startswith(_ROW)]
    rows.sort(key=lambda row: row["local"][0])
    parts = [(range(*row["local"]), {**row["part"], "state": {}}) for row in rows]
    parts[0][1]["state"] = _entries(state)
    optimizer.load_parts(parts)
    return step


def _entries(state: dict[str, Any]) -> dict[Any, Any]:
    entries: dict[Any, Any] = {}
    for key, value in state.items():
        if key.startswith(_STATE):
            number, _, label = key.removeprefix(_STATE).partition(".")
            if label:
                entries.setdefault(int(number), {})[label] = value
            else:
                entries[number] = value
    return entries


def _templates(checkpoints: Checkpoints, step: int, model: nn.Module, optimizer: Branched) -> dict[str, Any]:
    """Empty values for everything in a checkpoint that this process wants: sharded as its parameters are, whole otherwise."""
    found = FileSystemReader(checkpoints.folder / f"step-{step}").read_metadata().state_dict_metadata
    own, params = {_MODEL + name: value for name, value in model.state_dict().items()}, optimizer.params()
    _check_model({key: what for key, what in found.items() if key.startswith(_MODEL)}, own)
    state: dict[str, Any] = {}
    for key, what in found.items():
        number, _, label = key.removeprefix(_STATE).partition(".")
        if key.startswith(_STATE) and not optimizer.wants(label):
            continue
        if not isinstance(what, TensorStorageMetadata):
            state[key] = None
        elif key.startswith(_STATE) and number.isdecimal():
            state[key] = _empty(what, params[int(number)])
        else:
            state[key] = torch.empty_like(own[key]) if key in own else _empty(what, params[0])
    return state


def _check_model(found: dict[str, Any], own: dict[str, Any]) -> None:
    shapes = [{k: tuple(getattr(v, size, ())) for k, v in of.items()} for of, size in ((found, "size"), (own, "shape"))]
    differing = sorted(key for key in found.keys() | own.keys() if shapes[0].get(key) != shapes[1].get(key))
    if differing:
        names = ", ".join(key.removeprefix(_MODEL) for key in differing[:3])
        raise ValueError(
            f"the checkpoint is of another model: {names} differ{' and others' if len(differing) > 3 else ''}: "
            "build the model that was saved before loading"
        )


def _empty(what: TensorStorageMetadata, param: Tensor) -> Tensor:
    dtype = what.properties.dtype
    if what.size == param.shape:
        return torch.empty_like(param, dtype=dtype, requires_grad=False)
    return torch.empty(what.size, dtype=dtype)


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)
