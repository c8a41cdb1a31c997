"""A population of networks is what each of them would be alone; data, scores and choices of the map are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from map_figures import width
from map_of_averages import TRAININGS, Training, best, cell, cooldown, held, lookahead, lookaround, train
from orderings_of_the_papers import inside_rounds
from population import (
    CONDITIONS,
    Condition,
    Copies,
    Population,
    Run,
    gradients,
    normalized,
    parts,
    pretrained,
    scores,
)
from torch import nn
from torch.nn import functional as F

from lookaround.tasks.vision.evaluation import evaluate

CLEAN = CONDITIONS["clean"]


def alone(run: Run, momentum: float, budget: int) -> list[torch.Tensor]:
    """One network, trained with torch alone: SGD with weight decay and clipping, warm-up and cosine."""
    torch.manual_seed(run.seed)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
    passes = budget // 3
    for place, copies in enumerate(Copies(CLEAN, [run.seed], 32, passes, 3)):
        warm = min(1.0, (place + 1) / max(1, passes // 20))
        factor = warm * 0.5 * (1 + math.cos(math.pi * place / passes))
        optimizer.param_groups[0]["lr"] = factor * run.rate * (1 - momentum)
        for images, labels in copies:
            optimizer.zero_grad()
            F.cross_entropy(model(images[0]), labels[0]).backward()
            for weight in model.parameters():
                weight.grad += 5e-4 * weight.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
    layers = model[0], model[2]
    return [tensor.detach() for layer in layers for tensor in (layer.weight.T, layer.bias[None])]


def holding(weights: list[torch.Tensor]) -> Population:
    """A population of one with these weights."""
    model = Population([Run(0.1, 0)])
    with torch.no_grad():
        for own, weight in zip(model.weights, weights, strict=True):
            own.copy_(weight[None])
    return model


def test_a_run_of_a_population_is_the_network_trained_alone():
    runs = [Run(0.4, 3), Run(1.6, 3), Run(0.4, 5)]
    (together,) = [score("test") for _, _, score in train(Training("sgd"), CLEAN, 60, runs, 0.9)]
    for index, run in enumerate(runs):
        model = holding(alone(run, 0.9, 60))
        assert together[index] == pytest.approx(scores(model, parts(CLEAN)["test"])[0], rel=1e-3), run


@pytest.mark.parametrize("training", TRAININGS, ids=lambda training: training.rows[0])
def test_the_runs_of_a_population_never_meet(training):
    runs = [Run(0.8, 1), Run(25.6, 2), Run(0.2, 1)]
    together = {row: score("valid") for row, _, score in train(training, CLEAN, 30, runs, 0.5)}
    own = {row: score("valid") for row, _, score in train(training, CLEAN, 30, runs[:1], 0.5)}
    assert own.keys() == together.keys() == set(training.rows)
    for row in own:
        assert together[row][0] == pytest.approx(own[row][0], rel=1e-4), row


def test_a_rate_far_too_high_stays_finite():
    runs = [Run(1e3, 1)]
    (found,) = [score("valid") for _, _, score in train(Training("sgd"), CLEAN, 60, runs, 0.9)]
    assert math.isfinite(found[0]["nll"])


def test_scores_are_those_of_the_images_task():
    model = Population([Run(0.1, 0), Run(0.1, 1)])
    images, labels = parts(CLEAN)["test"]
    found = scores(model, (images, labels))
    for run in range(2):
        expected = evaluate(
            lambda prepared, run=run: model(prepared.expand(2, -1, -1))[run],
            images,
            labels,
            prepare=normalized,
            batch_size=500,
        )
        assert found[run] == pytest.approx({name: getattr(expected, name) for name in ("top1", "nll", "ece")}, rel=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=lambda condition: condition.name)
def test_no_image_is_both_trained_on_and_judged_by(condition):
    found = parts(condition)
    seen = [{image.numpy().tobytes() for image in images} for images, _ in found.values()]
    assert len(found["train"][1]) == condition.images
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[2]
    assert set(found["test"][1].tolist()) == set(condition.classes)


def test_noise_is_in_the_training_labels_alone():
    clean, noisy = parts(CLEAN), parts(CONDITIONS["noise"])
    changed = (clean["train"][1] != noisy["train"][1]).sum()
    assert 0.85 * 180 < changed <= 180  # of 600, 30 % are drawn anew and a tenth of those stay right
    for part in ("valid", "test"):
        assert torch.equal(clean[part][1], noisy[part][1])


@pytest.mark.parametrize(("copies", "different"), [("independent", 3), ("shared", 1)])
def test_copies_are_of_one_minibatch_or_of_three(copies, different):
    own = Condition("own", copies=copies, augmentations=("none",))
    for three in Copies(own, [7], 32, 2, 3):
        assert len({images.numpy().tobytes() for images, _ in three}) == different


def test_an_epoch_shows_every_image_once():
    own = Condition("own", images=64, augmentations=("none",))
    seen = torch.cat([three[1][0][0] for three in Copies(own, [7], 32, 2, 3)])
    expected = normalized(parts(own)["train"][0])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, expected.tolist()))


def test_fine_tuning_begins_with_a_body_that_tells_other_digits_apart_and_a_new_head():
    model = Population([Run(0.1, 0)], {0: pretrained(0)})
    fresh = Population([Run(0.1, 0)])
    assert torch.equal(model.weights[0][0], pretrained(0)[0])
    assert torch.equal(model.weights[2], fresh.weights[2])
    assert scores(holding(pretrained(0)), parts(Condition("first", classes=(0, 1, 2, 3, 4)))["test"])[0]["top1"] > 90


def test_a_gradient_is_the_clipped_one_times_the_rate():
    model = Population([Run(0.1, 0)])
    with torch.no_grad():
        model.weights[0].mul_(1000)
    copy = next(iter(Copies(CLEAN, [0], 32, 1, 3)))[0]
    gradients(model, copy, torch.tensor([0.25]), torch.tensor([0]))
    norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in model.weights))
    assert norm == pytest.approx(0.25 * 10)


def test_what_is_chosen_has_the_lowest_finite_loss():
    rows = [
        {"row": "a", "momentum": 0.5, "rate": 1, "nll": math.nan},
        {"row": "a", "momentum": 0.9, "rate": 2, "nll": 0.3},
        {"row": "a", "momentum": 0.9, "rate": 4, "nll": 0.2},
        {"row": "b", "momentum": 0.9, "rate": 8, "nll": 0.1},
    ]
    assert best(rows, "a") == (0.9, 4.0)


def test_the_cooldown_is_the_peak_and_then_a_line_to_0():
    factor = cooldown(0.5)
    assert [factor(part) for part in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]


def test_a_cell_is_computed_once_and_its_files_hold_every_setting_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("map_of_averages.RATES", (0.4, 0.8))
    training = Training("lookahead", lookahead(k=5, alpha=0.5))
    cell(training, CLEAN, 6, tmp_path)
    tried, runs, way = (held(tmp_path / name) for name in ("map-tried.csv", "map.csv", "map-way.csv"))
    assert [(row["momentum"], row["rate"]) for row in tried] == [
        ("0.5", "0.4"),
        ("0.5", "0.8"),
        ("0.9", "0.4"),
        ("0.9", "0.8"),
    ]
    assert [row["seed"] for row in runs] == [str(seed) for seed in range(10)]
    assert {row["gradients"] for row in way} == {"3", "6"}
    before = (tmp_path / "map.csv").read_bytes()
    cell(training, CLEAN, 6, tmp_path)
    assert (tmp_path / "map.csv").read_bytes() == before


def test_one_branch_of_lookaround_is_the_inner_optimizer():
    runs = [Run(0.8, 1)]
    own = Training("lookaround", lookaround(branches=1, k=5), branches=1)
    plain = Training("sgd", branches=1)
    a, b = ([score("valid") for _, _, score in train(one, CLEAN, 20, runs, 0.9)] for one in (own, plain))
    assert a == b


def test_the_width_of_the_range_of_rates_is_measured_along_lines_between_them():
    assert width([0, 1, 2, 3], [4.0, 0.0, 1.0, 3.0], 2.0) == 0.5 + 1.5
    assert width([0, 1, 2], [1.0, 0.0, 1.0], 5.0) == 2


def test_branches_are_scored_inside_rounds_beside_their_average(monkeypatch):
    monkeypatch.setattr("orderings_of_the_papers.BUDGET", 60)
    rows = list(inside_rounds(3.2))
    assert len(rows) == 4 * 4 * 10  # rounds of five of twenty passes; three branches and their average; seeds
    assert {row["gradients"] for row in rows} == {12, 27, 42, 57}
    last = {row["who"]: row["nll"] for row in rows if row["seed"] == 0 and row["gradients"] == 57}
    assert len(set(last.values())) == 4
    assert last["average"] < sum(last[f"branch {branch}"] for branch in range(3)) / 3
