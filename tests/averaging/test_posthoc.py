"""Averages made after the training, against the points of the run: stored, weighted by their profile, and summed."""

import copy
import json
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from lookaround.averaging import Profile, RunningAverage, exponential, posthoc_weights, power, synthesize
from lookaround.averaging.power_rule import exponent
from reference.walks import net, walk

PROFILES = st.builds(Profile, st.floats(0, 40), st.integers(1, 50))


def share(profile, i):
    """The weight of the i-th point: its part of the integral of the profile."""
    if i > profile.points:
        return 0.0
    return (i / profile.points) ** (profile.gamma + 1) - ((i - 1) / profile.points) ** (profile.gamma + 1)


def on_a_grid(profile, longest, least=20_000):
    """The profile as a density on a fine grid, whose cells end where profiles do: at whole points."""
    cells = longest * math.ceil(least / longest)
    edges = torch.linspace(0, longest, cells + 1, dtype=torch.float64)
    mass = (edges.clamp(max=profile.points) / profile.points) ** (profile.gamma + 1)
    return mass.diff() / (longest / cells)


@given(st.lists(PROFILES, min_size=1, max_size=6, unique=True), PROFILES)
@settings(max_examples=60, deadline=None, derandomize=True)
@example(stored=[Profile(25.0, 1)], wanted=Profile(0.0, 9))
def test_the_coefficients_are_the_closest_that_add_up_to_one(stored, wanted):
    wanted = Profile(wanted.gamma, max([wanted.points, *(p.points for p in stored)]))
    weights, error = posthoc_weights(stored, wanted)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-6)
    columns = torch.stack([on_a_grid(p, wanted.points) for p in stored], 1)
    target = on_a_grid(wanted, wanted.points)
    # The same problem by brute force: the last coefficient is one minus the others.
    rest = torch.linalg.lstsq(
        columns[:, :-1] - columns[:, -1:], (target - columns[:, -1])[:, None], driver="gelsd"
    ).solution
    best = columns[:, -1] + (columns[:, :-1] - columns[:, -1:]) @ rest[:, 0]
    distance = (best - target).norm() / target.norm()
    ours = (columns @ torch.tensor(weights, dtype=torch.float64) - target).norm() / target.norm()
    # The grid is what is not exact here.
    assert ours.item() == pytest.approx(error, abs=2e-3, rel=2e-3)
    assert ours.item() <= distance.item() * 1.002 + 2e-3


@pytest.mark.parametrize("index", range(6))
def test_what_is_stored_is_made_of_itself(index):
    stored = [Profile(exponent(w), points) for points in (10, 20, 30) for w in (0.05, 0.1)]
    longest = [p for p in stored if p.points <= stored[index].points]
    weights, error = posthoc_weights(longest, stored[index])
    assert error < 1e-6
    assert weights == pytest.approx([float(p == stored[index]) for p in longest], abs=1e-6)


@pytest.mark.parametrize(
    ("count", "width", "bound"), [(20, 0.03, 0.03), (20, 0.2, 0.03), (100, 0.015, 0.01), (100, 0.25, 0.01)]
)
def test_the_docstring_says_how_close_it_comes(count, width, bound):
    stored = [Profile(exponent(w), i + 1) for i in range(count) for w in (0.05, 0.1)]
    _, error = posthoc_weights(stored, Profile(exponent(width), count))
    assert error < bound


def trained(folder, rules, steps=60, every=3):
    """A run that stores snapshots, and the points of its weights."""
    model = net()
    average, points = RunningAverage(model, rules), []
    for step, _ in enumerate(walk(model, steps), start=1):
        points.append({k: v.double().clone() for k, v in model.state_dict().items()})
        average.update()
        if step % every == 0:
            average.store(folder)
    return model, average, points


