"""The command as a user meets it: what it prints, what it returns, and what a kill leaves."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lookaround_command
from lookaround.cli import main
from lookaround.experiment.records import read_records
from lookaround.experiment.training import Training

TINY = [
    *("train", "--train-images", "50", "--test-images", "30", "--width", "4", "--device", "cpu"),
    *("--budget", "1500", "--evaluations", "10", "--checkpoint-every", "2", "--all", "batch=10,warmup=0.2"),
]


def command(method: str, out: Path) -> list[str]:
    return [*TINY, "--methods", method, "--out", str(out)]


def folder_of(out: Path, method: str) -> Path:
    return out / f"{method},batch=10,warmup=0.2" / "seed-0"


@pytest.fixture
def process():
    """Starts real ``lookaround`` processes and leaves none behind."""
    started: list[subprocess.Popen[str]] = []

    def start(words: list[str]) -> subprocess.Popen[str]:
        program = [sys.executable, "-W", "error", "-c", "import sys, lookaround.cli; sys.exit(lookaround.cli.main())"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([*program, *words], text=True, **pipes))
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a method's uninterrupted run."""
    folders: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp("whole")
            assert main(command(method, folders[method])) == 0
        return folders[method]

    return run


def wait_for_epoch(child: subprocess.Popen[str], epoch: int) -> None:
    for line in child.stdout:
        if f"| epoch {epoch} |" in line:
            return
    pytest.fail(f"it ended before epoch {epoch}: {child.stderr.read()}")


def weights(out: Path, method: str) -> dict[str, torch.Tensor]:
    return load_file(folder_of(out, method) / "model.safetensors")


def records(out: Path, method: str) -> list[dict[str, object]]:
    return [{**record, "seconds": 0} for record in read_records(folder_of(out, method) / "metrics.jsonl")]


def assert_same_run(first: Path, second: Path, method: str) -> None:
    found, expected = weights(first, method), weights(second, method)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert records(first, method) == records(second, method)


@pytest.mark.parametrize("method", ["lookaround", "lookahead+sam"])
def test_killed_at_any_moment_and_resumed_it_ends_in_the_same_bits(tmp_path, process, whole, method):
    child = process(command(method, tmp_path / "killed"))
    wait_for_epoch(child, 2)
    child.kill()  # SIGKILL, wherever in the next minibatches or files it is by now
    assert child.wait() == -signal.SIGKILL
    assert not (folder_of(tmp_path / "killed", method) / "result.json").exists()
    assert main([*command(method, tmp_path / "killed"), "--resume"]) == 0
    assert_same_run(tmp_path / "killed", whole(method), method)


