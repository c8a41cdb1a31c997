"""Planes and lines: anchors are exact, projections are Gram–Schmidt's, random directions are filter-normalized."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lookaround.landscape import Line, Plane, RandomPlane, flatten, flatten_state, grid_around, line_positions
from lookaround.tasks.vision.models import build_model

SEEDS = st.integers(0, 2**31)


def networks(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [build_model("resnet9", classes=10, width=4) for _ in range(count)]


def test_anchors_are_points_of_the_plane_bit_for_bit_and_project_onto_themselves() -> None:
    anchors = networks(3)
    plane = Plane.through(*anchors)
    for model, place in zip(anchors, plane.anchors, strict=True):
        assert torch.equal(plane.point(*place), flatten(model))
        assert plane.project(model) == (*place, 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, size=st.integers(3, 40), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_anchors_of_any_plane_are_exact(seed: int, size: int, dtype: torch.dtype) -> None:
    anchors = list(torch.randn(3, size, generator=torch.Generator().manual_seed(seed), dtype=dtype))
    plane = Plane.through(*anchors)
    assert plane.anchors[0] == (0.0, 0.0)
    for anchor, place in zip(anchors, plane.anchors, strict=True):
        assert torch.equal(plane.point(*place), anchor)
        assert plane.project(anchor) == (*place, 0.0)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, x=st.floats(-5, 5), y=st.floats(-5, 5), away=st.floats(0, 5))
def test_points_come_back_with_their_coordinates_and_their_distance(seed: int, x: float, y: float, away: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    plane = Plane.through(*w)
    # The papers' construction, written out.
    u = w[1] - w[0]
    v = (w[2] - w[0]) - (w[2] - w[0]) @ u / (u @ u) * u
    u, v = u / u.norm(), v / v.norm()
    normal = torch.randn(12, generator=generator, dtype=torch.float64)
    normal -= (normal @ u) * u + (normal @ v) * v
    expected = w[0] + x * u + y * v
    torch.testing.assert_close(plane.point(x, y), expected, rtol=1e-9, atol=1e-9)
    found = plane.project(expected + away * normal / normal.norm())
    assert found == pytest.approx((x, y, away), rel=1e-9, abs=1e-9)


def test_coordinates_are_distances() -> None:
    plane = Plane.through(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([4.0, -3.0]))
    assert plane.anchors == ((0.0, 0.0), (5.0, 0.0), (0.0, 5.0))
    assert plane.point(0.0, 10.0).tolist() == pytest.approx([8.0, -6.0])


def test_what_spans_no_plane_or_line_is_refused() -> None:
    a, b = torch.zeros(3), torch.ones(3)
    with pytest.raises(ValueError, match="lie on one line"):
        Plane.through(a, b, 2 * b)
    with pytest.raises(ValueError, match="lie on one line"):
        Plane.through(a, b, a)
    with pytest.raises(ValueError, match="equal"):
        Plane.through(a, a, b)
    with pytest.raises(ValueError, match="equal"):
        Line.between(b, b)
    with pytest.raises(ValueError, match=r"\[3, 2\] elements"):
        Line.between(a, torch.ones(2))
    with pytest.raises(ValueError, match="2 coordinates here, got 1"):
        Plane.through(a, b, torch.tensor([1.0, 0, 0])).point(1.0)
    with pytest.raises(ValueError, match="has 4 weights, the plane is of 3"):
        Plane.through(a, b, torch.tensor([1.0, 0, 0])).project(torch.zeros(4))


def test_a_nearly_collinear_average_of_float32_weights_is_refused_as_noise() -> None:
    a, b = (torch.randn(10_000, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    with pytest.raises(ValueError, match="lie on one line"):
        Plane.through(a, b, a + (b - a) / 3)


def test_a_line_reaches_beyond_both_ends() -> None:
    line = Line.between(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 3.0]))
    assert line.length == pytest.approx(math.sqrt(5))
    assert line.point(0.0).tolist() == [1.0, 1.0]
    assert line.point(1.0).tolist() == [2.0, 3.0]
    assert line.point(-1.0).tolist() == [0.0, -1.0]
    assert line.point(3.0).tolist() == [4.0, 7.0]
    assert line.project(torch.tensor([0.0 + 2, -1.0 - 1])) == pytest.approx((-1.0, math.sqrt(5)))


def test_random_directions_have_the_norms_of_the_filters() -> None:
    model = networks(1)[0]
    plane = RandomPlane.around(model, seed=3)
    start = 0
    for parameter in model.parameters():
        stop = start + parameter.numel()
        for row in plane.rows[1:]:
            direction = row[start:stop].view(parameter.shape)
            if parameter.ndim <= 1:
                assert not direction.any()
            else:
                torch.testing.assert_close(direction.flatten(1).norm(dim=1), parameter.detach().flatten(1).norm(dim=1))
        start = stop
    assert torch.equal(plane.rows, RandomPlane.around(model, seed=3).rows)
    assert not torch.equal(plane.rows[1], RandomPlane.around(model, seed=4).rows[1])
    assert not torch.equal(plane.rows[1], plane.rows[2])


def test_random_planes_project_in_multiples_of_their_directions() -> None:
    model = networks(1)[0]
    plane = RandomPlane.around(model, seed=0)
    assert torch.equal(plane.point(0.0, 0.0), flatten(model))
    x, y, away = plane.project(plane.point(0.5, -0.25))
    assert (x, y) == pytest.approx((0.5, -0.25), abs=1e-6)
    assert away < 1e-4


def test_tied_weights_count_once_and_low_precision_is_widened() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    assert flatten(model).shape == (9,)
    assert flatten(model.bfloat16()).dtype is torch.float32


def test_a_state_dict_gives_the_weights_of_its_model() -> None:
    first, second = networks(2)
    assert torch.equal(flatten_state(first, second.state_dict()), flatten(second))
    assert torch.equal(flatten_state(nn.DataParallel(first), second.state_dict()), flatten(second))
    with pytest.raises(ValueError, match=r"no '0\.weight' \(\d+ missing\)"):
        flatten_state(first, {})
    with pytest.raises(ValueError, match=r"'0\.weight' has shape"):
        flatten_state(first, build_model("resnet9", classes=10, width=8).state_dict())


@settings(max_examples=30, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(0, 9)), min_size=2, unique_by=lambda p: p[0]
    ),
    points=st.integers(2, 30),
)
def test_a_grid_around_places_holds_them_with_room(places: list[tuple[float, float, float]], points: int) -> None:
    assume(max(p[0] for p in places) - min(p[0] for p in places) > 1e-6)
    grid = grid_around(places, points)
    for axis, coordinates in enumerate(grid):
        assert len(coordinates) == points
        assert coordinates == sorted(coordinates)
        assert all(coordinates[0] < place[axis] < coordinates[-1] for place in places)


def test_positions_on_a_line_hold_both_ends_exactly() -> None:
    for points in range(2, 60):
        positions = line_positions(points, beyond=1.0)
        assert {0.0, 1.0} <= set(positions)
        assert (positions[0], positions[-1]) == (-1.0, 2.0)
        assert len(positions) == 3 * (points - 1) + 1
    for points, beyond in ((1, 0.5), (2.5, 0.5), (3, -1.0), (3, float("inf")), (3, float("nan"))):
        with pytest.raises(ValueError, match=f"got {points} and {beyond}"):
            line_positions(points, beyond)
    for points in (1, 2.5):
        with pytest.raises(ValueError, match=f"at least 2 points along each axis, got {points}"):
            grid_around([(0, 0), (1, 1)], points=points)
    with pytest.raises(ValueError, match="all one"):
        grid_around([(1.0, 1.0)])


def test_a_point_of_another_number_of_weights_is_refused_and_not_broadcast() -> None:
    line = Line.between(torch.zeros(3), torch.ones(3))
    plane = Plane.through(*torch.eye(3))
    for geometry, name in ((line, "line"), (plane, "plane")):
        for other in (torch.ones(1), torch.ones(2), torch.ones(4)):
            with pytest.raises(ValueError, match=f"the point has {len(other)} weights, the {name} is of 3"):
                geometry.project(other)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_weights_that_are_not_finite_span_nothing(wrong: float, place: int) -> None:
    rows = torch.eye(3)
    rows[place, 1] = wrong
    with pytest.raises(ValueError, match=r"NaN or infinite.*span no plane"):
        Plane.through(*rows)
    if place < 2:
        with pytest.raises(ValueError, match=r"NaN or infinite.*span no line"):
            Line.between(rows[0], rows[1])


def test_a_random_plane_around_weights_that_are_not_finite_is_refused() -> None:
    model = nn.Linear(3, 3)
    nn.init.constant_(model.weight, math.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        RandomPlane.around(model, seed=0)
