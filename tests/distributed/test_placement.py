"""Which branches a row holds, without processes."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh

from lookaround.distributed import Placement, Rows, place


@given(rows=st.integers(1, 40), more=st.integers(0, 90))
def test_every_branch_is_in_one_row_and_the_rows_are_as_even_as_they_go(rows, more):
    placements = [Placement(rows + more, rows, row) for row in range(rows)]
    assert [branch for placement in placements for branch in placement.local] == [*range(rows + more)]
    counts = [len(placement.local) for placement in placements]
    assert counts == list(placements[0].counts) == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    for branch in range(rows + more):
        assert branch in placements[placements[0].row_of(branch)].local


def test_fewer_branches_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"2 branches cannot be shared out to the 3 rows .* at least 3"):
        Placement(2, 3, 0)


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_mesh_has_to_have_a_dimension_called_branch():
    for names, shown in ((None, "without names"), (("dp",), r"\('dp',\)")):
        with pytest.raises(ValueError, match=f"dimensions {shown}.* 'branch'"):
            place(init_device_mesh("cpu", (1,), mesh_dim_names=names), 2)
    with pytest.raises(TypeError, match="DeviceMesh"):
        place("cpu", 2)


@pytest.mark.usefixtures("alone")
def test_one_process_needs_nobody():
    rows = Rows(init_device_mesh("cpu", (1, 1), mesh_dim_names=("branch", "dp")), 3)
    assert rows.local == range(3)
    weights = [[torch.tensor([float(j)])] for j in range(3)]
    with rows.meeting("an average"):
        assert rows.agree(0, weights[0], [True, False, True]) == ([True, False, True], 0)
        assert [mean[0].tolist() for mean, _ in rows.means(weights, [True, False, True])] == [[1.0]]
    assert rows.sent == 0


@pytest.mark.usefixtures("alone")
def test_wrong_settings_are_refused():
    mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("branch",))
    with pytest.raises(ValueError, match="wire has to be one of exact, bfloat16, int8, got 'fp4'"):
        Rows(mesh, 2, wire="fp4")
    with pytest.raises(ValueError, match="time_limit has to be positive"):
        Rows(mesh, 2, time_limit=timedelta(0))
