from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from lookaround.averaging import LogitEnsemble, power, snapshot_weights, uniform_soup
from lookaround.experiment import UsageError
from lookaround.experiment.running import prepare
from lookaround.methods import METHODS, Spec
from lookaround.tasks.base import Minibatch
from lookaround.tasks.vision import load_network
from lookaround.tasks.vision.batches import ImageBatches
from reference.tiny_experiment import a_plan

AVERAGING = [
    "ema",
    "tail",
    "lawa",
    "power-ema",
    "wsm",
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
BESIDE = ("sgd", "swad")
pytestmark = pytest.mark.filterwarnings("ignore:the SWAD window never opened")


def never() -> None:
    return None


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def statistics_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def test_all_of_them_can_be_compared():
    assert {name for name in AVERAGING if "+" not in name} <= set(METHODS)


@pytest.mark.parametrize("method", AVERAGING)
def test_they_consume_the_copies_that_sgd_consumes_at_the_same_cost(start, monkeypatch, method):
    drawn: Counter[tuple[int, int]] = Counter()
    draw = ImageBatches.copy

    def spied(self, position, branch):
        drawn[position, branch] += 1
        return draw(self, position, branch)

    monkeypatch.setattr(ImageBatches, "copy", spied)
    beside = tuple(name for name in BESIDE if name != method)
    start("sgd", folder="sgd", beside=("swad",)).train(never)
    expected = drawn.copy()
    drawn.clear()
    result = start(method, folder="other", beside=beside).train(never)
    assert drawn == expected
    assert set(drawn.values()) == {1}
    assert len(drawn) == result.gradient_evaluations == 2 * 4 * 3
    assert result.forward_passes == ENSEMBLES.get(method, 1)


@pytest.mark.parametrize("method", ["swad", "greedy-soup"])
def test_what_chooses_sees_training_images_that_no_method_trains_on(start, digits, method):
    chooser, other = start(method, folder="a"), start("sgd", folder="b", beside=(method,))
    images, _ = chooser.task.held_out
    pixels = {image.numpy().tobytes() for image in images}
    trained = {image.numpy().tobytes() for image in other.task.data.train_images}
    assert pixels <= {image.numpy().tobytes() for image in digits.train_images}
    assert not pixels & trained
    assert torch.equal(chooser.task.data.train_images, other.task.data.train_images)
    assert start("sgd", folder="c").task.held_out is None


@pytest.mark.parametrize(
    ("part", "said"), [(0.0, "between 0 and 1"), (1.0, "between 0 and 1"), (0.001, "takes 1 to 63")]
)
def test_a_share_of_held_out_images_that_cannot_be_is_a_usage_error(part, said):
    with pytest.raises(UsageError, match=said):
        prepare(a_plan("swad", hold_out=part))


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_folds_are_nested_loops_written_out(start, folds):
    """Of 12 minibatches 6 are SGD; the folds share the other 6 and sample after each minibatch."""
    changes = {"epochs": 3, "width": 2}
    method = {1: "swa", 2: "dswa", 3: "tswa"}[folds]
    found = start(f"{method}:swa_start=0.5,swa_cycle=1,swa_lr=0.3", folder="found", **changes)
    found.train(never)
    setup = start("sgd", folder="plain", **changes).method.setup
    model, inner = setup.model, setup.inner(setup.model)

    def steps(position, lr):
        inner.param_groups[0]["lr"] = lr
        for branch in range(3):
            inner.zero_grad()
            setup.loss(model, setup.batches.copy(position, branch)).backward()
            inner.step()

    for position in range(6):
        steps(position, 0.1 * setup.schedule(position))
    length = 6 // folds
    for fold in range(folds):
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in model.parameters()]
        for position in range(6 + fold * length, 6 + (fold + 1) * length):
            steps(position, 0.1 * 0.3)
            for one, parameter in zip(total, model.parameters(), strict=True):
                one += parameter.detach()
        with torch.no_grad():
            for one, parameter in zip(total, model.parameters(), strict=True):
                parameter.copy_(one / length)
    for parameter, wanted in zip(found.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-5)


def test_ema_is_the_recurrence_over_all_steps(start, monkeypatch):
    training = start("ema:decay=0.9")
    points: list[torch.Tensor] = []
    step = training.method.inner.optimizer.step

    def spied(closure):
        loss = step(closure)
        points.append(training.model[0].weight.detach().double())
        return loss

    monkeypatch.setattr(training.method.inner.optimizer, "step", spied)
    training.train(never)
    mean = points[0]
    for n, point in enumerate(points[1:], start=2):
        mean = mean + max(0.1, n ** (-2 / 3)) * (point - mean)
    torch.testing.assert_close(training.model[0].weight.double(), mean, rtol=1e-5, atol=1e-6)


