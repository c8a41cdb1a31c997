from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookaround.experiment.compare.curves import Curve, curve

values = st.floats(-100, 100)
seed = st.lists(st.tuples(st.integers(0, 50), values), min_size=1, max_size=8, unique_by=lambda p: p[0]).map(sorted)


def test_seeds_evaluated_at_the_same_places_are_averaged_as_they_are():
    assert curve([[(3, 40.0), (6, 15.0)], [(3, 20.0), (6, 10.0)]]) == Curve(
        (3, 6), (30.0, 12.5), (20.0, 10.0), (40.0, 15.0)
    )


def test_one_seed_is_its_own_band():
    assert curve([[(3, 4.0), (6, 1.0)]]) == Curve((3, 6), (4.0, 1.0), (4.0, 1.0), (4.0, 1.0))


def test_a_seed_one_record_short_ends_the_curve_there():
    assert curve([[(1, 4.0), (2, 3.0), (3, 2.0)], [(1, 2.0), (2, 1.0)]]) == Curve(
        (1, 2), (3.0, 2.0), (2.0, 1.0), (4.0, 3.0)
    )


def test_seeds_evaluated_once_each_are_one_point_wherever_they_were():
    assert curve([[(1.0, 4.0)], [], [(2.0, 2.0)], [(6.0, 0.0)]]) == Curve((3.0,), (2.0,), (0.0,), (4.0,))


def test_without_a_common_place_there_is_none():
    assert curve([]) is curve([[], []]) is curve([[(1, 0.0), (2, 0.0)], [(3, 0.0)]]) is None
    assert curve([[], [(1, 2.0)]]) == Curve((1,), (2.0,), (2.0,), (2.0,))


@settings(deadline=None)
@given(st.lists(seed, min_size=1, max_size=4))
def test_between_evaluations_it_is_numpys_interpolation(seeds):
    if all(len(points) == 1 for points in seeds):
        seeds = [[*points, (60, 0.0)] for points in seeds]
    found = curve(seeds)
    if found is None:
        assert max(points[0][0] for points in seeds) > min(points[-1][0] for points in seeds)
        return
    drawn = np.array([np.interp(found.at, *zip(*points, strict=True)) for points in seeds])
    assert found.mean == pytest.approx(drawn.mean(0), abs=1e-9)
    assert found.low == pytest.approx(drawn.min(0), abs=1e-9)
    assert found.high == pytest.approx(drawn.max(0), abs=1e-9)
