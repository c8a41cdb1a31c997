"""``lookaround soup`` on real runs' files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lookaround.averaging import greedy_soup
from lookaround.cli import main
from lookaround.commands.runs import load_run
from lookaround.experiment import load_network
from lookaround.tasks.vision.data import load_data
from lookaround.tasks.vision.data.dataset import class_order


def model(folder: str) -> Path:
    return Path(folder) / "model.safetensors"


def recipe(path: Path) -> list[dict[str, object]]:
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["lookaround.soup"])


def test_a_weighted_soup_of_run_folders(runs, tmp_path, capsys):
    out = tmp_path / "soup.safetensors"
    assert main(["soup", str(out), runs["sgd"], runs["lookaround"], "--weights", "1", "3"]) == 0
    found, first, second = load_file(out), load_file(model(runs["sgd"])), load_file(model(runs["lookaround"]))
    for name, value in found.items():
        if value.is_floating_point():
            exact = (0.25 * first[name].double() + 0.75 * second[name].double()).float()
            torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-7)
    printed = capsys.readouterr().out
    for line, folder, weight in zip(recipe(out), (runs["sgd"], runs["lookaround"]), (0.25, 0.75), strict=True):
        digest = hashlib.sha256(model(folder).read_bytes()).hexdigest()
        assert line == {"file": str(model(folder)), "sha256": digest, "weight": weight}
        assert f"{weight:.4f}  {digest[:16]}  {model(folder)}" in printed
    assert f"written: {out}" in printed


def test_a_soup_is_a_network_that_other_commands_take(runs, tmp_path):
    out = tmp_path / "mixed.safetensors"
    assert main(["soup", str(out), runs["sgd"], runs["lookaround"]]) == 0
    network, architecture = load_network(out)
    assert architecture == load_network(model(runs["sgd"]))[1]
    found = network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in load_file(out).items())
    soup = load_run(out)
    assert (soup.name, soup.method, soup.seed) == ("mixed", None, None)
    again = tmp_path / "again.safetensors"
    assert main(["soup", str(again), runs["sgd"], runs["sgd"]]) == 0
    assert load_run(again).name == "again"  # though method and seed are common to all it is made of


def test_torch_save_files_are_read_too(tmp_path):
    for index in (1, 3):
        torch.save({"w": torch.full((2,), float(index))}, tmp_path / f"{index}.pt")
    assert main(["soup", *(str(tmp_path / name) for name in ("soup.safetensors", "1.pt", "3.pt"))]) == 0
    assert load_file(tmp_path / "soup.safetensors")["w"].tolist() == [2.0, 2.0]


def test_greedy_chooses_on_the_training_images_that_no_run_saw(runs, tmp_path, capsys):
    """The members are those of greedy_soup on a held-out set put together here."""
    data = load_data("digits")
    left = class_order(data.train_labels, 0, proportional=False)[300:].sort().values
    network, architecture = load_network(model(runs["sgd"]))
    mean, std = architecture.mean[0], architecture.std[0]
    images = (data.train_images[left].float() / 255 - mean) / std

    @torch.no_grad()
    def accuracy(state):
        network.load_state_dict(state)
        return 100 * (network(images).argmax(1) == data.train_labels[left]).double().mean().item()

    files = [model(folder) for folder in runs.values()]
    expected = greedy_soup(files, accuracy)
    out = tmp_path / "soup.safetensors"
    assert main(["soup", str(out), *runs.values(), "--greedy", "--device", "cpu"]) == 0
    assert [line["file"] for line in recipe(out)] == [str(files[index]) for index in expected.members]
    printed = capsys.readouterr().out
    assert f"accuracy on {len(left):,} held-out images" in printed
    assert f"{expected.score:.2f} %  the soup of {len(expected.members)}" in printed
    for own, file in zip(expected.scores, files, strict=True):
        assert f"{own:.2f} %  {file}" in printed
    for name, value in load_file(out).items():
        torch.testing.assert_close(value, expected.weights[name], rtol=1e-6, atol=1e-7)


def test_greedy_on_test_images_says_so(runs, tmp_path, capsys):
    words = ["soup", str(tmp_path / "s.safetensors"), runs["sgd"], runs["lookahead"], "--greedy", "--split", "test"]
    assert main(words) == 0
    assert "accuracy on 60 test images" in capsys.readouterr().out


def other(tmp_path: Path, tensors: dict[str, torch.Tensor], name: str = "other.safetensors") -> str:
    save_file(tensors, tmp_path / name)
    return str(tmp_path / name)


def test_models_that_differ_are_listed_in_one_line_and_nothing_is_written(tmp_path, refused):
    first = other(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(1)}, "first.safetensors")
    second = other(tmp_path, {"a": torch.zeros(3), "c": torch.zeros(1)}, "second.safetensors")
    said = refused("soup", str(tmp_path / "out.safetensors"), first, second)
    for part in ("second.safetensors", "first.safetensors", "(3,)", "(2,)", "b", "c"):
        assert part in said
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{out}"], "a soup needs at least one model"),
        (["{out}", "no/such"], "there is no no/such; an IN is a safetensors file"),
        (["no/folder/soup.safetensors", "{sgd}"], "no/folder/soup.safetensors cannot be written"),
        (["{out}", "{sgd}", "--weights", "1", "2"], "weights must be one for each of the 1 ingredients, got 2"),
        (["{out}", "{sgd}", "--weights", "-1"], "weights must not be negative"),
        (["{out}", "{sgd}", "--greedy", "--weights", "1"], "leave --weights out"),
        (["{out}", "{sgd}", "--greedy", "--data", "cifar10", "--root", "no/such"], "there is no folder no/such"),
        (["{out}", "{sgd}", "--device", "tpu", "--greedy"], "unknown device 'tpu'"),
        (["{out}", "{sgd}", "--splat"], "Unrecognized options: --splat; see lookaround soup --help"),
        ([], "Missing from lookaround soup: OUT"),
    ],
)
def test_bad_input_is_one_line(runs, tmp_path, refused, words, said):
    filled = [word.format(out=tmp_path / "out.safetensors", **runs) for word in words]
    assert said in refused("soup", *filled)
    assert not (tmp_path / "out.safetensors").exists()


def test_runs_that_held_nothing_out_cannot_be_chosen_on_training_images(tmp_path, refused):
    words = ["--epochs", "1", "--test-images", "20", "--width", "4", "--batch-size", "400", "--methods", "sgd"]
    assert main(["train", *words, "--device", "cpu", "--out", str(tmp_path / "all")]) == 0
    said = refused("soup", str(tmp_path / "out.safetensors"), str(tmp_path / "all"), "--greedy")
    assert "there is no" in said  # an experiment's folder is no model; its run's is
    said = refused("soup", str(tmp_path / "out.safetensors"), str(tmp_path / "all" / "sgd" / "seed-0"), "--greedy")
    assert "train them with --train-images N" in said


def test_images_that_the_experiment_set_aside_are_chosen_on(tmp_path, capsys):
    words = ["--epochs", "2", "--train-images", "100", "--test-images", "20", "--width", "4", "--batch-size", "40"]
    out = tmp_path / "chosen"
    choosing = ["--methods", "sgd", "greedy-soup", "--hold-out", "0.2", "--device", "cpu", "--out", str(out)]
    assert main(["train", *words, *choosing]) == 0
    runs = [str(out / method / "seed-0") for method in ("sgd", "greedy-soup")]
    assert main(["soup", str(tmp_path / "soup.safetensors"), *runs, "--greedy", "--device", "cpu"]) == 0
    assert "accuracy on 20 held-out images" in capsys.readouterr().out