def test_dart_is_lookaround_with_a_start_and_a_longer_round(start):
    dart, plain = start("dart:start=0.25,k=3", folder="dart"), start("lookaround:start=0.25,k=3", folder="plain")
    assert dart.method.optimizer.param_groups[0]["lookaround_start"] == 2
    dart.train(never)
    plain.train(never)
    assert equal(dart.model.state_dict(), plain.model.state_dict())
    epoch = start("dart", folder="epoch").method
    assert (epoch.optimizer.k, epoch.optimizer.param_groups[0]["lookaround_start"]) == (4, 4)


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
    members = [load_network(tmp_path / "run" / f"member-{j}.safetensors")[0] for j in range(1, count + 1)]
    assert not (tmp_path / "run" / f"member-{count + 1}.safetensors").exists()
    with torch.inference_mode():
        logits = LogitEnsemble(members)(digits.normalize(digits.test_images))
    assert result.metrics["nll"] == pytest.approx(
        nn.functional.cross_entropy(logits, digits.test_labels).item(), rel=1e-5
    )
    left = load_network(tmp_path / "run" / "model.safetensors")[0].state_dict()
    assert equal(left, members[-1 if method == "snapshot-ensemble" else 0].state_dict())


def test_averaged_members_are_swa_of_each_member_alone(start):
    """Its late half begins at minibatch 4 of 8, with a sample every 2 minibatches."""
    late = "swa_start=0.5,swa_cycle=2"
    ensemble = start(f"logit-ensemble+swa:{late}", folder="all")
    ensemble.train(never)
    for j, member in enumerate(ensemble.method.members()):
        alone = start(f"swa:{late}", folder=f"alone-{j}")
        alone.method.inner.turns = lambda minibatch, j=j: [j]
        alone.train(never)
        assert equal(member.state_dict(), alone.model.state_dict())


def test_a_joined_ensemble_gives_each_part_every_other_minibatch(start):
    joined = start("lookaround+logit-ensemble", folder="all")
    joined.train(never)
    parts = start("lookaround", folder="first"), start("logit-ensemble", folder="others")
    for turn, part in enumerate(parts):
        for position in range(turn, 8, 2):
            part.step = position
            part._train([Minibatch(part.batches, position)])
        part.method.finish()
    expected = [parts[0].model, *parts[1].method.members()]
    for member, other in zip(joined.method.members(), expected, strict=True):
        assert equal(member.state_dict(), other.state_dict())


def test_a_joined_ensemble_predicts_before_its_members_have_trained(start):
    result = start("lookaround+logit-ensemble:batch=60").train(never)  # one minibatch an epoch
    assert (result.forward_passes, result.gradient_evaluations) == (4, 6)


