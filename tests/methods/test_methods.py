from __future__ import annotations

from collections import Counter

import pytest
import torch

from lookaround.tasks.vision.batches import ImageBatches

ISSUED = ["sgd", "adamw", "muon", "lookahead", "lookaround", "sam", "lookahead+sam", "lookaround+sam"]


def never() -> None:
    return None


@pytest.fixture
def copies(monkeypatch):
    """Every copy that is drawn: its (position, branch), and its pixels."""
    drawn: list[tuple[tuple[int, int], torch.Tensor]] = []
    draw = ImageBatches.copy

    def spied(self, position, branch):
        batch = draw(self, position, branch)
        drawn.append(((position, branch), batch.inputs))
        return batch

    monkeypatch.setattr(ImageBatches, "copy", spied)
    return drawn


@pytest.mark.parametrize("copies_are", ["shared", "independent"])
@pytest.mark.parametrize("method", ISSUED)
def test_every_method_consumes_every_copy_of_every_minibatch_once(start, copies, method, copies_are):
    start("sgd", folder="sgd", copies=copies_are).train(never)
    expected, copies[:] = list(copies), []
    training = start(method, folder="other", copies=copies_are)
    training.train(never)
    minibatches = 4 if "sam" in method else 8  # a step of sam costs two gradients
    keys = [key for key, _ in copies]
    assert Counter(keys) == Counter((position, branch) for position in range(minibatches) for branch in range(3))
    for branch in range(3):
        assert [position for position, of in keys if of == branch] == list(range(minibatches))
    wanted = dict(expected)
    assert all(torch.equal(images, wanted[key]) for key, images in copies)
    assert (training.method.cost.gradients, training.method.cost.units) == (24, 360)
    assert training.method.forward_passes == 1


@pytest.mark.parametrize(
    ("method", "minibatches", "size", "spent"),
    [
        ("sgd", 8, 15, 360),
        ("lookaround:batch=1/d", 24, 5, 360),
        ("sgd:batch=16", 7, 16, 336),
        ("lookaround:branches=2", 12, 15, 360),
        ("lookahead+sam:batch=30", 2, 30, 360),
        ("lbfgs:max_iter=2", 4, 15, None),
    ],
)
def test_every_method_spends_the_budget_and_no_more(start, method, minibatches, size, spent):
    training = start(method)
    training.train(never)
    assert (training.total, training.batches.units) == (minibatches, size)
    assert training.method.cost.units == (spent or training.method.cost.units) <= 360


def test_with_a_part_of_the_batch_a_branch_takes_as_many_steps_as_sgd(start):
    sgd, lookaround = start("sgd"), start("lookaround:batch=1/d")
    assert lookaround.total == sgd.total * sgd.batches.branches


@pytest.mark.parametrize("method", ISSUED)
def test_every_method_starts_from_the_same_weights(start, method):
    first, second = start("sgd", folder="a").model, start(method, folder="b").model
    other = start(method, seed=1, folder="c").model
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(other[0].weight, second[0].weight)


@pytest.mark.parametrize("method", ISSUED)
def test_inside_evaluation_the_model_is_in_evaluation_mode_with_the_final_weights(start, method):
    training = start(method)
    training.train(never)
    final = [parameter.detach().clone() for parameter in training.model.parameters()]
    with training.method.evaluation():
        assert not training.model.training
        assert all(map(torch.equal, training.model.parameters(), final))
    assert training.model.training


def test_the_learning_rate_follows_the_schedule_from_each_optimizers_own_peak(start):
    for name, peak in (("sgd", 0.1), ("adamw", 1e-3), ("lookaround+sam:lr=0.3", 0.3), ("lookahead:inner=adamw", 1e-3)):
        method = start(name).method
        method.scale_learning_rate(0.5)
        method.scale_learning_rate(0.1)
        assert [group["lr"] for group in method.optimizer.param_groups] == [pytest.approx(0.1 * peak)]


def test_degenerate_settings_are_sgd_bit_for_bit(start):
    """α = 1 writes back what is there, and one branch that averages with itself is its inner optimizer."""
    one = {"branches": 1, "augmentations": ("shift",)}
    reference = start("sgd", folder="sgd", **one)
    reference.train(never)
    for method in ("lookahead:alpha=1", "lookaround:alpha=1"):
        training = start(method, folder=method[:9], **one)
        training.train(never)
        found, expected = training.model.state_dict(), reference.model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_alpha_that_fades_is_each_averages_own(start):
    fading = start("lookahead:k=2,alpha=1,alpha_end=0.2,alpha_power=2", folder="fading")
    seen = []
    fading.method.optimizer.register_step_post_hook(lambda optimizer, *_: seen.append(optimizer.alpha))
    fading.train(never)
    expected = [1 - 0.8 * (position / 8) ** 2 for position in range(8) for _ in range(3)]
    assert seen == pytest.approx(expected)
    still, alike = (
        start("lookahead:k=2,alpha=0.5", folder="still"),
        start("lookahead:k=2,alpha_end=0.5", folder="alike"),
    )
    still.train(never)
    alike.train(never)
    states = still.model.state_dict(), alike.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_adaptive_alpha_does_not_fade(start):
    with pytest.raises(ValueError, match="alpha_end is where a fixed alpha goes"):
        start("lookahead:alpha=adaptive,alpha_end=0.5")
