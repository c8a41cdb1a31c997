"""What a recipe does when its experiments are finished: soups of their networks, and figures drawn inside rounds."""

from pathlib import Path

import pytest
from torch import Tensor, nn

from lookaround.averaging import greedy_soup, uniform_soup, update_norm_stats
from lookaround.cli import main
from lookaround.commands.parsing import parse
from lookaround.commands.trajectory import TrajectoryOptions
from lookaround.errors import UsageError
from lookaround.experiment import Plan
from lookaround.experiment.display import Lines
from lookaround.experiment.running import prepare
from lookaround.recipes import RECIPES, Part, Recipe, Row, make, run
from lookaround.recipes.base import Soups
from lookaround.tasks.base import Task
from lookaround.tasks.vision import load_network


def ingredients(*parts: Part) -> Recipe:
    """Two parts of two ingredients each, and one whose minibatches give the soups' norm statistics."""
    numbers = {"Greedy Soups": {"top1": 50.0, "nll": 1.0}}
    return Recipe("A paper, Table 0", "soups", parts, (), Soups(("one", "two"), "three", 2, numbers))


def of_digits(name: str, *methods: str, **changes: object) -> Part:
    options = {"task": "vision", "train_images": 120, "test_images": 40, "width": 2, "epochs": 1, "methods": [*methods]}
    plan = Plan.from_options({**options, "hold_out": 0.25, **changes})
    return Part(name, plan, tuple(Row(method, method) for method in methods))


def test_soups_of_what_the_parts_have_trained_stand_in_the_table(tmp_path: Path) -> None:
    methods = ("sgd:batch=10", "sgd:lr=0.02,batch=10")
    one, two = (of_digits(name, *methods, label_smoothing=rate) for name, rate in (("one", 0.0), ("two", 0.1)))
    recipe = ingredients(one, two, of_digits("three", "lookaround:k=2,batch=10"))
    text = run(recipe, tmp_path, lambda: Lines(lambda _: None))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| soups" in line]
    assert [(row[1], row[2]) for row in rows if not row[1].startswith("Greedy")] == [
        (f"Uniform Soups{best}{how}", "top-1 %") for best in ("", "⁺") for how in ("", ", update BN")
    ]
    files = [file for part in ("one", "two") for file in sorted(tmp_path.glob(f"{part}/*/seed-0/model.safetensors"))]
    task = prepare(one.plan).task
    model = load_network(files[0])[0]
    own = {file: score(task, model, uniform_soup([file]), "held-out") for file in files}
    best = sorted(files, key=lambda file: -own[file]["top1"])
    shown = {(row[1], row[2]): row[3:] for row in rows}

    def printed(name: str) -> str:
        return shown[name, "top-1 %"][1]

    assert printed("Uniform Soups") == f"{score(task, model, uniform_soup(files), 'test')['top1']:.2f}"
    assert printed("Uniform Soups⁺") == f"{score(task, model, uniform_soup(best[:2]), 'test')['top1']:.2f}"
    greedy = greedy_soup(files, lambda weights: score(task, model, weights, "held-out")["top1"])
    found = score(task, model, greedy.weights, "test")
    assert shown["Greedy Soups", "top-1 %"] == ["50.00", f"{found['top1']:.2f}", f"{found['top1'] - 50:+.2f}"]
    assert shown["Greedy Soups", "NLL"][1] == f"{found['nll']:.4f}"
    batches = prepare(recipe.parts[2].plan).task.batches(0, 64, 3)
    model.load_state_dict(uniform_soup(files))
    update_norm_stats(model, [batches.copy(place, place % 3).inputs for place in range(batches.per_epoch)])
    assert printed("Uniform Soups, update BN") == f"{task.evaluate(model.eval(), 'test')['top1']:.2f}"
    assert (tmp_path / "paper.md").read_text() == f"{text}\n"


def score(task: Task, model: nn.Module, weights: dict[str, Tensor], split: str) -> dict[str, float]:
    model.load_state_dict(weights)
    return task.evaluate(model.eval(), split)


def test_soups_without_images_to_choose_on_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    parts = [of_digits(name, "sgd:batch=10", hold_out=None) for name in ("one", "two", "three")]
    with pytest.raises(UsageError, match="soups choose their ingredients on training images that are held out"):
        run(ingredients(*parts), tmp_path / "out", lambda: Lines(lambda _: None))
    assert not (tmp_path / "out").exists()


def test_a_figure_inside_rounds_is_drawn_by_the_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    then = ("trajectory {run} --rounds 2 --k 3 --lr 0.02 --norm-images 30 --out {out}/drawn",)
    part = of_digits("one", "lookaround:batch=10", seeds=[4], hold_out=None)
    monkeypatch.setitem(RECIPES, "airbench", lambda: Recipe("A paper, Figure 0", "rounds", (part,), (), then=then))
    out = tmp_path / "a folder"
    assert main(["run", "airbench", "device=cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    command = f"lookaround landscape trajectory '{out}/one/lookaround,batch=10/seed-4' --rounds 2 --k 3"
    assert command in printed
    assert {path.name for path in (out / "drawn").iterdir()} == {"trajectory.png", "trajectory.svg", "trajectory.csv"}
    header, *lines = (out / "drawn" / "trajectory.csv").read_text().splitlines()
    assert len({line.split(",")[header.split(",").index("step")] for line in lines}) > 3
    assert main(["recipes", "airbench"]) == 0
    assert f"then lookaround landscape {then[0]}" in capsys.readouterr().out


def test_every_command_that_goes_on_from_a_recipe_can_be_read() -> None:
    for name in RECIPES:
        for command in make(name, {}).then:
            verb, run_, *words = command.split()
            assert (verb, run_) == ("trajectory", "{run}")
            parsed = parse(TrajectoryOptions, [run_, *words], "landscape trajectory")
            assert parsed.lr > 0
            assert parsed.out.parts[0] == "{out}"