@pytest.mark.parametrize(("warmup", "factors"), [(0.0, [1, 1, 1, 1]), (0.5, [0.5, 1, 1, 1]), (1.0, [0.5, 1, 1, 1])])
def test_snapshots_are_taken_where_the_cosine_ends(start, monkeypatch, warmup, factors):
    training = start(f"snapshot-ensemble:cycles=2,warmup={warmup}")
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
    for position in range(8):
        members = training.method.weights()
        if position <= 4:
            assert all(equal(member, members[0]) for member in members)
        training._train([Minibatch(training.batches, position)])
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
        late = ",swa_cycle=1" if method == "swa" else ""
        training = start(f"{method}:norm_stats={choice}{late}", folder=choice)
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
    copies = [training.batches.copy(position, position % 3).inputs for position in range(4)]
    with torch.no_grad():
        training.model(torch.cat(copies))
    hook.remove()
    torch.testing.assert_close(found[2][next(iter(found[2]))], inputs[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert last.isfinite().all()


@pytest.mark.parametrize("method", [*AVERAGING, "lookaround+ema", "lookahead+tail:every=2", "lookaround+sam+swad"])
def test_evaluating_changes_nothing(start, digits, method):
    takes = "norm_stats" in Spec.parse(method).fields()
    joint = "," if ":" in method else ":"
    training = start(f"{method}{joint}norm_stats=reestimate" if takes else method)
    for position in range(4):
        training._train([Minibatch(training.batches, position)])
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with training.method.evaluation() as predict:
        first = predict(training.task.prepare(digits.test_images))
    assert training.model.training
    assert equal(training.model.state_dict(), before)
    with training.method.plain() as predict:
        assert predict is training.model
    with training.method.evaluation() as predict:
        assert torch.equal(predict(training.task.prepare(digits.test_images)), first)


def test_the_tail_is_the_mean_of_the_last_part_of_all_steps(start):
    training = start("tail:fraction=0.25")
    points: list[torch.Tensor] = []
    update = training.method.inner.after_step
    weight = training.model[0].weight
    training.method.inner.after_step = lambda: (update(), points.append(weight.detach().double().clone()))
    training.train(never)
    assert len(points) == 24
    torch.testing.assert_close(weight.double(), torch.stack(points[-6:]).mean(0), rtol=1e-5, atol=1e-6)


def test_snoo_is_outer_nesterov_momentum_written_out(start):
    """Every 3 of 24 steps φ moves by the outer optimizer: b ← 0.8 b + δ, φ ← φ - 0.5 (δ + 0.8 b), with δ the way back to φ."""
    found = start("snoo:k=3,outer_lr=0.5,outer_momentum=0.8", folder="found")
    found.train(never)
    setup = start("sgd", folder="plain").method.setup
    model, inner = setup.model, setup.inner(setup.model)
    weights = list(model.parameters())
    slow, momentum = [w.detach().clone() for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(24):
        position, branch = divmod(step, 3)
        inner.param_groups[0]["lr"] = 0.1 * setup.schedule(position)
        inner.zero_grad()
        setup.loss(model, setup.batches.copy(position, branch)).backward()
        inner.step()
        if step % 3 == 2:
            with torch.no_grad():
                for weight, phi, buffer in zip(weights, slow, momentum, strict=True):
                    way = phi - weight
                    buffer.mul_(0.8).add_(way)
                    weight.copy_(phi.sub_(0.5 * (way + 0.8 * buffer)))
    for parameter, wanted in zip(found.model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-4, atol=1e-5)


def test_diloco_without_momentum_at_rate_one_is_lookaround(start):
    found = start("diloco:k=3,outer_lr=1,outer_momentum=0", folder="diloco")
    wanted = start("lookaround:k=3", folder="lookaround")
    found.train(never)
    wanted.train(never)
    for parameter, expected in zip(found.model.parameters(), wanted.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


def points_of(training) -> list[torch.Tensor]:
    """The first layer's weights after each minibatch of a run that is trained to its end."""
    weight, points = training.model[0].weight, []
    for position in range(training.total):
        training.step = position
        training._train([Minibatch(training.batches, position)])
        points.append(weight.detach().double().clone())
    training.method.finish()
    return [*points, weight.detach().double()]


def test_lawa_is_the_mean_of_the_last_points(start):
    *points, found = points_of(start("lawa:window=3,every=2"))
    torch.testing.assert_close(found, (points[3] + points[5] + points[7]) / 3, rtol=1e-5, atol=1e-6)


def test_the_power_function_ema_weighs_late_points_by_their_rule(start):
    *points, found = points_of(start("power-ema:width=0.2,every=1"))
    weights = snapshot_weights(power(0.2), range(1, 9))
    expected = sum(w * point for w, point in zip(weights, points, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_wsm_stands_in_for_a_decay_over_the_last_part(start):
    *points, found = points_of(start("wsm:shape=linear,fraction=0.5,every=1,schedule=constant"))
    torch.testing.assert_close(found, torch.stack(points[4:]).mean(0), rtol=1e-4, atol=1e-5)


def test_an_average_around_lookaround_is_of_its_averages(start):
    """Of 8 minibatches with k = 2, every second one ends a round: the tail of the last half is the mean of two averages."""
    training = start("lookaround+tail:fraction=0.5,k=2,every=2")
    means: list[torch.Tensor] = []
    weight = training.model[0].weight
    for position in range(8):
        training.step = position
        training._train([Minibatch(training.batches, position)])
        if position % 2 == 1:
            means.append(weight.detach().double().clone())  # the round has ended: the model holds its average
    training.method.finish()
    torch.testing.assert_close(weight.double(), (means[2] + means[3]) / 2, rtol=1e-5, atol=1e-6)


def test_a_compiled_network_can_be_an_ensembles(start, monkeypatch):
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="eager"))
    plain = start("logit-ensemble", folder="plain", epochs=1).train(never)
    fast = start("logit-ensemble", folder="fast", epochs=1, compile=True).train(never)
    assert fast.metrics["nll"] == pytest.approx(plain.metrics["nll"], rel=1e-5)


@pytest.mark.parametrize("method", ["tswa", "snapshot-ensemble"])
def test_a_run_too_short_says_so(start, method):
    with pytest.raises(ValueError, match=r"minibatches"):
        start(f"{method}:batch=60", epochs=1)
