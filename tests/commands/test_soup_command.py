"""``lookaround soup`` on real runs' files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lookaround.averaging import greedy_soup
from lookaround.cli import main
from lookaround.commands.progress import progress_bar
from lookaround.commands.runs import load_run
from lookaround.tasks.vision import load_network
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
        digest = blake3(model(folder).read_bytes()).hexdigest()
        assert line == {
            "file": str(model(folder)),
            "weight": weight,
            "hashes": {"model.safetensors": f"blake3:{digest}"},
        }
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
        (["{out}", "{sgd}", "--greedy", "--weights", "1"], "--weights and --greedy are two answers"),
        (["{out}", "{sgd}", "--greedy", "--data", "cifar10", "--root", "no/such"], "there is no folder no/such"),
        (["{out}", "{sgd}", "--device", "tpu", "--greedy"], "unknown device 'tpu'"),
        (["{out}", "{sgd}", "--splat"], "Unrecognized options: --splat; see lookaround soup --help"),
        ([], "give OUT and then the models"),
        (["{out}", "{sgd}", "--shard-size", "5GB"], "give OUT a name without .safetensors"),
        (["out", "{sgd}", "--shard-size", "big"], "a number of bytes such as 5GB or 500MB, got 'big'"),
        (["out", "{sgd}", "--shard-size", "0GB"], "got '0GB'"),
        (["{out}", "no/such/checkpoint-*"], "no file or folder matches no/such/checkpoint-*"),
        (["{out}", "{sgd}", "--rule", "ema"], "unknown rule 'ema'; the rules are uniform, tail, lawa"),
        (["{out}", "{sgd}", "--rule", "lawa"], "the rule lawa needs window: lawa:window=…"),
        (["{out}", "{sgd}", "--rule", "lawa:width=3"], "has no setting 'width=3'; it takes window=…, every=…"),
        (["{out}", "{sgd}", "--rule", "uniform:window=3"], "has no setting 'window=3'; it takes none"),
        (["{out}", "{sgd}", "--rule", "lawa:window=0"], "window must be a whole number of at least 1, got 0"),
        (["{out}", "{sgd}", "{sgd}", "--rule", "lawa:window=2"], "no number in the names of"),
        (["{out}", "{sgd}", "--model-stock", "{sgd}"], "it needs at least 2, got 1"),
        (["{out}", "{sgd}", "--rule", "uniform", "--model-stock", "{sgd}"], "two answers"),
    ],
)
def test_bad_input_is_one_line(runs, tmp_path, refused, words, said):
    filled = [word.format(out=tmp_path / "out.safetensors", **runs) for word in words]
    assert said in refused("soup", *filled)
    assert not (tmp_path / "out.safetensors").exists()


def test_runs_that_held_nothing_out_cannot_be_chosen_on_training_images(tmp_path, refused):
    words = ["--epochs", "1", "--test-images", "20", "--width", "4", "--methods", "sgd:batch=400"]
    assert main(["train", *words, "--device", "cpu", "--out", str(tmp_path / "all")]) == 0
    said = refused("soup", str(tmp_path / "out.safetensors"), str(tmp_path / "all"), "--greedy")
    assert "there is no" in said  # an experiment's folder is no model; its run's is
    said = refused(
        "soup", str(tmp_path / "out.safetensors"), str(tmp_path / "all" / "sgd,batch=400" / "seed-0"), "--greedy"
    )
    assert "train them with --train-images N" in said


def test_images_that_the_experiment_set_aside_are_chosen_on(tmp_path, capsys):
    words = ["--epochs", "2", "--train-images", "100", "--test-images", "20", "--width", "4"]
    out = tmp_path / "chosen"
    choosing = [
        "--methods",
        "sgd:batch=40",
        "greedy-soup:batch=40",
        "--hold-out",
        "0.2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    assert main(["train", *words, *choosing]) == 0
    runs = [str(out / f"{method},batch=40" / "seed-0") for method in ("sgd", "greedy-soup")]
    assert main(["soup", str(tmp_path / "soup.safetensors"), *runs, "--greedy", "--device", "cpu"]) == 0
    assert "accuracy on 20 held-out images" in capsys.readouterr().out


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """A run's checkpoints, as Hugging Face's Trainer leaves them; the weights are the steps."""
    for step in (500, 1000, 1500, 2000):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"w": torch.full((3,), float(step))}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(b"not read")
    return tmp_path / "run"


def averaged(out: Path) -> float:
    (value,) = set(load_file(out / "model.safetensors")["w"].tolist())
    return value


@pytest.mark.parametrize(
    ("rule", "used", "value"),
    [
        (None, [500, 1000, 1500, 2000], 1250.0),
        ("uniform", [500, 1000, 1500, 2000], 1250.0),
        ("lawa:window=2", [1500, 2000], 1750.0),
        ("tail:fraction=0.75", [1000, 1500, 2000], 1500.0),
        ("power:gamma=1", [500, 1000, 1500, 2000], (500 * 1 + 1000 * 3 + 1500 * 5 + 2000 * 7) / 16),
        ("decay:shape=linear,fraction=0.5", [1500, 2000], 1750.0),
        ("exponential:decay=0.5", [500, 1000, 1500, 2000], 500 / 8 + 1000 / 8 + 1500 / 4 + 2000 / 2),
    ],
)
@pytest.mark.parametrize("by_shell", [True, False])
def test_checkpoints_by_pattern_and_rule(checkpoints, tmp_path, capsys, rule, used, value, by_shell):
    """A shell sorts checkpoint-1000 before checkpoint-500; a rule goes by the steps."""
    pattern = str(checkpoints / "checkpoint-*")
    given = sorted(map(str, checkpoints.iterdir())) if by_shell else [pattern]
    out = tmp_path / "averaged"
    assert main(["soup", str(out), *given, *(["--rule", rule] if rule else [])]) == 0
    assert averaged(out) == pytest.approx(value, rel=1e-6)
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]
    files = [line["file"] for line in recipe(out / "model.safetensors")]
    if rule or not by_shell:
        assert files == [str(checkpoints / f"checkpoint-{step}") for step in used]
    assert all(file in capsys.readouterr().out for file in files[:1])


def test_weights_are_those_of_the_order_given(checkpoints, tmp_path):
    given = [str(checkpoints / f"checkpoint-{step}") for step in (2000, 500)]
    assert main(["soup", str(tmp_path / "averaged"), *given, "--weights", "3", "1", "--no-hashes"]) == 0
    assert averaged(tmp_path / "averaged") == 1625.0
    assert [line["hashes"] for line in recipe(tmp_path / "averaged" / "model.safetensors")] == [{}, {}]


def test_model_stock_between_the_start_and_the_mean(checkpoints, tmp_path, capsys):
    tuned = [str(checkpoints / f"checkpoint-{step}") for step in (1000, 2000)]
    words = ["soup", "--out", str(tmp_path / "stock"), *tuned, "--model-stock", str(checkpoints / "checkpoint-500")]
    assert main([*words, "--dry-run"]) == 0
    assert "Model Stock between" in capsys.readouterr().out
    assert not (tmp_path / "stock").exists()
    assert main(words) == 0
    assert averaged(tmp_path / "stock") == 1500.0


def test_a_dry_run_prints_the_recipe_and_writes_nothing(checkpoints, tmp_path, capsys):
    out = tmp_path / "averaged"
    words = ["soup", str(out), str(checkpoints / "checkpoint-*"), "--rule", "lawa:window=2", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["weight", "file"]
    assert [line.split() for line in printed[1:3]] == [
        ["0.5000", str(checkpoints / f"checkpoint-{step}")] for step in (1500, 2000)
    ]
    assert printed[3] == f"would be written: {out / 'model.safetensors'} (0.0 MB)"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_soup_is_cut_at_the_size_asked_for(tmp_path, capsys):
    for index in (1, 3):
        other(tmp_path, {f"w{i}": torch.full((2_000,), float(index)) for i in range(3)}, f"{index}.pt")
    words = ["soup", str(tmp_path / "out"), str(tmp_path / "1.pt"), str(tmp_path / "3.pt"), "--shard-size", "10KB"]
    assert main(words) == 0
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert "in its index, under lookaround.soup" in capsys.readouterr().out


def test_a_model_is_never_written_over_by_accident(tmp_path, refused):
    for name in "abc":
        other(tmp_path, {"w": torch.ones(2)}, f"{name}.safetensors")
    models = sorted(map(str, tmp_path.glob("*.safetensors")))
    before = [Path(path).read_bytes() for path in models]
    said = refused("soup", *models)
    assert f"{models[0]} exists already; if it is to be replaced, and all others are models, say --out" in said
    (tmp_path / "link.safetensors").symlink_to(models[1])
    for out in (models[1], str(tmp_path / "link.safetensors"), str(tmp_path / ".." / tmp_path.name / "b.safetensors")):
        assert "is one of the models and would be written over" in refused("soup", "--out", out, *models)
    assert [Path(path).read_bytes() for path in models] == before
    assert main(["soup", "--out", models[0], *models[1:]]) == 0
    assert len(recipe(Path(models[0]))) == 2


def test_a_folder_of_other_things_is_not_written_over(checkpoints, tmp_path, capsys):
    given = [str(checkpoints / f"checkpoint-{step}") for step in (500, 1000)]
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    assert main(["soup", "--out", str(kept), *given]) == 1
    assert capsys.readouterr().err == f"lookaround: File exists: {kept}\n"
    assert (kept / "notes.txt").read_text() == "mine"


def test_models_of_other_seeds_are_warned_of_in_one_line(tmp_path, capsys):
    for seed in (0, 1):
        save_file({"w": torch.ones(2)}, tmp_path / f"{seed}.safetensors", {"lookaround.seed": str(seed)})
    words = ["soup", str(tmp_path / "soup"), str(tmp_path / "0.safetensors"), str(tmp_path / "1.safetensors")]
    assert main(words) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("lookaround: warning: these models did not start from common weights: ")


def test_a_long_merge_shows_a_bar_and_a_short_one_does_not():
    for total, shown in ((10**9, True), (10**6, False)):
        console = Console(file=io.StringIO(), force_terminal=True, width=80)
        with progress_bar(console) as tell:
            tell(total // 2, total)
        assert ("0.5/1.0 GB" in console.file.getvalue()) is shown  # type: ignore[attr-defined]