def test_ctrl_c_saves_and_says_the_command_that_goes_on(tmp_path, process, whole):
    out = tmp_path / "a folder"
    child = process(command("lookaround", out))
    wait_for_epoch(child, 1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130
    assert len(said.splitlines()) == 1
    found = re.fullmatch(
        r"lookaround: interrupted: lookaround:\S+ with seed 0 is saved at minibatch \d+; go on with: (.*)", said.strip()
    )
    resuming = shlex.split(found[1])
    assert resuming == ["lookaround", *command("lookaround", out), "--resume"]
    assert main(resuming[1:]) == 0
    assert_same_run(out, whole("lookaround"), "lookaround")


def test_it_prints_the_table_and_where_things_are(tmp_path, capsys):
    words = [*TINY, "--methods", "sgd", "lookaround", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    caption, *_ = (tmp_path / "table.md").read_text().splitlines()
    table = printed[printed.index(caption) : printed.index("learning curves: ")]
    assert re.search(r"^method +top-1 %", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 80
    assert f"learning curves: {tmp_path / 'curves.png'}" in printed
    assert f"averaged models: {tmp_path}/METHOD/seed-SEED/model.safetensors" in printed
    assert "lookaround:batch=10,warmup=0.2, seed 0 | epoch 1 | loss " in printed
    assert "members of ensembles" not in printed
    assert not {"over seeds", "I-budget"} & {text for text in ("over seeds", "I-budget") if text in printed}
    assert main([*words, "--add-seeds", "1", "--add-methods", "logit-ensemble:batch=10"]) == 0
    footer = "mean ± std over seeds; I-budget: forward passes for one prediction"
    assert footer in capsys.readouterr().out.splitlines()


def a_folder(root: Path) -> Path:
    for part, names in {"train": ("cat", "dog"), "test": ("cat", "dog")}.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(root / part / name / f"{index}.png")
    return root


def without_a_test_class(root: Path) -> Path:
    for path in (a_folder(root) / "test" / "dog").iterdir():
        path.unlink()
    (root / "test" / "dog").rmdir()
    return root


def with_a_corrupt_image(root: Path) -> Path:
    path = a_folder(root) / "train" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    return root


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "cifar10", "--root", "/no/such"], r"there is no folder /no/such"),
        (["--data", "mnist"], r"unknown data set 'mnist'; choose one of digits, cifar10, cifar100, folder"),
        (["--methods", "adan"], r"unknown method 'adan'; choose from sgd, adamw,"),
        (["--model", "resnet1"], r"unknown model 'resnet1'; choose one of"),
        (["--augmentations", "blur"], r"unknown augmentation 'blur'; choose among"),
        (["--methods", "lookaround:k=0"], r"lookaround: k must be at least 1, got 0"),
        (["--methods", "sgd:k=5"], r"sgd has no setting 'k'; it has lr, momentum, dampening, weight_decay, nesterov,"),
        (["--methods", "lookahead:alpha=2"], r"lookahead: alpha must be from 0 to 1, got 2"),
        (
            ["--methods", "sgd", "ema:decay=1"],
            "ema: decay must be below 1, got 1; the mean of all points is tail:fraction=1",
        ),
        (["--methods", "sgd", "--all", "k=3"], r"--all: none of sgd has a setting 'k'"),
        (
            ["--methods", "sgd", "lookaround:batch=1/d", "--all", "batch=32"],
            r"--all batch=32 beside lookaround:batch=1/d: 1/d is a d-th of the task's own batch, not of that one",
        ),
        (["--budget", "10"], r"sgd: a minibatch costs 192 samples, more than the whole budget of 10"),
        (["--device", "tpu"], r"unknown device 'tpu'; choose auto, cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_gives_one_line_and_status_2(tmp_path, capsys, words, said):
    assert main(["train", "--out", str(tmp_path / "out"), *words]) == 2
    assert re.fullmatch(rf"lookaround: .*{said}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("make", "said"), [(without_a_test_class, "dog"), (with_a_corrupt_image, r"dog/2\.png")])
def test_a_folder_at_fault_is_named_in_one_line(tmp_path, capsys, make, said):
    root = make(tmp_path / "data")
    assert main(["train", "--data", "folder", "--root", str(root), "--out", str(tmp_path / "out")]) == 2
    assert re.fullmatch(rf"lookaround: .*{said}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_images_trains(tmp_path):
    root = a_folder(tmp_path / "data")
    words = ["--data", "folder", "--root", str(root), "--model", "small-cnn", "--epochs", "2"]
    assert main(["train", *words, "--methods", "lookaround:batch=4", "--out", str(tmp_path / "out")]) == 0
    assert "top-5" not in (tmp_path / "out" / "table.md").read_text()


def test_a_corrupt_checkpoint_is_named_and_nothing_is_lost(tmp_path, capsys):
    words = command("sgd", tmp_path)
    assert main(words) == 0
    run = folder_of(tmp_path, "sgd")
    (run / "result.json").unlink()
    (run / "checkpoint.pt").write_bytes(b"PK rubbish")
    kept = records(tmp_path, "sgd")
    assert main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"lookaround: cannot use checkpoint .*/sgd,batch=10,warmup=0\.2/seed-0/checkpoint\.pt: .*; remove its folder .*\n",
        said,
    )
    assert records(tmp_path, "sgd") == kept


def test_divergence_gives_one_line_and_status_1(tmp_path, capsys):
    assert main([*command("sgd:lr=1e30", tmp_path)]) == 1
    assert re.fullmatch(r"lookaround: sgd:lr=1e\+30,\S+ with seed 0 diverged: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (
            errno.ENOSPC,
            r"; nothing written before is lost: free some space and go on with: lookaround train .* --resume",
        ),
        (errno.EACCES, ""),
    ],
)
def test_a_file_that_cannot_be_written_gives_one_line_and_status_1(tmp_path, capsys, monkeypatch, code, advice):
    def fail(self: Training) -> None:
        raise OSError(code, os.strerror(code), "the/checkpoint.pt")

    monkeypatch.setattr(Training, "save", fail)
    assert main(command("sgd", tmp_path)) == 1
    assert re.fullmatch(rf"lookaround: {os.strerror(code)}: the/checkpoint\.pt{advice}\n", capsys.readouterr().err)


def test_an_interruption_outside_training_is_one_line_too(tmp_path, capsys, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lookaround.tasks.vision.task.load_data", interrupted)
    assert main(command("sgd", tmp_path)) == 130
    assert re.fullmatch(r"lookaround: interrupted; go on with: lookaround train .* --resume\n", capsys.readouterr().err)


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(self: Training, minibatches: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Training, "_train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(command("sgd", tmp_path))


def test_ctrl_c_while_everything_is_still_being_imported_is_one_line():
    """The first seconds go to importing torch; the interrupt comes when that has begun."""
    program = """
import sys, lookaround_command as command
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch":
            print("begun", flush=True)
sys.meta_path.insert(0, Finder())
sys.exit(command.main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, "train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and so would the child.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
    assert (child.returncode, said) == (130, "lookaround: interrupted\n")


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"lookaround {importlib.metadata.version('lookaround')}\n"


def test_help_lists_the_commands_and_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "train" in capsys.readouterr().out
    for words in ([], ["trian"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert re.fullmatch(r"lookaround: .*; see lookaround --help\n", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["recipes"], ["methods"], ["--help"], ["recipes", "--help"]], ids=" ".join)
def test_output_that_nobody_reads_to_its_end_ends_the_command_quietly(words, monkeypatch, capsys):
    """As in ``lookaround recipes | head -1``: a real pipe whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "argv", ["lookaround", *words])
    with os.fdopen(writing, "w", encoding="utf-8") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        assert lookaround_command.main() == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_a_reader_that_goes_away_in_the_middle_ends_a_training_quietly_and_it_can_be_gone_on_with(tmp_path, whole):
    words = command("lookaround", tmp_path)
    program = [sys.executable, "-W", "error", "-c", "import sys, lookaround_command as it; sys.exit(it.main())"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*program, *words], text=True, **pipes) as child:
        assert "| epoch " in child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""
        assert child.wait() == 128 + signal.SIGPIPE
    assert main([*words, "--resume"]) == 0
    assert_same_run(tmp_path, whole("lookaround"), "lookaround")


def test_a_pipe_that_breaks_elsewhere_is_an_error_like_any_other(tmp_path, capsys, monkeypatch):
    def broken(self: Training) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr(Training, "save", broken)
    assert main(command("sgd", tmp_path)) == 1
    assert capsys.readouterr().err == "lookaround: Broken pipe\n"
