from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from lookaround.averaging import LogitEnsemble, uniform_soup
from lookaround.experiment import UsageError, load_network, train
from lookaround.experiment.batches import Batches
from lookaround.experiment.methods import METHODS
from lookaround.experiment.methods.registry import sgd
from lookaround.experiment.records import METRICS, read_records
from lookaround.experiment.schedule import learning_rate_factor

AVERAGING = [
    "ema",
    "swa",
    "dswa",
    "tswa",
    "swad",
    "dart",
    "lookahead+swa",
    "lookaround+swa",
    "logit-ensemble",
    "logit-ensemble+swa",
    "lookaround+logit-ensemble",
    "snapshot-ensemble",
    "uniform-soup",
    "greedy-soup",
]
ENSEMBLES = {"logit-ensemble": 3, "logit-ensemble+swa": 3, "lookaround+logit-ensemble": 4, "snapshot-ensemble": 4}
COMPARED = {"methods": ("sgd", "swad")}
pytestmark = pytest.mark.filterwarnings("ignore:the SWAD window never opened")


def never() -> None:
    return None


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def statistics_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def test_all_of_them_can_be_compared():
    assert list(METHODS)[7:] == AVERAGING


@pytest.mark.parametrize("method", AVERAGING)
def test_they_consume_the_copies_that_sgd_consumes_at_the_same_cost(start, monkeypatch, method):
    drawn: Counter[tuple[int, int, int]] = Counter()
    draw = Batches.augmented

    def spied(self, minibatch, branch):
        drawn[minibatch.epoch, minibatch.index, branch] += 1
        return draw(self, minibatch, branch)

    monkeypatch.setattr(Batches, "augmented", spied)
    start("sgd", folder="sgd", **COMPARED).train(never)
    expected = drawn.copy()
    drawn.clear()
    result = start(method, folder="other", **COMPARED).train(never)
    assert drawn == expected
    assert set(drawn.values()) == {1}
    assert len(drawn) == result.gradient_evaluations == 2 * 4 * 3
    assert result.forward_passes == ENSEMBLES.get(method, 1)


@pytest.mark.parametrize("method", ["swad", "greedy-soup"])
def test_what_chooses_sees_training_images_that_no_method_trains_on(start, digits, method):
    chooser = start(method, folder="a", methods=("sgd", method))
    other = start("sgd", folder="b", methods=("sgd", method))
    images, _ = chooser.held_out
    pixels = {image.numpy().tobytes() for image in images}
    trained = {image.numpy().tobytes() for image in other.data.train_images}
    assert pixels <= {image.numpy().tobytes() for image in digits.train_images}
    assert not pixels & trained
    assert torch.equal(chooser.data.train_images, other.data.train_images)
    assert start("sgd", folder="c").held_out is None


def test_a_share_of_held_out_images_that_cannot_be_is_a_usage_error(tiny, tmp_path):
    from dataclasses import replace

    with pytest.raises(UsageError, match=r"fraction in \(0, 1\)"):
        train(replace(tiny, methods=("swad",), hold_out=0.0), tmp_path)


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_folds_are_nested_loops_written_out(start, folds):
    """Of 12 minibatches 6 are SGD; the folds share the other 6 and sample after each minibatch."""
    changes = {"epochs": 3, "swa_start": 0.5, "swa_cycle": 1, "swa_lr": 0.3, "width": 2}
    method = {1: "swa", 2: "dswa", 3: "tswa"}[folds]
    found = start(method, folder="found", **changes)
    found.train(never)
    plain = start("sgd", folder="plain", **changes)
    model, inner = plain.model, sgd(plain.method.setting)
    minibatches = [minibatch for epoch in range(3) for minibatch in plain.batches.epoch(epoch)]

    def steps(minibatch, lr):
        inner.param_groups[0]["lr"] = lr
        for branch in range(3):
            inner.zero_grad()
            plain._loss(plain.model, minibatch.copy(branch), minibatch.labels).backward()
            inner.step()

    for index, minibatch in enumerate(minibatches[:6]):
        steps(minibatch, 0.1 * learning_rate_factor(plain.config, index, 4))
    length = 6 // folds
    for fold in range(folds):
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in model.parameters()]
        for minibatch in minibatches[6 + fold * length : 6 + (fold + 1) * length]:
            steps(minibatch, 0.1 * 0.3)
            for one, parameter in zip(total, model.parameters(), strict=True):
                one += parameter.detach()
        with torch.no_grad():
            for one, parameter in zip(total, model.parameters(), strict=True):
                parameter.copy_(one / length)
    for parameter, wanted in zip(found.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-5)


