"""Grids: analytic contours and barriers, going on after an interruption, and processes that share the points."""

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lookaround.landscape import Grid, Line, Plane, evaluate_grid, flatten
from lookaround.tasks.vision.models import build_model

ONE = [(torch.eye(1), torch.zeros(1))]


class Quadratic(nn.Module):
    """Its output is ½ Σ a_i w_i²."""

    def __init__(self, curvature: list[float]) -> None:
        super().__init__()
        self.curvature = torch.tensor(curvature, dtype=torch.float64)
        self.weight = nn.Parameter(torch.zeros(len(curvature), dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return 0.5 * (self.curvature * self.weight.square()).sum()[None]


def output(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.sum()


def quadratic_grid(plane: Plane, xs: list[float], ys: list[float], curvature: list[float]) -> Grid:
    return evaluate_grid(Quadratic(curvature), plane, xs, ys, batches=ONE, criterion=output, score=None)


def test_a_quadratic_has_its_analytic_contours_on_a_tilted_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    a = torch.tensor([1.0, 4.0, 0.5, 9.0], dtype=torch.float64)
    u = (w[1] - w[0]) / (w[1] - w[0]).norm()
    v = (w[2] - w[0]) - (w[2] - w[0]) @ u * u
    v = v / v.norm()
    xs, ys = [-1.0, 0.0, 0.7, 2.0], [-3.0, 0.0, 1.1]
    grid = quadratic_grid(Plane.through(*w), xs, ys, a.tolist())
    # On the plane the loss is the quadratic c + g·p + ½ p·H·p with the Hessian and gradient projected on (û, v̂).
    hessian = torch.tensor([[u @ (a * u), u @ (a * v)], [u @ (a * v), v @ (a * v)]])
    gradient = torch.stack([(a * w[0]) @ u, (a * w[0]) @ v])
    for j, y in enumerate(ys):
        for i, x in enumerate(xs):
            p = torch.tensor([x, y], dtype=torch.float64)
            expected = 0.5 * w[0] @ (a * w[0]) + gradient @ p + 0.5 * p @ hessian @ p
            assert grid.loss[j, i].item() == pytest.approx(expected.item(), rel=1e-12)
    assert grid.accuracy.isnan().all()


def test_a_round_quadratic_is_constant_on_circles() -> None:
    plane = Plane.through(*torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 1, 2]], dtype=torch.float64))
    for angle in (0.0, 0.4, 2.0):
        grid = quadratic_grid(plane, [3 * math.cos(angle)], [3 * math.sin(angle)], [1.0, 1.0, 1.0])
        assert grid.loss.item() == pytest.approx(4.5)


