from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookaround.methods import Schedule


def factors(schedule: Schedule) -> list[float]:
    return [schedule(minibatch) for minibatch in range(schedule.total)]


def test_the_warm_up_is_linear_and_the_cosine_starts_at_its_end():
    expected = [1 / 4, 2 / 4, 3 / 4, 1] + [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert factors(Schedule("cosine", 12, 4)) == pytest.approx(expected, abs=1e-15)


def test_multi_step_drops_at_the_first_minibatch_after_each_milestone():
    schedule = Schedule("multi-step", 8, 1, (0.25, 0.75), 0.5)
    assert factors(schedule) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_others_by_hand():
    assert factors(Schedule("linear", 5, 1)) == [1, 1, 0.75, 0.5, 0.25]
    assert factors(Schedule("constant", 4, 2)) == [0.5, 1, 1, 1]
    assert factors(Schedule("wsd", 10, 2, cooldown=0.4)) == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    expected = [1 / 4, 2 / 4, 3 / 4, 1, math.sqrt(4 / 5), math.sqrt(4 / 6), math.sqrt(4 / 7), math.sqrt(4 / 8)]
    assert factors(Schedule("inverse-sqrt", 8, 4)) == pytest.approx(expected)
    assert factors(Schedule("inverse-sqrt", 2)) == pytest.approx([1, math.sqrt(1 / 2)])


@pytest.mark.parametrize(
    ("milestones", "got"), [((), "none"), ((0.8, 0.3), "0.8/0.3"), ((0.5, 0.5), "0.5/0.5"), ((0.5, 1.0), "0.5/1")]
)
def test_milestones_that_do_not_rise_within_the_run_are_refused(milestones, got):
    with pytest.raises(ValueError, match=f"^milestones must rise and lie between 0 and 1, .* got {got}$"):
        Schedule("multi-step", 10, 0, milestones)


@given(
    total=st.integers(1, 60),
    warmup=st.integers(0, 80),
    kind=st.sampled_from(["cosine", "linear", "constant", "multi-step", "inverse-sqrt", "wsd"]),
    cooldown=st.floats(0, 1),
)
def test_it_stays_in_range_rises_in_the_warm_up_and_never_rises_again(total, warmup, kind, cooldown):
    values = factors(Schedule(kind, total, warmup, (0.3, 0.6), 0.2, cooldown))
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)


def test_a_ramp_stays_goes_down_and_stays() -> None:
    assert factors(Schedule("ramp", 8, 1, (0.25, 0.75), 0.2)) == pytest.approx([1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    for milestones in ((), (0.5,), (0.6, 0.4), (0.2, 0.4, 0.6)):
        with pytest.raises(ValueError, match="ramp takes two milestones"):
            Schedule("ramp", 8, 1, milestones)
