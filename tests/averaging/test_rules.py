"""Every rule against the points it saw: stored, weighted by its definition, and summed."""

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lookaround.averaging import (
    RunningAverage,
    emulated_decay,
    exponential,
    lawa,
    power,
    snapshot_weights,
    tail,
    uniform,
)
from lookaround.averaging.power_rule import exponent, relative_width

SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - x**0.5,
}


def run(rule, values):
    """What a model of one weight with these values, one an update, has for an average after each update."""
    model = nn.Linear(1, 1, bias=False).double()
    average = RunningAverage(model, rule)
    result = []
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update()
        with average.averaged():
            result.append(model.weight.item())
    return result


def walk(count, seed):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


def mean(values):
    return math.fsum(values) / len(values)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_lawa_is_the_mean_of_the_last_points_that_are_multiples_of_the_spacing(window, every, count, seed):
    values = walk(count, seed)
    expected = []
    for n in range(1, count + 1):
        kept = [values[i - 1] for i in range(1, n + 1) if i % every == 0][-window:]
        expected.append(mean(kept) if kept else values[n - 1])
    assert run(lawa(window, every=every), values) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(st.floats(0, 30), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_power_average_weighs_points_by_the_increments_of_a_power(gamma, count, seed):
    values = walk(count, seed)
    expected = [
        math.fsum(((i / n) ** (gamma + 1) - ((i - 1) / n) ** (gamma + 1)) * values[i - 1] for i in range(1, n + 1))
        for n in range(1, count + 1)
    ]
    assert run(power(gamma=gamma), values) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@given(st.sampled_from([*SHAPES]), st.floats(0.01, 1), st.integers(1, 50), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_an_emulated_decay_ends_where_steps_scaled_by_the_decay_end(shape, fraction, total, more, seed):
    values = walk(total + more, seed)
    window = math.ceil(fraction * total - 1e-9)
    points = values[total - window : total]
    # The constant rate's steps are the differences of the points; the decay scales each of them.
    end = points[0] + math.fsum(SHAPES[shape](i / window) * (points[i] - points[i - 1]) for i in range(1, window))
    got = run(emulated_decay(shape, fraction=fraction, total=total), values)
    assert got[: total - window] == values[: total - window]
    assert got[total - 1 :] == pytest.approx([end] * (more + 1), rel=1e-10, abs=1e-10)


@given(st.sampled_from([*SHAPES]), st.lists(st.integers(1, 1000), min_size=1, max_size=20, unique=True))
@settings(max_examples=80, deadline=None)
def test_a_decay_over_stored_checkpoints_goes_by_their_steps(shape, steps):
    steps = sorted(steps)
    points = walk(len(steps), 1)
    k = len(steps) - 1
    end = points[0]
    for i in range(1, k + 1):
        progress = (steps[i] - steps[0]) / (steps[k] - steps[0]) * k / (k + 1)
        end += SHAPES[shape](progress) * (points[i] - points[i - 1])
    weights = snapshot_weights(emulated_decay(shape), steps)
    assert math.fsum(w * p for w, p in zip(weights, points, strict=True)) == pytest.approx(end, rel=1e-10, abs=1e-10)
    assert min(weights) >= 0


def test_a_decay_of_any_shape_can_be_given():
    def half(x):
        return 0.5

    # Half of every step after the first point: a mean of the first and the last.
    assert snapshot_weights(emulated_decay(half), [1, 2, 3, 4]) == [0.5, 0, 0, 0.5]
    assert run(emulated_decay(half, total=4), [1.0, 5.0, 2.0, 3.0])[-1] == 2.0


RULES = [
    uniform(), exponential(0.9), exponential(0.0), exponential(0.9, bias_correction=True), exponential(0.99, warmup=1),
    lawa(1), lawa(3), lawa(50), power(0.05), power(0.2), power(gamma=0),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_checkpoints_at_every_step_make_the_running_average(rule, count):
    values = walk(count, 3)
    weights = snapshot_weights(rule, range(1, count + 1))
    assert math.fsum(weights) == pytest.approx(1, rel=1e-12)
    combined = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    assert combined == pytest.approx(run(rule, values)[-1], rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(
    "rule", [tail(0.3), emulated_decay("cosine"), emulated_decay("linear", fraction=0.4)], ids=repr
)
def test_checkpoints_at_every_step_make_the_running_average_that_knows_the_total(rule):
    values = walk(20, 4)
    weights = snapshot_weights(rule, range(1, 21))
    known = tail(0.3, total=20) if rule == tail(0.3) else emulated_decay(rule.name, fraction=rule.fraction, total=20)
    combined = math.fsum(w * v for w, v in zip(weights, values, strict=True))
    assert combined == pytest.approx(run(known, values)[-1], rel=1e-11)


@pytest.mark.parametrize("rule", [*RULES, tail(0.5), *(emulated_decay(s, total=9) for s in SHAPES)], ids=repr)
def test_every_rule_can_be_pickled_with_its_average(rule):
    model = nn.Linear(1, 1)
    average = RunningAverage(model, rule)
    average.update()
    twin = pickle.loads(pickle.dumps(average))
    assert twin.rules == (rule,)
    twin.update()
    assert twin.count == 2


def test_windows_of_checkpoints_are_counted_back_from_the_last():
    third = pytest.approx(1 / 3)
    assert snapshot_weights(lawa(3, every=2), [1, 2, 3, 4, 5, 6, 7]) == [0, 0, third, 0, third, 0, third]
    assert snapshot_weights(tail(0.5), [5, 6, 7, 8, 9]) == [0, 0, third, third, third]


def test_a_power_average_of_spaced_checkpoints_goes_by_their_steps():
    # Points at 10, 20 and 40: shares of the squares 100, 400 and 1600.
    assert snapshot_weights(power(gamma=1), [10, 20, 40]) == pytest.approx([1 / 16, 3 / 16, 12 / 16])


@pytest.mark.parametrize("steps", [[], [0, 1], [-1], [2, 2], [3, 1], [1, math.inf], [math.nan]])
def test_steps_that_do_not_increase_are_refused(steps):
    with pytest.raises(ValueError, match="increase from a positive one"):
        snapshot_weights(uniform(), steps)


@given(st.floats(1e-4, 12**-0.5))
@settings(max_examples=100)
def test_widths_and_exponents_are_each_others_inverse(width):
    assert relative_width(exponent(width)) == pytest.approx(width, rel=1e-9)


def test_widths_are_those_of_the_profile():
    # The standard deviation of t/T under the density (γ+1) (t/T)^γ, by its two moments.
    for gamma in (0.0, 1.0, 6.94, 16.97):
        first, second = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
        assert relative_width(gamma) == pytest.approx(math.sqrt(second - first**2), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lawa(0), "window must be a whole number of at least 1, got 0"),
        (lambda: lawa(2.0), "window must be a whole number"),
        (lambda: lawa(2, every=0), "every must be a whole number of at least 1, got 0"),
        (lambda: power(), "a width or gamma, one of them"),
        (lambda: power(0.1, gamma=1), "a width or gamma, one of them"),
        (lambda: power(0.3), "in \\(0, 0.2887\\]; got 0.3"),
        (lambda: power(0), "got 0"),
        (lambda: power(gamma=-0.5), "not negative, got -0.5"),
        (lambda: power(gamma=math.nan), "got nan"),
        (lambda: emulated_decay("exp"), "one of linear, cosine, 1-sqrt or a function"),
        (lambda: emulated_decay(lambda x: x), "never rise"),
        (lambda: emulated_decay(lambda x: 2 - x), "must lie in"),
        (lambda: emulated_decay(fraction=0), "fraction must be in"),
        (lambda: emulated_decay(total=0), "total must be a whole number of at least 1, got 0; leave it out"),
        (lambda: emulated_decay(total=2.5), "total must be a whole number of at least 1, got 2.5"),
        (lambda: lawa(True), "window must be a whole number of at least 1, got True"),
        (lambda: RunningAverage(nn.Linear(1, 1), emulated_decay()), "total"),
    ],
)
def test_settings_that_make_no_average_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_points_that_lawa_does_not_take_are_not_read(allocations):
    model = nn.Linear(64, 64, bias=False)
    average = RunningAverage(model, lawa(2, every=3))
    for _ in range(3):
        average.update()
    nn.init.constant_(model.weight, math.nan)
    with allocations() as seen:
        average.update()
    assert seen.total == 0
    with average.averaged():
        assert model.weight.isfinite().all()


def test_lawa_keeps_its_points_in_float32_and_in_host_memory():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = RunningAverage(model, lawa(3), offload=True)
    for value in (1.0, 1.0078125, 1.015625, 1.0234375):
        nn.init.constant_(model.weight, value)
        average.update()
    points = [p["weight"].item() for p in average.state_dict()["averages"][0]["means"]]
    assert sorted(points) == [1.0078125, 1.015625, 1.0234375]
    with average.averaged():
        assert model.weight.item() == 1.015625
