"""What replica groups that come and go say where something is missing or does not go together, without torchft."""

import sys
import warnings
from datetime import timedelta
from types import ModuleType

import pytest
import torch
from replica_groups import Fake, Lighthouse, run
from replica_reference import D, K, network, place, same, sgd, turn
from replica_trainings import LIMIT, build, state, together

from lookaround import Lookaround
from lookaround.distributed import LostReplicasError, join_replicas


def one(lighthouse, least=1, limit=LIMIT, branches=D, name="a"):
    model = network()
    manager = Fake(lighthouse, name, least)
    return model, Lookaround(sgd(model.parameters()), branches, K, model=model, replicas=manager, time_limit=limit)


def test_no_quorum_within_the_limit_is_an_error_that_says_how_many_it_takes():
    _, optimizer = one(Lighthouse(2), least=2, limit=timedelta(seconds=0.1))
    with pytest.raises(
        LostReplicasError, match=r"no quorum for the start within 0.1 s: it takes at least 2 replica groups"
    ):
        next(optimizer.around())


def test_too_few_for_a_commit_are_an_error_within_the_limit():
    lighthouse = Lighthouse(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = run(lighthouse, {"a": lambda own: next(one(lighthouse, 2, timedelta(seconds=0.1))[1].around())})
    assert isinstance(ends["a"], LostReplicasError)
    assert "times in 0.1 s the start was not committed: 1 replica groups came, it takes at least 2" in str(ends["a"])
    assert "it is taken again (try 2)" in str(caught[1].message)


def test_more_replica_groups_than_branches_are_refused():
    lighthouse = Lighthouse(2)

    def training(own):
        _, optimizer = one(lighthouse, branches=1, name=own)
        return next(optimizer.around())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = run(lighthouse, dict.fromkeys("ab", training))
    assert ends["a"] == 0
    assert isinstance(ends["b"], LostReplicasError)
    assert "one of 2 replica groups for branches=1" in str(ends["b"])


def test_a_step_outside_of_around_is_refused_as_its_gradient_may_be_of_other_weights():
    _, optimizer = one(Lighthouse(1))
    with pytest.raises(ValueError, match=r"outside of a loop over around\(\)"):
        optimizer.step()


def test_an_average_to_look_at_in_the_middle_of_a_round_is_refused():
    model, optimizer = one(Lighthouse(1), branches=2)
    around = optimizer.around()
    with pytest.warns(RuntimeWarning, match="branch 1 did not come to the start"):
        turn(model, optimizer, next(around), 0)
    assert list(around) == []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"call average\(\) first"), optimizer.averaged():
        pass
    same(model.state_dict(), before)
    optimizer.average()
    with optimizer.averaged():
        pass


def test_restart_is_a_meeting_too():
    lighthouse = Lighthouse(2)

    def training(own):
        model, optimizer = build(Fake(lighthouse, own), branches=2)
        for step in range(K + 1):
            for branch in optimizer.around():
                turn(model, optimizer, branch, step)
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(0.5)
        optimizer.restart()
        assert place(optimizer) == (2, 0)
        for step in range(K):
            for branch in optimizer.around():
                turn(model, optimizer, branch, step)
        return state(model, optimizer)["model"]

    said, ends = together(lighthouse, dict.fromkeys("ab", training))
    assert said == []
    same(ends["a"], ends["b"])


def test_rounds_that_do_different_things_are_refused():
    lighthouse = Lighthouse(2)

    def training(own):
        model, optimizer = build(Fake(lighthouse, own), branches=2)
        for branch in optimizer.around():
            turn(model, optimizer, branch, 0)
        (optimizer.average if own == "a" else optimizer.restart)()

    ends = run(lighthouse, dict.fromkeys("ab", training))
    assert "the replica groups differ in the kind of meeting ([1, 2] in their order)" in str(ends["a"])


def test_what_does_not_go_together_is_refused():
    params = [torch.nn.Parameter(torch.zeros(1))]
    manager = Fake(Lighthouse(1), "a")
    for setting in ({"start": 2}, {"wire": "int8"}, {"mesh": 3}, {"overlap": 1}):
        ((name, value),) = setting.items()
        with pytest.raises(ValueError, match=f"{name}={value!r} and replicas do not go together"):
            Lookaround(torch.optim.SGD(params, lr=0.1), replicas=manager, **setting)
    with pytest.raises(TypeError, match="replicas has to be a torchft Manager, got 3"):
        Lookaround(torch.optim.SGD(params, lr=0.1), replicas=3)
    with pytest.raises(ValueError, match="time_limit has to be positive"):
        Lookaround(torch.optim.SGD(params, lr=0.1), replicas=manager, time_limit=timedelta(0))
    manager._use_async_quorum = True
    with pytest.raises(ValueError, match="use_async_quorum=False"):
        Lookaround(torch.optim.SGD(params, lr=0.1), replicas=manager)


def test_without_torchft_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchft", None)
    with pytest.raises(ImportError, match=r"pip install 'lookaround\[ft\]'"):
        join_replicas("a")


def test_joining_says_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchft", ModuleType("torchft"))
    for name in ("REPLICA_GROUP_ID", "TORCHFT_LIGHTHOUSE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="a replica group needs a name of its own"):
        join_replicas()
    with pytest.raises(ValueError, match="least has to be at least 1, got 0"):
        join_replicas("a", least=0)
    with pytest.raises(ValueError, match=r"torchft_lighthouse --min_replicas 2"):
        join_replicas("a", least=2)