class DoubleWell(nn.Module):
    """Its output is (w² - 1)² + w / 4."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return (self.weight.square() - 1).square() + self.weight / 4


def test_the_barrier_between_two_wells_by_hand() -> None:
    line = Line.between(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64))
    ts = [-1.0, 0.0, 0.25, 0.5, 1.0, 1.5]  # w = -3, -1, -1/2, 0, 1, 2
    grid = evaluate_grid(DoubleWell(), line, ts, batches=ONE, criterion=output, score=None)
    assert grid.loss.tolist() == [64 - 0.75, -0.25, 0.5625 - 0.125, 1.0, 0.25, 9.5]
    # Above the chord from -1/4 to 1/4: 9/16 at w = -1/2, 1 at w = 0; what lies beyond the ends does not count.
    assert grid.barrier() == 1.0
    bowl = Line.between(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert evaluate_grid(Quadratic([1.0]), bowl, ts, batches=ONE, criterion=output, score=None).barrier() == 0.0


def test_a_barrier_needs_a_line_with_both_ends() -> None:
    grid = Grid((0.0, 0.5), (), torch.zeros(2), torch.zeros(2), ("t",), "")
    with pytest.raises(ValueError, match="points at 0 and 1"):
        grid.barrier()


def test_a_grid_takes_coordinates_for_each_axis() -> None:
    line = Line.between(torch.zeros(1), torch.ones(1))
    for xs, ys in (([0.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="takes 1 non-empty lists of coordinates"):
            evaluate_grid(nn.Linear(1, 1, bias=False), line, xs, ys, batches=ONE)


def small_plane() -> tuple[nn.Module, Plane, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    models = [build_model("small-cnn", classes=3, channels=1, image_size=4, width=2) for _ in range(3)]
    data = [(torch.randn(10, 1, 4, 4), torch.arange(10) % 3)]
    return models[0], Plane.through(*models), data


XS, YS = [-1.0, 0.0, 2.0], [0.0, 1.0, 1.5, 4.0]


def run_small(store: Path | None = None, **settings: object) -> Grid:
    model, plane, data = small_plane()
    return evaluate_grid(model, plane, XS, YS, batches=data, store=store, **settings)


def test_a_grid_reports_progress_and_saves_its_numbers(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    grid = run_small(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 12) for i in range(1, 13)]
    assert grid.loss.shape == grid.accuracy.shape == (4, 3)
    grid.save_csv(tmp_path / "grid.csv")
    with (tmp_path / "grid.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(float(r["x"]), float(r["y"])) for r in rows] == [(x, y) for y in YS for x in XS]
    assert [float(r["loss"]) for r in rows] == grid.loss.flatten().tolist()
    assert [float(r["accuracy"]) for r in rows] == grid.accuracy.flatten().tolist()


def test_an_interrupted_grid_goes_on_and_measures_no_point_again(tmp_path: Path) -> None:
    whole = run_small()
    store = tmp_path / "grid"

    def stop(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_small(store, progress=stop)
    seen: list[int] = []
    resumed = run_small(store, progress=lambda done, _: seen.append(done))
    assert seen == list(range(6, 13))
    assert torch.equal(resumed.loss, whole.loss)
    assert torch.equal(resumed.accuracy, whole.accuracy)
    seen.clear()
    again = run_small(store, progress=lambda done, _: seen.append(done))
    assert seen == []
    assert torch.equal(again.loss, whole.loss)


def test_a_line_that_was_cut_off_is_one_point_to_measure_again(tmp_path: Path) -> None:
    store = tmp_path / "grid"
    whole = run_small(store)
    stored = store.read_bytes()
    for cut in (1, 10):
        store.write_bytes(stored[:-cut])
        seen: list[int] = []
        resumed = run_small(store, progress=lambda done, _, seen=seen: seen.append(done))
        assert seen == [12]
        assert torch.equal(resumed.loss, whole.loss)
        assert store.read_bytes() == stored


def test_a_store_of_another_grid_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "grid"
    run_small(store)
    before = store.read_bytes()
    model, plane, data = small_plane()
    with torch.no_grad():
        changed = Plane.through(plane.rows[0], plane.rows[1], plane.rows[2] + 1)
    others = [
        {"geometry": changed},
        {"xs": [0.0]},
        {"batches": [(data[0][0] + 1, data[0][1])]},
        {"norm_stats": "fixed"},
        {"norm_batches": [data[0][0][:5]]},
        {"score": None},
    ]
    for other in others:
        settings = {"geometry": plane, "xs": XS, "ys": YS, "batches": data, **other}
        with pytest.raises(ValueError, match="holds another grid"):
            evaluate_grid(model, store=store, **settings)
    assert store.read_bytes() == before
    store.write_text("something else")
    with pytest.raises(ValueError, match="or no grid at all"):
        run_small(store)
    assert store.read_text() == "something else"


def test_fixed_statistics_belong_to_a_grid_and_reestimated_ones_do_not(tmp_path: Path) -> None:
    model, plane, data = small_plane()
    for mode, refused in (("reestimate", False), ("fixed", True)):
        store = tmp_path / mode
        settings = {"batches": data, "norm_stats": mode, "store": store}
        first = evaluate_grid(model, plane, XS, YS, **settings)
        model[1].running_mean += 1
        if refused:
            with pytest.raises(ValueError, match="holds another grid"):
                evaluate_grid(model, plane, XS, YS, **settings)
        else:
            assert torch.equal(evaluate_grid(model, plane, XS, YS, **settings).loss, first.loss)


PROCESS = """
import os, signal, sys
import torch
sys.path.insert(0, os.environ["HERE"])
from test_grid import run_small

def progress(done, total):
    if os.environ.get("KILL_AT") == str(done):
        os.kill(os.getpid(), signal.SIGKILL)

if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
grid = run_small(os.environ.get("STORE"), progress=progress)
print(grid.loss.flatten().tolist())
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
"""


def start(**environment: object) -> subprocess.Popen[str]:
    settings = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HERE": str(Path(__file__).parent), **settings},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_is_gone_on_from(tmp_path: Path) -> None:
    store = tmp_path / "grid"
    killed = start(STORE=store, KILL_AT=4)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(store.read_text().splitlines()) == 1 + 4
    seen: list[int] = []
    resumed = run_small(store, progress=lambda done, _: seen.append(done))
    assert seen == list(range(5, 13))
    assert torch.equal(resumed.loss, run_small().loss)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_processes_share_the_points_and_all_get_the_grid(tmp_path: Path) -> None:
    store = tmp_path / "grid"
    with pytest.raises(KeyboardInterrupt):
        run_small(store, progress=interrupt_at_third)
    group = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "STORE": store}
    processes = [start(RANK=rank, **group) for rank in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    expected = run_small().loss.flatten().tolist()
    for line in outputs:
        assert json.loads(line) == pytest.approx(expected, rel=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["grid"]
    assert len(store.read_text().splitlines()) == 1 + 12
    seen: list[int] = []
    run_small(store, progress=lambda done, _: seen.append(done))
    assert seen == []


def interrupt_at_third(done: int, _: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


def test_what_another_process_had_finished_counts(tmp_path: Path) -> None:
    """Two processes were killed: the points of both files are known, whoever goes on."""
    store = tmp_path / "grid[1]"
    whole = run_small(store)
    header, *lines = store.read_text().splitlines(keepends=True)
    store.write_text(header + "".join(lines[:4]))
    store.with_name("grid[1].rank1").write_text(header + "".join(lines[6:9]) + "[1, 2")
    seen: list[int] = []
    resumed = run_small(store, progress=lambda done, _: seen.append(done))
    assert seen == list(range(8, 13))
    assert torch.equal(resumed.loss, whole.loss)


def test_the_model_of_a_grid_is_left_alone() -> None:
    model, plane, data = small_plane()
    before = [t.clone() for t in model.state_dict().values()]
    evaluate_grid(model, plane, XS, YS, batches=data)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(plane.rows[0], flatten(model))
