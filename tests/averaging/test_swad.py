"""SWAD's window against a brute-force one that stores every point, and its promises."""

import copy
import io
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from lookaround import Lookaround
from lookaround.averaging import SWAD, update_norm_stats


def brute_force(points, losses, interval, converge, tolerance, rate):
    """Algorithm 1 of the paper on stored points; evaluation i follows point i · interval. Returns the window's points."""
    start = end = limit = None
    for i in range(1, len(losses) + 1):
        window = losses[:i]
        if limit is None:
            if i >= converge and window[i - converge] == min(window[i - converge :]):
                start = i - converge + 1
                mean = Fraction(sum(map(Fraction, window[i - converge :]))) / converge
                limit = mean + (Fraction(rate) - 1) * abs(mean)
        elif i >= tolerance and limit < min(window[i - tolerance :]):
            end = i - tolerance
            break
    if start is None:
        return None
    first = (start - 1) * interval
    return points[first : end * interval] if end is not None else points[first:]


def run(model, losses, interval, extra=0, swad=None, **options):
    """One point for each step, at value = number of the step."""
    swad = swad or SWAD(model, **options)
    for i, loss in enumerate(losses):
        for step in range(interval):
            nn.init.constant_(model.weight, float(i * interval + step + 1))
            swad.update()
        swad.evaluated(loss)
    for step in range(extra):
        nn.init.constant_(model.weight, float(len(losses) * interval + step + 1))
        swad.update()
    return swad


# Eighths of any sign: their means and limits are exact enough to be compared with exact ones.
LOSSES = st.lists(st.integers(-12, 12).map(lambda n: n / 8), min_size=1, max_size=25)


@given(
    LOSSES,
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from([1.0, 1.25, 1.5, 2.0]),
)
@settings(max_examples=300, deadline=None)
def test_the_window_is_the_one_of_stored_points(losses, interval, extra, converge, more, rate):
    tolerance = converge + more
    model = nn.Linear(1, 1, bias=False).double()
    swad = run(model, losses, interval, extra, converge=converge, tolerance=tolerance, rate=rate)
    total = len(losses) * interval + extra
    window = brute_force([float(n) for n in range(1, total + 1)], losses, interval, converge, tolerance, rate)
    if window is None:
        assert not swad.opened
        assert swad.points == 0
        with pytest.warns(UserWarning, match="never opened"), swad.averaged():
            assert model.weight.item() == total
        return
    assert swad.points == len(window)
    with swad.averaged():
        assert model.weight.item() == pytest.approx(sum(window) / len(window), rel=1e-12)
    assert model.weight.item() == total


def test_a_hand_computed_window():
    model = nn.Linear(1, 1, bias=False)
    swad = run(model, [5, 3, 4, 4, 4.5, 9, 4, 9, 9, 9, 1], 1, converge=3, tolerance=3, rate=1.25)
    # Opens at the 2nd (3 ≤ 4, 4): limit 1.25 · 11/3 = 4.58; the 7th is the last within it; the 8th to 10th close it.
    assert swad.limit == pytest.approx(1.25 * 11 / 3)
    assert (swad.opened, swad.closed, swad.points) == (True, True, 6)
    other = nn.Linear(1, 1, bias=False)
    swad.copy_to(other)
    assert other.weight.item() == pytest.approx((2 + 3 + 4 + 5 + 6 + 7) / 6)


@given(
    st.floats(-3, 3) | st.just(0.1),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 6),
    st.floats(1, 3),
)
@settings(max_examples=300, deadline=None)
def test_flat_losses_of_any_sign_keep_the_window_open(loss, evaluations, converge, tolerance, rate):
    # With rate = 1 rounding put the limit below all losses; with negative ones it was below them in truth.
    model = nn.Linear(1, 1, bias=False)
    swad = run(model, [loss] * evaluations, 1, converge=converge, tolerance=tolerance, rate=rate)
    assert swad.opened == (evaluations >= converge)
    assert not swad.closed
    assert swad.points == (evaluations if swad.opened else 0)


@given(
    st.lists(st.floats(-5, 5) | st.just(math.inf), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 6),
    st.floats(1, 3),
)
@settings(max_examples=500, deadline=None)
def test_no_sequence_of_losses_breaks_the_window(losses, converge, tolerance, rate):
    model = nn.Linear(1, 1, bias=False)
    swad = run(model, losses, 1, converge=converge, tolerance=tolerance, rate=rate)
    if swad.opened:
        assert swad.points >= 1
        opening = swad.limit
        assert opening is not None
        assert opening >= min(losses)


def test_memory_is_a_few_means_whatever_the_number_of_points():
    model = nn.Linear(1, 1, bias=False)
    swad = run(model, [9, 8, 7, 6, 5] + [5] * 30, 7, converge=3, tolerance=40)
    assert swad.points == (35 - 4) * 7
    assert len(swad.state_dict()["segments"]) == 3
    searching = run(model, [float(n) for n in range(50, 0, -1)], 2, converge=3, tolerance=6)
    assert len(searching.state_dict()["segments"]) == 2


