"""``lookaround landscape`` on real runs: what is measured, drawn, printed, gone on with and shared."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lookaround.averaging.files import read_header, save_tensors
from lookaround.cli import main
from lookaround.experiment.training import Training
from lookaround.landscape import Plane, Value, flatten
from lookaround.landscape.probe import Probe
from lookaround.tasks.vision import load_network
from lookaround.tasks.vision.data import load_data

SMALL = ["--device", "cpu", "--images", "30", "--norm-images", "40", "--threads", "1"]


def table(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def result(folder: str) -> dict[str, float]:
    return json.loads((Path(folder) / "result.json").read_text())


def assert_a_picture(folder: Path, name: str) -> None:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / f"{name}.svg").read_text()


def test_a_line_of_fixed_statistics_ends_at_the_runs_own_results(runs, tmp_path, capsys):
    """At 0 the network is the run itself, so loss and accuracy are those that training recorded."""
    words = ["landscape", "line", runs["lookaround"], runs["sgd"], "--out", str(tmp_path), "--points", "3"]
    assert main([*words, "--norm-stats", "fixed", "--beyond", "0", "--device", "cpu"]) == 0
    rows = table(tmp_path / "line.csv")
    assert [row["position on the line"] for row in rows] == [0, 0.5, 1]
    assert rows[0]["loss"] == pytest.approx(result(runs["lookaround"])["metrics"]["nll"], rel=1e-5)
    assert rows[0]["accuracy"] == pytest.approx(result(runs["lookaround"])["metrics"]["top1"])
    barrier = max(0.0, rows[1]["loss"] - (rows[0]["loss"] + rows[2]["loss"]) / 2)
    printed = capsys.readouterr().out
    assert f"barrier {barrier:.4g}, distance " in printed
    assert "0 is lookaround:batch=20, seed 0, 1 is sgd:batch=20, seed 0" in printed
    assert_a_picture(tmp_path, "line")
    assert "norm statistics fixed" in (tmp_path / "line.svg").read_text()
    assert not (tmp_path / "line.points").exists()


def test_a_line_on_training_images_with_statistics_of_its_own(runs, tmp_path):
    words = ["landscape", "line", runs["sgd"], runs["lookahead"], "--out", str(tmp_path), "--points", "2"]
    assert main([*words, "--split", "train", *SMALL, "--beyond", "1"]) == 0
    assert [row["position on the line"] for row in table(tmp_path / "line.csv")] == [-1, 0, 1, 2]
    assert "re-estimated on 40 samples" in (tmp_path / "line.svg").read_text()
    assert "train images" in (tmp_path / "line.svg").read_text()


def plane_words(runs, out: Path, points: int = 3) -> list[str]:
    three = (runs["sgd"], runs["lookahead"], runs["lookaround"])
    return ["landscape", "plane", *three, "--out", str(out), "--points", str(points), *SMALL]


def test_a_plane_through_three_runs(runs, tmp_path, capsys):
    assert main(plane_words(runs, tmp_path)) == 0
    plane = Plane.through(*(load_network(f"{folder}/model.safetensors")[0] for folder in runs.values()))
    printed = capsys.readouterr().out
    for method, (x, y) in zip(runs, plane.anchors, strict=True):
        name = f"{method}:batch=20, seed 0"
        assert f"{name:<24} x = {x:.4g}, y = {y:.4g}, 0 off the plane" in printed
        assert name in (tmp_path / "plane.svg").read_text()
        assert name in (tmp_path / "plane.html").read_text()
    rows = table(tmp_path / "plane.csv")
    assert len(rows) == 9
    assert min(row["x"] for row in rows) < 0 < plane.anchors[1][0] < max(row["x"] for row in rows)
    assert_a_picture(tmp_path, "plane")


def test_a_fourth_run_is_projected_and_files_of_tensors_take_their_network_from_the_runs(runs, tmp_path, capsys):
    state = load_file(f"{runs['sgd']}/model.safetensors")
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }
    save_file(moved, tmp_path / "moved.safetensors")
    words = plane_words(runs, tmp_path / "out", points=2)
    assert main([*words[:2], str(tmp_path / "moved.safetensors"), *words[2:], "--quantity", "accuracy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("moved                    x = 0, y = 0, 0 off")
    assert lines[3].startswith("lookaround:batch=20, seed 0")
    assert not lines[3].endswith(" 0 off the plane")
    assert "accuracy on test images" in (tmp_path / "out" / "plane.svg").read_text()


def test_one_run_alone_is_the_middle_of_a_random_plane(runs, tmp_path):
    words = ["landscape", "plane", runs["sgd"], "--out", str(tmp_path), "--points", "3", "--extent", "0.5"]
    assert main([*words, "--norm-stats", "fixed", "--device", "cpu"]) == 0
    rows = table(tmp_path / "plane.csv")
    assert [row["first direction"] for row in rows[:3]] == [-0.5, 0, 0.5]
    middle = next(row for row in rows if row["first direction"] == row["second direction"] == 0)
    assert middle["loss"] == pytest.approx(result(runs["sgd"])["metrics"]["nll"], rel=1e-5)
    assert middle["loss"] == min(row["loss"] for row in rows)


def test_interrupted_it_keeps_its_points_and_the_same_command_measures_only_the_others(
    runs, tmp_path, capsys, monkeypatch
):
    measure = Probe.measure
    measured: list[Value] = []

    def interrupted(self: Probe) -> Value:
        if len(measured) == 4:
            raise KeyboardInterrupt
        measured.append(measure(self))
        return measured[-1]

    words = plane_words(runs, tmp_path / "out")
    monkeypatch.setattr(Probe, "measure", interrupted)
    assert main(words) == 130
    said = capsys.readouterr().err.strip()
    kept, _, again = said.partition("; go on with: ")
    assert kept == f"lookaround: interrupted: 4 of 9 points are kept in {tmp_path}/out/plane.points"
    assert shlex.split(again) == ["lookaround", *words]
    counted: list[Value] = []
    monkeypatch.setattr(Probe, "measure", lambda self: counted.append(measure(self)) or counted[-1])
    assert main(shlex.split(again)[1:]) == 0
    assert len(counted) == 5
    monkeypatch.setattr(Probe, "measure", measure)
    assert main(plane_words(runs, tmp_path / "whole")) == 0
    assert (tmp_path / "out" / "plane.csv").read_bytes() == (tmp_path / "whole" / "plane.csv").read_bytes()


def test_points_of_another_grid_in_the_folder_are_named(runs, tmp_path, refused):
    (tmp_path / "plane.points").write_text("something else\n")
    assert f"{tmp_path}/plane.points holds another grid" in refused(*plane_words(runs, tmp_path))
    assert (tmp_path / "plane.points").read_text() == "something else\n"


# A shell gives what it runs in the background an ignored SIGINT, and the tests may run so; Ctrl-C is what is tested here.
LISTEN = "signal.signal(signal.SIGINT, signal.default_int_handler)"
CALL = f"import signal, sys, lookaround.cli; {LISTEN}; sys.exit(lookaround.cli.main())"
PROGRAM = [sys.executable, "-W", "error", "-c", CALL]


def started(words: list[str], **environment: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*PROGRAM, *words], env={**os.environ, **environment}, **pipes)


def test_two_processes_share_a_plane_and_write_it_once(runs, tmp_path):
    """Real processes, with the environment that torchrun gives them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    words = plane_words(runs, tmp_path / "shared")
    children = [started(words, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in range(2)]
    said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert str(tmp_path / "shared" / "plane.png") in said[0][0]
    assert said[1][0] == ""
    assert main(plane_words(runs, tmp_path / "alone")) == 0
    assert (tmp_path / "shared" / "plane.csv").read_bytes() == (tmp_path / "alone" / "plane.csv").read_bytes()
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == [
        f"plane.{k}" for k in ("csv", "html", "png", "svg")
    ]


def test_ctrl_c_on_a_real_process(runs, tmp_path):
    words = plane_words(runs, tmp_path, points=400)
    child = started(words, OMP_NUM_THREADS="1")
    points = tmp_path / "plane.points"
    while child.poll() is None and not (points.exists() and points.read_bytes().count(b"\n") > 3):
        os.sched_yield()
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert len(said.splitlines()) == 1
    assert f"of 160000 points are kept in {points}; go on with: lookaround landscape plane" in said


@pytest.mark.parametrize(("method", "rounds", "k"), [("lookaround", 2, 3), ("lookahead", 3, 2)])
def test_a_trajectory_records_whole_rounds_from_the_runs_own_weights(runs, tmp_path, capsys, method, rounds, k):
    words = ["landscape", "trajectory", runs[method], "--rounds", str(rounds), "--k", str(k), "--lr", "0.01"]
    assert main([*words, *SMALL[:2], "--norm-stats", "fixed", "--out", str(tmp_path)]) == 0
    rows = table(tmp_path / "trajectory.csv")
    assert [(row["round"], row["step"]) for row in rows] == [(r, s) for r in range(rounds) for s in range(k + 1)]
    assert rows[0]["average_loss"] == pytest.approx(result(runs[method])["metrics"]["nll"], rel=1e-5)
    assert ("branch3_loss" in rows[0]) == (method == "lookaround")
    printed = capsys.readouterr().out
    ends = [row["average_accuracy"] for row in rows if row["step"] == k]
    assert f"at the ends of {rounds} rounds: average {sum(ends) / rounds:.2f} %" in printed
    assert_a_picture(tmp_path, "trajectory")


def test_a_trajectory_from_scratch_begins_with_the_seeds_initial_weights(runs, tmp_path, monkeypatch):
    """sgd has no rounds, so Lookaround is recorded; its branches begin with the weights that training began with."""
    words = ["--start", "scratch", "--rounds", "1", "--barrier-points", "1", "--out", str(tmp_path / "out")]
    assert main(["landscape", "trajectory", runs["sgd"], *words, *SMALL[:2], "--norm-stats", "fixed"]) == 0
    first = table(tmp_path / "out" / "trajectory.csv")[0]
    begun: list[torch.Tensor] = []

    def kept(self: Training, stop: object) -> None:
        begun.append(flatten(self.model))
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "train", kept)
    again = ["--config", str(Path(runs["sgd"]).parent.parent / "experiment.json"), "--methods", "sgd:batch=20"]
    assert main(["train", *again, "--out", str(tmp_path / "again")]) == 130
    model, _ = load_network(f"{runs['sgd']}/model.safetensors")
    torch.nn.utils.vector_to_parameters(begun[0], model.parameters())
    for name, buffer in model.named_buffers():
        buffer.fill_(1.0 if name.endswith("running_var") else 0.0)
    data = load_data("digits").subset(300, 60, 0)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(data.normalize(data.test_images)), data.test_labels)
    assert first["average_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["barrier"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing said; lookaround landscape takes plane, line, trajectory"),
        (["sphere"], "unknown 'sphere'; lookaround landscape takes plane, line, trajectory"),
        (["plane"], "a plane takes three runs or more, or one, got 0"),
        (["plane", "{sgd}", "{lookahead}"], "a plane takes three runs or more, or one, got 2"),
        (["plane", "{sgd}", "{sgd}", "{lookahead}"], "the first two weight vectors are equal"),
        (["plane", "{sgd}", "--points", "1"], "points must be at least 2, got 1"),
        (["plane", "{sgd}", "--extent", "0"], "extent must be above 0, got 0.0"),
        (["plane", "{sgd}", "--margin", "-1"], "margin must be at least 0, got -1.0"),
        (["line", "{sgd}"], "a line takes two runs, got 1"),
        (["line", "{sgd}", "{sgd}"], "the two weight vectors are equal"),
        (["line", "{sgd}", "no/such"], "there is no no/such; give a run's folder"),
        (["line", "{experiment}", "{sgd}"], "holds 3 runs; give one of them, such as "),
        (["line", "{sgd}", "{experiment}/sgd,batch=20"], "holds no finished run"),
        (["line", "{sgd}", "{experiment}/experiment.json"], "experiment.json is no safetensors file"),
        (["line", "{sgd}", "{lookahead}", "--images", "61"], "takes 1 to 60 images, got 61"),
        (["line", "{sgd}", "{lookahead}", "--norm-images", "0"], "takes 1 to 300 images, got 0"),
        (["line", "{sgd}", "{lookahead}", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["line", "{sgd}", "{lookahead}", "--data", "mnist"], "unknown data set 'mnist'"),
        (["line", "{sgd}", "{lookahead}", "--beyond", "-1"], "--beyond must be from 0 to 1000, got -1.0"),
        (["line", "{sgd}", "{lookahead}", "--norm-stats", "no"], "invalid choice 'no' for argument '--norm-stats'"),
        (
            ["line", "{sgd}", "{lookahead}", "--out", "{experiment}/experiment.json"],
            "is a file; choose a folder for --out",
        ),
        (["trajectory", "{sgd}", "{lookahead}"], "a trajectory takes one run, got 2"),
        (["trajectory", "{sgd}", "--method", "sgd"], "sgd has no rounds to record; choose from lookaround,"),
        (["trajectory", "{sgd}", "--method", "adam"], "adam has no rounds to record; choose from lookaround,"),
        (["trajectory", "{sgd}", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["trajectory", "{sgd}", "--lr", "-1"], "Invalid learning rate: -1.0"),
        (["trajectory", "{sgd}", "--k", "0"], "--k must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(runs, experiment, tmp_path, refused, words, said):
    filled = [word.format(experiment=experiment, **runs) for word in words]
    out = [] if "--out" in words or len(words) < 2 else ["--out", str(tmp_path / "out")]
    assert said in refused("landscape", *filled, *out)


def test_other_networks_and_files_without_one_are_refused(runs, tmp_path, refused):
    other = ["--epochs", "1", "--train-images", "40", "--test-images", "20", "--methods", "sgd:batch=20"]
    assert main(["train", *other, "--width", "8", "--device", "cpu", "--out", str(tmp_path / "wide")]) == 0
    assert "are different networks: width 8 against 4" in refused(
        "landscape", "line", runs["sgd"], str(tmp_path / "wide")
    )
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    said = refused("landscape", "line", str(tmp_path / "w.safetensors"), str(tmp_path / "w.safetensors"))
    assert "tensors without an image network to put them in" in said
    assert "the state dict has no" in refused("landscape", "line", runs["sgd"], str(tmp_path / "w.safetensors"))


def test_a_copied_file_knows_its_data_set_and_has_to_be_told_a_folder_of_images(runs, tmp_path, refused):
    copies = [tmp_path / f"{method}.safetensors" for method in ("sgd", "lookahead")]
    for copy in copies:
        copy.write_bytes((Path(runs[copy.stem]) / "model.safetensors").read_bytes())
    words = ["landscape", "line", *map(str, copies), "--points", "3", "--out", str(tmp_path / "out"), *SMALL]
    assert main(words) == 0
    assert len(table(tmp_path / "out" / "line.csv")) == 5
    for copy in copies:
        of_photos = {**read_header(copy)[1], "lookaround.data": "photos"}
        save_tensors(copy, load_file(copy), of_photos)
    assert "pass --data folder --root FOLDER, or --data digits, cifar10, cifar100" in refused(*words)
    assert main([*words, "--data", "digits", "--out", str(tmp_path / "told")]) == 0


def test_help_of_the_group_and_of_each_verb(capsys):
    assert main(["landscape", "--help"]) == 0
    assert "plane|line|trajectory RUN..." in capsys.readouterr().out
    for verb in ("plane", "line", "trajectory"):
        with pytest.raises(SystemExit) as stopped:
            main(["landscape", verb, "--help"])
        assert stopped.value.code == 0
        assert "RUN..." in capsys.readouterr().out