def test_ema_is_the_recurrence_over_all_steps(start, monkeypatch):
    training = start("ema", ema_decay=0.9)
    points: list[torch.Tensor] = []
    step = training.method.optimizer.step

    def spied(closure):
        loss = step(closure)
        points.append(training.model[0].weight.detach().double())
        return loss

    monkeypatch.setattr(training.method.optimizer, "step", spied)
    training.train(never)
    mean = points[0]
    for n, point in enumerate(points[1:], start=2):
        mean = mean + max(0.1, n ** (-2 / 3)) * (point - mean)
    torch.testing.assert_close(training.model[0].weight.double(), mean, rtol=1e-5, atol=1e-6)


def test_dart_is_lookaround_with_a_start_and_a_longer_round(start):
    dart, plain = start("dart", folder="dart", dart_start=0.25, dart_k=3), start("lookaround", folder="plain", k=3)
    plain.method.optimizer = type(plain.method.optimizer)(
        sgd(plain.method.setting), branches=3, k=3, model=plain.model, start=2
    )
    dart.train(never)
    plain.train(never)
    assert equal(dart.model.state_dict(), plain.model.state_dict())


def test_member_j_trains_on_copy_j_alone(start):
    ensemble = start("logit-ensemble", folder="all")
    ensemble.train(never)
    for j, member in enumerate(ensemble.method.members()):
        alone = start("sgd", folder=f"alone-{j}")
        alone.method.turns = lambda minibatch, j=j: [j]
        alone.train(never)
        assert equal(member.state_dict(), alone.model.state_dict())


@pytest.mark.parametrize(("method", "count"), ENSEMBLES.items())
def test_the_members_files_are_the_ensemble(start, tmp_path, digits, method, count):
    training = start(method)
    result = training.train(never)
    members = [load_network(tmp_path / "run" / f"member-{j}.safetensors")[0] for j in range(count)]
    assert not (tmp_path / "run" / f"member-{count}.safetensors").exists()
    with torch.inference_mode():
        logits = LogitEnsemble(members)(digits.normalize(digits.test_images))
    assert result.nll == pytest.approx(nn.functional.cross_entropy(logits, digits.test_labels).item(), rel=1e-5)
    left = load_network(tmp_path / "run" / "model.safetensors")[0].state_dict()
    assert equal(left, members[-1 if method == "snapshot-ensemble" else 0].state_dict())


def test_averaged_members_are_swa_of_each_member_alone(start):
    """Its late half begins at minibatch 4 of 8, with a sample every 2 minibatches."""
    changes = {"swa_start": 0.5, "swa_cycle": 2}
    ensemble = start("logit-ensemble+swa", folder="all", **changes)
    ensemble.train(never)
    for j, member in enumerate(ensemble.method.members()):
        alone = start("swa", folder=f"alone-{j}", **changes)
        alone.method.inner.turns = lambda minibatch, j=j: [j]
        alone.train(never)
        assert equal(member.state_dict(), alone.model.state_dict())


def test_a_joined_ensemble_gives_each_part_every_other_minibatch(start):
    joined = start("lookaround+logit-ensemble", folder="all")
    joined.train(never)
    parts = start("lookaround", folder="first"), start("logit-ensemble", folder="others")
    for turn, part in enumerate(parts):
        for epoch in range(2):
            for minibatch in part.batches.epoch(epoch):
                if minibatch.position % 2 == turn:
                    part.step = minibatch.position
                    part._train_minibatch(minibatch)
        part.method.finish()
    expected = [parts[0].model, *parts[1].method.members()]
    for member, other in zip(joined.method.members(), expected, strict=True):
        assert equal(member.state_dict(), other.state_dict())


def test_a_joined_ensemble_predicts_before_its_members_have_trained(start):
    result = start("lookaround+logit-ensemble", batch_size=64, train_images=64).train(never)  # one minibatch an epoch
    assert (result.forward_passes, result.gradient_evaluations) == (4, 6)


@pytest.mark.parametrize(("warmup", "factors"), [(0.0, [1, 1, 1, 1]), (0.5, [0.5, 1, 1, 1]), (1.0, [0.5, 1, 1, 1])])
def test_snapshots_are_taken_where_the_cosine_ends(start, monkeypatch, warmup, factors):
    training = start("snapshot-ensemble", snapshots=2, warmup_epochs=warmup)
    rates: list[float] = []
    train_minibatch = training.method.train_minibatch

    def spied(minibatch):
        rates.append(training.method.optimizer.param_groups[0]["lr"])
        return train_minibatch(minibatch)

    monkeypatch.setattr(training.method, "train_minibatch", spied)
    training.train(never)
    cycle = [0.1, 0.1 * (0.5 + 0.5**1.5), 0.05, 0.1 * (0.5 - 0.5**1.5)]
    assert rates == pytest.approx(2 * [rate * factor for rate, factor in zip(cycle, factors, strict=True)])
    assert len(training.method.members()) == 2


