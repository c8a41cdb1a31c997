"""Ensembles of predictions, and the snapshots of cosine warm restarts."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, StepLR

from lookaround.averaging import LogitEnsemble, SnapshotCollector
from lookaround.averaging import ensemble as ensemble_module


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5)).eval()


@pytest.mark.parametrize("batched", [False, True])
def test_the_mean_of_logits_or_of_probabilities(batched):
    models, images = [net(i) for i in range(4)], torch.randn(7, 1, 4, 4)
    logits = torch.stack([m(images) for m in models])
    ensemble = LogitEnsemble(models, batched=batched).eval()
    torch.testing.assert_close(ensemble(images), logits.mean(0))
    assert ensemble.forward_passes == 4
    probabilities = LogitEnsemble(models, average="probabilities", batched=batched).eval()
    torch.testing.assert_close(probabilities(images).exp(), logits.softmax(-1).mean(0))


def load_into_the_ensemble(ensemble):
    ensemble.load_state_dict({name: value * 2 for name, value in ensemble.state_dict().items()})


def load_into_a_member(ensemble):
    ensemble.members[1].load_state_dict(net(9).state_dict())


def assign_to_a_member(ensemble):
    ensemble.members[1].load_state_dict(net(9).state_dict(), assign=True)


def write_in_place(ensemble):
    with torch.no_grad():
        ensemble.members[2][3].bias.add_(10)


def write_to_a_buffer(ensemble):
    ensemble.members[0][1].running_mean.fill_(3)


def replace_a_member(ensemble):
    ensemble.members[0] = net(9)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize(
    "change",
    [
        load_into_the_ensemble,
        load_into_a_member,
        assign_to_a_member,
        write_in_place,
        write_to_a_buffer,
        replace_a_member,
        nn.Module.double,
        lambda ensemble: ensemble.double().float(),
        lambda ensemble: ensemble.to(torch.bfloat16).double(),
    ],
)
def test_a_batched_ensemble_follows_its_members(change, average):
    ensemble = LogitEnsemble([net(i) for i in range(3)], average=average, batched=True).eval()
    images = torch.randn(7, 1, 4, 4)
    ensemble(images)
    change(ensemble)
    images = images.to(next(ensemble.parameters()).dtype)
    found = ensemble(images)
    torch.testing.assert_close(found, LogitEnsemble(ensemble.members, average=average).eval()(images))
    assert torch.equal(found, LogitEnsemble(ensemble.members, average=average, batched=True).eval()(images))


def test_a_batched_ensemble_stacks_its_members_only_when_they_change(monkeypatch):
    stacked = []
    stack = ensemble_module.stack_module_state
    monkeypatch.setattr(ensemble_module, "stack_module_state", lambda m: stacked.append(1) or stack(m))
    ensemble = LogitEnsemble([net(i) for i in range(3)], batched=True).eval()
    for _ in range(3):
        ensemble(torch.randn(2, 1, 4, 4))
    assert len(stacked) == 1
    write_in_place(ensemble)
    for _ in range(3):
        ensemble(torch.randn(2, 1, 4, 4))
    assert len(stacked) == 2
    ensemble.members[0] = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with pytest.raises(ValueError, match="member 1 of the batched ensemble does not match"):
        ensemble(torch.randn(2, 1, 4, 4))


def test_a_copy_of_a_batched_ensemble_follows_its_own_members():
    ensemble = LogitEnsemble([net(i) for i in range(2)], batched=True).eval()
    images = torch.randn(2, 1, 4, 4)
    before, other = ensemble(images), copy.deepcopy(ensemble)
    other.members[0].load_state_dict(net(9).state_dict())
    torch.testing.assert_close(other(images), LogitEnsemble([net(9), net(1)]).eval()(images))
    assert torch.equal(ensemble(images), before)


def test_members_made_in_inference_mode_can_be_batched():
    with torch.inference_mode():
        ensemble = LogitEnsemble([net(i) for i in range(2)], batched=True).eval()
        images = torch.randn(2, 1, 4, 4)
        torch.testing.assert_close(ensemble(images), (net(0)(images) + net(1)(images)) / 2)


def test_members_may_differ_unless_they_are_batched():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    images = torch.randn(2, 1, 4, 4)
    mixed = LogitEnsemble([net(0), wide])
    torch.testing.assert_close(mixed.eval()(images), (net(0)(images) + wide(images)) / 2)
    with pytest.raises(ValueError, match=r"member 1 of the batched ensemble does not match: missing: 0\.weight"):
        LogitEnsemble([net(0), wide], batched=True)


def test_mistakes_are_errors():
    with pytest.raises(ValueError, match="at least one model"):
        LogitEnsemble([])
    with pytest.raises(ValueError, match="got 'votes'"):
        LogitEnsemble([net(0)], average="votes")
    optimizer = torch.optim.SGD(net(0).parameters(), lr=0.1)
    with pytest.raises(TypeError, match="got StepLR"):
        SnapshotCollector(net(0), StepLR(optimizer, 1))
    for keep in (0, 1.5):
        with pytest.raises(
            ValueError, match=f"keep must be a whole number of at least 1, got {keep}; None keeps all snapshots"
        ):
            SnapshotCollector(net(0), CosineAnnealingWarmRestarts(optimizer, 2), keep=keep)


def training(t_0=2, t_mult=1, **options):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, t_0, t_mult)
    return model, optimizer, scheduler, SnapshotCollector(model, scheduler, **options)


def advance(model, optimizer, scheduler, collector, steps, fraction=None):
    collected = []
    for step in steps:
        nn.init.constant_(model[0].weight, float(step))
        optimizer.step()
        scheduler.step(step * fraction) if fraction else scheduler.step()
        if collector.step():
            collected.append(step)
    return collected


@pytest.mark.parametrize(
    ("t_0", "t_mult", "fraction", "expected"),
    [(2, 1, None, [2, 4, 6, 8]), (1, 1, None, list(range(1, 9))), (2, 2, None, [2, 6]), (1, 1, 0.25, [4, 8])],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_members_are_collected_at_each_restart(t_0, t_mult, fraction, expected):
    parts = training(t_0, t_mult)
    assert advance(*parts, range(1, 9), fraction) == expected
    assert [s["0.weight"][0, 0].item() for s in parts[-1].snapshots] == expected
    assert len(parts[-1]) == parts[-1].ensemble().forward_passes == len(expected)


def test_the_ensemble_holds_copies_and_keep_drops_the_oldest():
    model, optimizer, scheduler, collector = training(keep=2, offload=True)
    assert advance(model, optimizer, scheduler, collector, range(1, 7)) == [2, 4, 6]
    collector.collect()
    ensemble = collector.ensemble()
    assert [m[0].weight[0, 0].item() for m in ensemble.members] == [6, 6]
    nn.init.zeros_(model[0].weight)
    assert ensemble.members[0][0].weight[0, 0] == 6
    assert set(collector.snapshots[0]) == set(model.state_dict())


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_snapshots_resume_bit_for_bit(cut):
    parts = training()
    advance(*parts, range(1, 7))
    model, optimizer, scheduler, collector = training()
    advance(model, optimizer, scheduler, collector, range(1, cut + 1))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict(), collector.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    resumed = training()
    for target, state in zip(resumed[1:], states, strict=True):
        target.load_state_dict(state)
    advance(*resumed, range(cut + 1, 7))
    assert [s["0.weight"][0, 0].item() for s in resumed[-1].snapshots] == [2, 4, 6]
    bad = copy.deepcopy(collector.state_dict())
    bad["snapshots"].append({"0.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"missing: 0\.bias"):
        resumed[-1].load_state_dict(bad)
    with pytest.raises(ValueError, match="not a state"):
        resumed[-1].load_state_dict({"snapshots": []})
    assert len(resumed[-1]) == 3


@pytest.mark.parametrize("training", [True, False])
def test_a_new_ensemble_runs_its_members_as_they_are_batched_or_not(training):
    members = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train(training) for _ in range(2)]
    inputs = torch.randn(5, 3)
    expected = sum(copy.deepcopy(member)(inputs) for member in members) / 2
    for batched in (False, True):
        ensemble = LogitEnsemble(copy.deepcopy(members), batched=batched)
        assert ensemble.training == training
        torch.testing.assert_close(ensemble(inputs), expected)


def test_a_call_without_a_step_of_the_scheduler_collects_nothing():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=3)
    collector = SnapshotCollector(model, scheduler)
    collected = []
    for _ in range(6):
        for _ in range(4):
            optimizer.step()
            collected.append(collector.step())
        scheduler.step()
        collected.append(collector.step())
    assert [i for i, did in enumerate(collected) if did] == [14, 29]
    assert len(collector) == 2