@pytest.mark.parametrize("time", [60, 30])
@pytest.mark.parametrize("width", [0.07, 0.1, 0.15])
def test_a_synthesized_average_is_the_sum_of_the_runs_points(tmp_path, width, time):
    model, _, points = trained(tmp_path, [power(0.05), power(0.1), exponential(0.5)])
    result = synthesize(tmp_path, width, points=time)
    assert len(result.coefficients) == 2 * time // 3
    assert math.fsum(result.coefficients.values()) == pytest.approx(1)
    made = [0.0] * 60
    for name, coefficient in result.coefficients.items():
        with safe_open(tmp_path / name, "pt") as file:
            profile = Profile(**json.loads(file.metadata()["lookaround.power"]))
        made = [m + coefficient * share(profile, i) for i, m in enumerate(made, start=1)]
    wanted = [share(Profile(exponent(width), time), i) for i in range(1, 61)]
    distance = math.dist(made, wanted) / math.hypot(*wanted)
    assert distance == pytest.approx(result.error, abs=0.01)
    assert distance < 0.03
    for name, value in result.weights.items():
        if value.is_floating_point():
            expected = sum(m * p[name] for m, p in zip(made, points, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
            near = sum(w * p[name] for w, p in zip(wanted, points, strict=True))
            assert (value - near).abs().max() < 0.1
    assert result.weights["1.num_batches_tracked"] == time
    model.load_state_dict(result.weights)


def test_the_last_snapshot_is_the_average_itself(tmp_path):
    model, average, _ = trained(tmp_path, [power(0.05), power(0.1)])
    result = synthesize(tmp_path, gamma=average.rules[1].gamma)
    with average.averaged(1):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(result.weights[name], value)


def test_a_run_that_was_killed_and_resumed_stores_the_same_files(tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    model, _, _ = trained(tmp_path / "whole", power(0.1), steps=12)
    other = net()
    first = RunningAverage(other, power(0.1))
    steps = walk(other, 12)
    for step in range(1, 6):
        next(steps)
        first.update()
        if step == 3:
            first.store(tmp_path / "cut")
            saved = copy.deepcopy([other.state_dict(), first.state_dict()])
    # What a killed write leaves is no snapshot.
    (tmp_path / "cut" / ".power-000000000006-6.safetensors.partial").write_bytes(b"half")
    resumed_model = net()
    resumed = RunningAverage(resumed_model, power(0.1))
    again = walk(resumed_model, 12)
    for step in range(1, 13):
        next(again)
        if step == 3:
            resumed_model.load_state_dict(saved[0])
            resumed.load_state_dict(saved[1])
        if step > 3:
            resumed.update()
        if step >= 3 and step % 3 == 0:
            resumed.store(tmp_path / "cut")
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "cut").glob("power-*"))
    for name in names:
        expected, got = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert all(torch.equal(value, got[key]) for key, value in expected.items())
    assert synthesize(tmp_path / "cut", 0.1).weights.keys() == model.state_dict().keys()


def test_low_precision_is_stored_wide_tied_weights_once_and_frozen_ones_not(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)).to(torch.bfloat16)
    model[1].weight = model[0].weight
    average = RunningAverage(model, power(0.1))
    average.update()
    nn.init.constant_(model[0].weight, 1 / 3)
    average.update()
    (file,) = average.store(tmp_path)
    held = load_file(file)
    assert sorted(held) == ["0.bias", "0.weight", "1.bias"]
    assert held["0.weight"].dtype == torch.float32
    result = synthesize(tmp_path, 0.1)
    assert sorted(result.weights) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert model.load_state_dict(result.weights, strict=False).unexpected_keys == []


def test_what_cannot_be_synthesized_says_why(tmp_path):
    model = net()
    average = RunningAverage(model, exponential(0.9))
    average.update()
    with pytest.raises(ValueError, match=r"only averages of the power\(\) rule"):
        average.store(tmp_path)
    with pytest.raises(ValueError, match="no point"):
        RunningAverage(model, power(0.1)).store(tmp_path)
    with pytest.raises(ValueError, match="no snapshots in"):
        synthesize(tmp_path, 0.1)
    with pytest.raises(ValueError, match="one of them"):
        synthesize(tmp_path)
    with pytest.raises(ValueError, match="one of them"):
        synthesize(tmp_path, 0.1, gamma=3)
    good = RunningAverage(model, power(0.1))
    good.update()
    good.store(tmp_path)
    with pytest.raises(ValueError, match=r"of at most the 0\.5 points wanted"):
        synthesize(tmp_path, 0.1, points=0.5)
    with pytest.raises(ValueError, match="width is the averages' standard deviation"):
        synthesize(tmp_path, 0.5)
    with pytest.warns(UserWarning, match="cannot be made of the 1 snapshots"):
        synthesize(tmp_path, 0.02)
    bad = tmp_path / "power-000000000009-1.safetensors"
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=bad.name):
        synthesize(tmp_path, 0.1)
    RunningAverage(model, power(0.1))
    good.export(bad)
    with pytest.raises(ValueError, match="says nothing of a power-function average"):
        synthesize(tmp_path, 0.1)
