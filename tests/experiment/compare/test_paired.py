"""Paired differences, held against scipy and against what can be worked out by hand."""

import math

import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lookaround.experiment.compare.paired import bonferroni, holm, paired_difference, sign_test, t_test

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)
probabilities = st.lists(st.floats(0, 1), max_size=10)


def by_seed(values):
    return dict(enumerate(values))


def test_three_seeds_by_hand():
    # Differences 1, 1.5, 0.5: mean 1, standard deviation 0.5, error 0.5 / √3; t(0.975, 2) = 4.30265.
    found = paired_difference({5: 97.0, 1: 98.0, 2: 96.0}, {2: 95.5, 5: 96.0, 1: 96.5})
    assert (found.seeds, found.mean, found.std) == ((1, 2, 5), 1.0, 0.5)
    half = 4.302652729911275 * 0.5 / math.sqrt(3)
    assert found.interval == pytest.approx((1 - half, 1 + half))
    # With two degrees of freedom P[T > t] = 1/2 - t / (2 √(2 + t²)).
    t = 1 / (0.5 / math.sqrt(3))
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert (found.above, found.below, found.ties, found.p_sign) == (3, 0, 0, 0.25)


@settings(deadline=None)
@given(pairs, st.floats(0.5, 0.999))
def test_they_are_scipys_t_test_of_related_samples(drawn, confidence):
    a, b = zip(*drawn, strict=True)
    differences = [x - y for x, y in drawn]
    assume(max(differences) - min(differences) > 1e-3)
    expected = scipy.stats.ttest_rel(a, b)
    found = paired_difference(by_seed(a), by_seed(b), confidence)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(confidence)), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_signs_are_scipys_binomial_test(above, below):
    assume(above + below)
    expected = scipy.stats.binomtest(above, above + below, 0.5).pvalue
    assert sign_test(above, below) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(st.floats(-50, 50), st.integers(1, 100))
def test_p_values_are_those_of_scipys_t(t, freedom):
    assert t_test(t, freedom) == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom), rel=1e-9)


def test_only_the_seeds_that_both_have_count():
    found = paired_difference({0: 1.0, 1: 2.0, 7: 100.0}, {0: 0.0, 1: 3.0, 8: -100.0})
    assert (found.seeds, found.mean, found.above, found.below, found.ties) == ((0, 1), 0.0, 1, 1, 0)


def test_one_seed_has_a_difference_and_no_interval():
    found = paired_difference({3: 2.0}, {3: 1.5})
    assert (found.mean, found.std, found.interval, found.p, found.p_sign) == (0.5, None, None, None, 1.0)


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_differences_that_are_all_equal_have_no_interval(offset):
    # 97.3 + 0.1 - 97.3 and 55.1 + 0.1 - 55.1 differ in the last bits alone.
    b = {0: 97.3, 1: 55.1, 2: 33.7}
    found = paired_difference({seed: value + offset for seed, value in b.items()}, b)
    assert (found.interval, found.p, found.above, found.ties) == (None, None, 3 if offset else 0, 0 if offset else 3)
    assert found.mean == pytest.approx(offset)


def test_no_common_seed_and_no_confidence_are_refused():
    with pytest.raises(ValueError, match=r"^no seed in common: seeds 0 3 and seeds 1$"):
        paired_difference({3: 1.0, 0: 1.0}, {1: 1.0})
    with pytest.raises(ValueError, match=r"no seed in common: no seed and seeds 1"):
        paired_difference({}, {1: 1.0})
    for confidence in (0.0, 1.0, -3.0, 95.0, math.nan):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            paired_difference({0: 1.0}, {0: 2.0}, confidence)


@settings(deadline=None)
@given(probabilities)
def test_holm_rejects_what_its_procedure_does_step_by_step(values):
    """Holm's own words: compare the smallest with α / m, the next with α / (m - 1) …, and stop at the first that is larger."""
    for level in (0.01, 0.05, 0.5):
        rejected, left = set(), sorted(range(len(values)), key=values.__getitem__)
        while left and values[left[0]] * len(left) <= level:
            rejected.add(left.pop(0))
        assert {index for index, value in enumerate(holm(values)) if value <= level} == rejected


@settings(deadline=None)
@given(probabilities)
def test_holm_lies_between_the_values_and_bonferroni(values):
    for value, step_down, multiplied in zip(values, holm(values), bonferroni(values), strict=True):
        assert value <= step_down <= multiplied <= 1


def test_ties_among_p_values_stay_ties():
    assert holm([0.02, 0.02, 0.5]) == [0.06, 0.06, 0.5]
    assert holm([]) == bonferroni([]) == []
