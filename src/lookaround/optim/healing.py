"""The state of a branch that a process gives to one that returns, and takes from a peer when it does so itself."""

from copy import deepcopy
from weakref import ref

from lookaround.optim.branches import Branches
from lookaround.optim.replicated import Replicas, State
from lookaround.optim.spread import Spread
from lookaround.tensors import copy_


def offer(optimizer: Spread, replicas: Replicas) -> None:
    """Have an optimizer and what it holds of its model given to processes that heal, and taken from peers."""
    known = ref(optimizer)  # which a manager does not keep alive

    def give() -> State:
        return _given(_there(known()))

    def take(state: State) -> int:
        return _taken(_there(known()), state)

    replicas.offer(give, take)


def _there(optimizer: Spread | None) -> Spread:
    if optimizer is None:
        raise RuntimeError(
            "the optimizer that was built with replicas= is gone, and a replica group asks for its state: keep it"
        )
    return optimizer


def _given(optimizer: Spread) -> State:
    run = optimizer._run
    buffers = {name: buffer for of in run.branches.buffers() for name, buffer in of.items()}
    weights = [param.detach() for param in optimizer.params()]
    return {"weights": weights, "buffers": buffers, "optimizer": optimizer.state_dict(), "block": run.block}


def _taken(optimizer: Spread, state: State) -> int:
    """Take over a peer's state, in a loop that goes on. Returns the number of the peer's branch."""
    run = optimizer._run
    walk, at, block = run.walk, run.at, run.block
    optimizer.load_state_dict(
        deepcopy(state["optimizer"])
    )  # what has been received may be memory that is not to be written
    run.walk, run.at, run.block, run.resumed = walk, at, block, False
    run.batches += state["block"]
    copy_(optimizer.params(), state["weights"])
    buffers = {name: buffer for of in run.branches.buffers() for name, buffer in of.items()}
    copy_([buffers[name] for name in state["buffers"]], list(state["buffers"].values()))
    return _hold(run.branches, run.place.branch)


def _hold(branches: Branches, number: int) -> int:
    branches.local, branches.current = range(number, number + 1), number
    return number
