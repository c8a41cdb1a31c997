"""Running averages against closed forms, and their promises: resume, swapping in and out."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lookaround.averaging import RunningAverage, emulated_decay, exponential, lawa, power, tail, uniform
from reference.walks import net, points, run, same, shown, walk, weighted

WEIGHTS = {
    "uniform": (uniform(), lambda i, n: 1.0),
    "ema": (exponential(0.9), lambda i, n: 0.9 ** (n - i) * (0.1 if i > 1 else 1.0)),
    "corrected": (exponential(0.9, bias_correction=True), lambda i, n: 0.9 ** (n - i)),
    "no decay": (exponential(0.0), lambda i, n: float(i == n)),
    "no decay, corrected": (exponential(0.0, bias_correction=True), lambda i, n: float(i == n)),
    "warm-up is uniform while short": (exponential(0.99, warmup=1), lambda i, n: 1.0),
    "exact tail": (tail(0.3, total=23), lambda i, n: float(i > n - 7) if n == 23 else float(i == n)),
    "whole tail": (tail(1.0), lambda i, n: 1.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("steps", [1, 2, 3, 23])
def test_every_rule_has_its_closed_form(name, steps):
    rule, weight = WEIGHTS[name]
    history, _ = points(steps)
    expected = weighted(history, [weight(i, steps) for i in range(1, steps + 1)])
    _, average = run(rule, steps)
    got = shown(average)
    for key, value in expected.items():
        if key != "1.num_batches_tracked":
            torch.testing.assert_close(got[key].double(), value, rtol=1e-6, atol=1e-6)
    assert got["1.num_batches_tracked"] == steps


def test_warm_up_weighs_like_timm():
    from_timm = [1 - min(0.999, max(1 - (1 + step) ** (-2 / 3), 0.0)) for step in range(5000)]
    ours = [exponential(0.999, warmup=2 / 3).weight(n, n - 1) for n in range(1, 5001)]
    assert ours == pytest.approx(from_timm, rel=1e-9)


@pytest.mark.parametrize("decay", [0.5, 0.999999])
def test_bias_correction_keeps_its_digits(decay):
    exact = [(1 - decay) / -math.expm1(n * math.log(decay)) for n in (1, 2, 1000)]
    rule = exponential(decay, bias_correction=True)
    assert [rule.weight(n, n - 1) for n in (1, 2, 1000)] == pytest.approx(exact, rel=1e-12)
    assert rule.weight(1, 0) == 1.0


@given(st.floats(0.01, 1.0), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_an_open_ended_tail_is_the_mean_of_a_window_of_the_promised_length(fraction, steps):
    model = nn.Linear(1, 1, bias=False).double()
    average = RunningAverage(model, tail(fraction))
    for n in range(1, steps + 1):
        nn.init.constant_(model.weight, float(n))
        average.update()
        with average.averaged():
            # The mean of the last L of 1, …, n is n - (L - 1) / 2.
            length = 2 * (n - model.weight.item()) + 1
        assert length == pytest.approx(round(length), abs=1e-6)
        assert fraction * n <= length + 1e-6
        assert length < fraction * (2 - fraction) * n + 1 + 1e-6


def test_several_averages_in_one_pass_are_those_of_separate_passes():
    rules = [uniform(), exponential(0.9), tail(0.5), tail(0.2, total=17), lawa(4), lawa(2, every=5), power(0.2)]
    _, together = run(rules, 17)
    for which, rule in enumerate(rules):
        assert same(shown(together, which), shown(run(rule, 17)[1]))


@pytest.mark.parametrize("first", [0, 1, 2, 5, 11])
def test_resume_is_bit_exact_from_any_point(first):
    rules = [
        uniform(),
        exponential(0.9, bias_correction=True),
        tail(0.4),
        tail(0.4, total=12),
        lawa(3, every=2),
        power(0.1),
        emulated_decay("cosine", fraction=0.7, total=12),
    ]
    _, whole = run(rules, 12)
    other = net()
    before, steps = RunningAverage(other, rules), walk(other, 12)
    for _ in range(first):
        next(steps)
        before.update()
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = RunningAverage(other, rules)
    after.load_state_dict(torch.load(file, weights_only=True))
    for _ in steps:
        after.update()
    assert after.count == whole.count == 12
    for which in range(len(rules)):
        assert same(shown(after, which), shown(whole, which))


def test_a_loaded_average_shares_no_memory_with_the_state():
    _, average = run(uniform(), 3)
    state = copy.deepcopy(average.state_dict())
    average.load_state_dict(state)
    average.update()
    kept = state["averages"][0]["means"][0]["3.weight"].clone()
    average.update()
    assert torch.equal(state["averages"][0]["means"][0]["3.weight"], kept)


def test_reset_starts_over():
    model, average = run(tail(0.5), 5)
    average.reset()
    with pytest.raises(ValueError, match="no point"), average.averaged():
        pass
    average.update()
    assert same(shown(average), model.state_dict())


def test_averaged_gives_the_training_weights_back_bit_for_bit():
    model, average = run([uniform(), exponential(0.5)], 4)
    before = copy.deepcopy(model.state_dict())
    uniform_state, ema_state = shown(average), shown(average, 1)

    def evaluate():
        with average.averaged():
            assert same(model.state_dict(), uniform_state)
            with average.averaged(1):
                assert same(model.state_dict(), ema_state)
            assert same(model.state_dict(), uniform_state)
            nn.init.zeros_(model[3].weight)
            model(torch.randn(2, 3, 4, 4))
            raise RuntimeError("evaluation")

    with pytest.raises(RuntimeError, match="evaluation"):
        evaluate()
    assert same(model.state_dict(), before)
    assert same(shown(average), uniform_state)


def test_averaged_keeps_the_storage_and_gradients_of_parameters():
    model, average = run(uniform(), 2)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    addresses = [p.data_ptr() for p in model.parameters()]
    with average.averaged():
        assert [p.data_ptr() for p in model.parameters()] == addresses
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))


@pytest.mark.parametrize("call", ["update", "reset", "load", "copy_to"])
def test_points_are_neither_added_nor_loaded_inside(call):
    model, average = run(uniform(), 2)
    state = average.state_dict()
    calls = {
        "update": average.update,
        "reset": average.reset,
        "load": lambda: average.load_state_dict(state),
        "copy_to": lambda: average.copy_to(model),
    }
    with average.averaged(), pytest.raises(ValueError, match=r"inside averaged\(\)"):
        calls[call]()
    assert average.count == 2


def test_a_checkpoint_saved_inside_averaged_resumes_the_training_weights():
    model, average = run(exponential(0.9), 5)
    training = copy.deepcopy(model.state_dict())
    file = io.BytesIO()
    with average.averaged():
        torch.save({"model": model.state_dict(), "average": average.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = net(seed=9)
    resumed = RunningAverage(fresh, exponential(0.9))
    fresh.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["average"])
    assert same(fresh.state_dict(), training)
    assert same(shown(resumed), shown(average))


def test_a_mismatched_state_changes_nothing():
    model, average = run([uniform(), tail(0.5)], 3)
    before, weights = shown(average), copy.deepcopy(model.state_dict())
    good = average.state_dict()
    bad_shape = copy.deepcopy(good)
    bad_shape["averages"][1]["means"][1]["3.weight"] = torch.zeros(3, 3)
    missing = copy.deepcopy(good)
    del missing["averages"][0]["means"][0]["3.weight"]
    other_rule = RunningAverage(model, [exponential(0.5), tail(0.5)]).state_dict()
    fewer = RunningAverage(model, uniform()).state_dict()
    short = copy.deepcopy(good)
    short["averages"][1]["means"].pop()
    no_counter = copy.deepcopy(good)
    no_counter["copied"] = {}
    for state, message in [
        (bad_shape, r"3\.weight is \(3, 3\) instead of \(2, 16\)"),
        (missing, r"missing: 3\.weight"),
        (other_rule, "Exponential.* instead of Uniform"),
        (fewer, "missing: average 1"),
        (short, "must hold 2 running means"),
        (no_counter, "num_batches_tracked"),
        ({"count": 1}, "no averages, copied"),
    ]:
        with pytest.raises(ValueError, match=message):
            average.load_state_dict(state)
        assert average.count == 3
        assert same(shown(average), before)
        assert same(model.state_dict(), weights)