def test_uniform_soup_is_the_mean_of_members_that_part_at_its_start(start):
    training = start("uniform-soup")
    for epoch in range(2):
        for minibatch in training.batches.epoch(epoch):
            members = training.method.weights()
            if minibatch.position <= 4:
                assert all(equal(member, members[0]) for member in members)
            training._train_minibatch(minibatch)
    members = training.method.weights()
    assert not equal(members[0], members[1])
    training.method.finish()
    assert equal(training.model.state_dict(), uniform_soup(members))


def test_greedy_soup_keeps_a_member_only_if_held_out_images_allow_it(start, monkeypatch):
    start("greedy-soup").train(never)
    again = start("greedy-soup")
    members = again.method.weights()
    scores = iter([3.0, 5.0, 4.0, 4.9, 5.0])
    monkeypatch.setattr(again.method, "_score", lambda weights: next(scores))
    soup = again.method.cook(members)
    assert equal(soup, uniform_soup([members[1], members[0]]))


@pytest.mark.parametrize("method", ["lookaround", "swa", "dart", "ema", "uniform-soup", "greedy-soup"])
def test_norm_statistics_follow_the_one_option(start, digits, method):
    ended = {}
    for choice in ("average", "copy", "reestimate"):
        training = start(method, folder=choice, norm_stats=choice, swa_cycle=1)
        training.train(never)
        ended[choice] = training
    parameters = [dict(training.model.named_parameters()) for training in ended.values()]
    if method != "greedy-soup":  # it may choose otherwise with other statistics
        assert equal(parameters[0], parameters[1])
        assert equal(parameters[0], parameters[2])
    found = [statistics_of(training.model) for training in ended.values()]
    if method != "greedy-soup":
        assert not equal(found[0], found[1])
    training, last = ended["reestimate"], next(reversed(found[2].values()))
    inputs = []
    norm = next(module for module in training.model.modules() if isinstance(module, nn.BatchNorm2d))
    hook = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    copies = [minibatch.copy(minibatch.index % 3) for minibatch in training.batches.epoch(0)]
    with torch.no_grad():
        training.model(torch.cat(copies))
    hook.remove()
    torch.testing.assert_close(found[2][next(iter(found[2]))], inputs[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert last.isfinite().all()


@pytest.mark.parametrize("method", AVERAGING)
def test_evaluating_changes_nothing(start, method):
    training = start(method, norm_stats="reestimate")
    for minibatch in training.batches.epoch(0):
        training._train_minibatch(minibatch)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with training.method.evaluation() as predict:
        first = predict(training.batches.prepare(training.data.test_images))
    assert training.model.training
    assert equal(training.model.state_dict(), before)
    with training.method.evaluation() as predict:
        assert torch.equal(predict(training.batches.prepare(training.data.test_images)), first)


def test_killed_three_times_each_method_ends_in_the_same_bits(tmp_path):
    """Real processes really killed, in `lookaround train` with all methods, each in its first, a middle and its last minibatch."""
    words = ["train", "--train-images", "64", "--test-images", "30", "--batch-size", "15", "--epochs", "2"]
    words += ["--width", "4", "--k", "3", "--device", "cpu", "--checkpoint-every", "1", "--methods", *METHODS]
    # By the last death every average has samples, and every fold but the last has ended.
    words += ["--swa-start", "0.25", "--swa-cycle", "1", "--swad-every", "1", "--swad-converge", "1"]
    folders = [tmp_path / "whole", tmp_path / "killed"]
    script = [sys.executable, str(Path(__file__).with_name("dying.py")), *map(str, folders), *words]
    ran = subprocess.run(script, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"{3 * len(METHODS)} 0", ran.stderr
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors"))
    assert len(files) == len(METHODS) + sum(ENSEMBLES.values())
    for file in files:
        assert (folders[1] / file).read_bytes() == (folders[0] / file).read_bytes(), file
    for method in METHODS:
        found, expected = (read_records(folder / method / "seed-0" / METRICS) for folder in folders[::-1])
        assert [{**record, "seconds": 0} for record in found] == [{**record, "seconds": 0} for record in expected]


def test_a_compiled_network_can_be_an_ensembles(start, monkeypatch):
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="eager"))
    plain = start("logit-ensemble", folder="plain", epochs=1).train(never)
    assert start("logit-ensemble", folder="fast", epochs=1, compile=True).train(never).nll == pytest.approx(
        plain.nll, rel=1e-5
    )


@pytest.mark.parametrize("method", ["tswa", "snapshot-ensemble"])
def test_a_run_too_short_says_so(start, method):
    with pytest.raises(ValueError, match=r"minibatches"):
        start(method, epochs=1, batch_size=64)
