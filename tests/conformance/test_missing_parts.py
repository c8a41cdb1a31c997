"""Contract 4 and 9: a checkpoint with any one of a wrapper's tensors missing, or of another shape, is refused and changes nothing."""

import copy

import pytest
import torch
from torch.optim import Adam

from conformance.table import WRAPPERS, case, momentum, same

MAKES = {"momentum": momentum, "adam": lambda params: Adam(params, lr=0.01)}
KEEPING = [name for name in WRAPPERS if name not in ("sam", "asam", "lookahead, alpha 1")]


def own(state_dict):
    """(parameter, key) of every tensor that is a wrapper's."""
    return [
        (i, key)
        for i, entry in state_dict["state"].items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor) and str(key).startswith(("lookahead.", "lookaround."))
    ]


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("name", KEEPING)
def test_any_one_tensor_missing_is_refused(name, make):
    saved = copy.deepcopy(case(name, MAKES[make]).train(5).optimizer.state_dict())
    assert own(saved)
    target = case(name, MAKES[make], seed=1).train(3)
    before = copy.deepcopy([target.model.state_dict(), target.optimizer.state_dict()])
    accepted = []
    for i, key in own(saved):
        incomplete = {**saved, "state": {j: dict(entry) for j, entry in saved["state"].items()}}
        del incomplete["state"][i][key]
        try:
            target.optimizer.load_state_dict(incomplete)
            accepted.append((i, key))
        except ValueError:
            pass
    assert accepted == []
    assert same(before, [target.model.state_dict(), target.optimizer.state_dict()])


@pytest.mark.parametrize("name", KEEPING)
def test_the_message_names_what_is_missing(name):
    saved = copy.deepcopy(case(name).train(5).optimizer.state_dict())
    i, key = own(saved)[0]
    del saved["state"][i][key]
    with pytest.raises(ValueError, match=key.split(".")[1]):
        case(name).optimizer.load_state_dict(saved)


@pytest.mark.parametrize("name", KEEPING)
def test_any_one_weight_of_another_shape_is_refused(name):
    saved = copy.deepcopy(case(name).train(5).optimizer.state_dict())
    target = case(name, seed=1).train(3)
    before = copy.deepcopy([target.model.state_dict(), target.optimizer.state_dict()])
    shapes = [p.shape for p in target.model.parameters()]
    for i, key in own(saved):
        value = saved["state"][i][key]
        if value.shape == shapes[i] and "inner" not in key:  # an inner optimizer's may have any shape
            changed = {**saved, "state": {j: dict(entry) for j, entry in saved["state"].items()}}
            changed["state"][i][key] = torch.zeros(*value.shape, 2)
            with pytest.raises(ValueError, match="shape"):
                target.optimizer.load_state_dict(changed)
    assert same(before, [target.model.state_dict(), target.optimizer.state_dict()])