@pytest.mark.parametrize("cut", range(11))
def test_resume_is_bit_exact_from_any_evaluation(cut):
    losses = [5, 3, 4, 4, 4.5, 9, 4, 9, 9, 9, 1]
    model = nn.Linear(3, 3)
    options = {"converge": 3, "tolerance": 3, "rate": 1.25}
    whole = run(model, losses, 2, **options)
    first = run(model, losses[:cut], 2, extra=1, **options)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = SWAD(model, **options)
    second.load_state_dict(torch.load(file, weights_only=True))
    for i, loss in enumerate(losses[cut:], start=cut):
        for step in range(1 if i == cut else 0, 2):
            nn.init.constant_(model.weight, float(i * 2 + step + 1))
            second.update()
        second.evaluated(loss)
    expected, got = whole.state_dict(), second.state_dict()
    assert (got["limit"], got["above"], got["closed"]) == (expected["limit"], expected["above"], expected["closed"])
    for a, b in zip(got["segments"], expected["segments"], strict=True):
        assert a["points"] == b["points"]
        assert all(torch.equal(a["mean"][k], v) for k, v in b["mean"].items())


def test_a_checkpoint_saved_inside_averaged_resumes_the_training_weights():
    model = nn.Linear(2, 2)
    swad = run(model, [3, 3, 3, 3], 1)
    training = copy.deepcopy(model.state_dict())
    with swad.averaged():
        state = copy.deepcopy({"model": model.state_dict(), "swad": swad.state_dict()})
    fresh = nn.Linear(2, 2)
    resumed = SWAD(fresh)
    fresh.load_state_dict(state["model"])
    resumed.load_state_dict(state["swad"])
    assert all(torch.equal(v, training[k]) for k, v in fresh.state_dict().items())
    assert resumed.points == swad.points == 4


def test_a_rate_that_is_the_authors_ratio_says_so():
    with pytest.raises(ValueError, match=r"got 0\.3.*tolerance_ratio \+ 1: for a tolerance_ratio of 0\.3 pass 1\.3"):
        SWAD(nn.Linear(1, 1), rate=0.3)


def test_mistakes_are_errors():
    model = nn.Linear(2, 2)
    for name in ("converge", "tolerance", "rate"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0.5"):
            SWAD(model, **{name: 0.5})
    with pytest.raises(TypeError, match=r"converge must be an integer, got 2\.5"):
        SWAD(model, converge=2.5)
    with pytest.raises(ValueError, match="no points yet"), SWAD(model).averaged():
        pass
    swad = SWAD(model)
    with pytest.raises(ValueError, match=r"call update\(\) after every step"):
        swad.evaluated(1.0)
    swad.update()
    with pytest.raises(ValueError, match="loss is nan"):
        swad.evaluated(float("nan"))
    with pytest.raises(ValueError, match="loss is -inf"):
        swad.evaluated(float("-inf"))
    with pytest.raises(ValueError, match="it has no above"):
        swad.load_state_dict({})
    with (
        pytest.warns(UserWarning, match="takes 3 evaluations"),
        swad.averaged(),
        pytest.raises(ValueError, match="evaluated"),
    ):
        swad.evaluated(1.0)
    for changed in ({"converge": 4}, {"tolerance": 9}, {"rate": 2.0}):
        with pytest.raises(ValueError, match=f"this window has {next(iter(changed))}={next(iter(changed.values()))}"):
            SWAD(model, **changed).load_state_dict(swad.state_dict())
    state = copy.deepcopy(run(model, [1.0], 1).state_dict())
    state["segments"][0]["mean"].pop("bias")
    with pytest.raises(ValueError, match="missing: bias"):
        swad.load_state_dict(state)
    with pytest.raises(ValueError, match="which=1"), swad.averaged(1):
        pass


@pytest.mark.filterwarnings("ignore:the SWAD window never opened")
def test_before_the_window_opens_what_is_reestimated_belongs_to_the_last_model(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(1))
    swad = SWAD(model)
    swad.update()
    swad.evaluated(1.0)
    with swad.averaged():
        update_norm_stats(model, [torch.tensor([[1.0], [3.0]])])
        with swad.averaged():
            assert model[0].running_mean.item() == 2.0
        assert model[0].running_mean.item() == 2.0
    assert model[0].running_mean.item() == 0.0
    with swad.averaged():
        assert model[0].running_mean.item() == 2.0
    swad.export(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors")["0.running_mean"].item() == 2.0


@pytest.mark.filterwarnings("ignore:the SWAD window never opened")
def test_before_the_window_opens_the_last_model_is_the_average_of_branches():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = Lookaround(torch.optim.SGD(model.parameters(), lr=1.0), branches=2, k=2)
    swad = SWAD(model, converge=3)
    for branch in optimizer.around():
        model.weight.grad = torch.full_like(model.weight, [1.0, 3.0][branch])
        optimizer.step()
    swad.update()
    swad.evaluated(1.0)
    before = model.weight.item()
    with swad.averaged():
        assert model.weight.item() == -2.0
        with swad.averaged():
            assert model.weight.item() == -2.0
    assert model.weight.item() == before != -2.0
