"""The average in the model to look at, and the training weights back in it."""

from typing import TYPE_CHECKING

from lookaround.optim.average import average_all
from lookaround.tensors import clone, copy_, reshard

if TYPE_CHECKING:
    from lookaround.optim.rounds import Rounds


def put_average_in(wrapper: "Rounds") -> None:
    """Keep the training weights and buffers in ``state``, where a checkpoint finds them, and put the average in their place."""
    slow, branches = wrapper._tensors("slow"), wrapper._branches
    if wrapper._at_start() or wrapper._get("start") or not (slow or branches.idle()):
        return
    reshard_model(wrapper)
    params, buffers = wrapper._params(), branches.model_buffers()
    at = [i for i, param in enumerate(params) if param.requires_grad or i in slow]
    wrapper.state[f"{wrapper.name}.training"] = dict(zip(at, clone([params[i] for i in at]), strict=True))
    wrapper._set("has_training", True)
    if buffers:
        wrapper.state[f"{wrapper.name}.training.buffers"] = dict(
            zip(buffers, clone(list(buffers.values())), strict=True)
        )
    try:
        average_all(wrapper, write_back=False)
    except BaseException:
        take_average_out(wrapper)
        raise


def take_average_out(wrapper: "Rounds") -> None:
    """Put the training weights and buffers back, where an average has taken their place."""
    params, buffers = wrapper._params(), wrapper._branches.model_buffers()
    weights = wrapper.state.pop(f"{wrapper.name}.training", {})
    if weights:
        reshard_model(wrapper)
    copy_([params[i] for i in weights], list(weights.values()))
    kept = wrapper.state.pop(f"{wrapper.name}.training.buffers", {})
    copy_([buffers[label] for label in kept], list(kept.values()))
    wrapper._set("has_training", False)


def reshard_model(wrapper: "Rounds") -> None:
    """Drop the gathered weights that an evaluation under FSDP2 has left in the model, where the wrapper knows the model."""
    if wrapper._branches._model is not None:
        reshard(wrapper._branches._model)
