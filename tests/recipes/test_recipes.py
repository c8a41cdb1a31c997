"""Every recipe builds its real network, data pipeline, methods and schedule, and trains two steps on stand-in data."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lookaround.cli import main
from lookaround.experiment import Plan
from lookaround.experiment.display import Lines
from lookaround.experiment.running import prepare
from lookaround.experiment.training import Training
from lookaround.methods import Spec
from lookaround.recipes import RECIPES, Part, Recipe, Row, make, run
from lookaround.recipes.registry import options, parameters
from lookaround.tasks.base import Minibatch
from lookaround.tasks.vision import task as vision
from lookaround.tasks.vision.data import ImageData
from lookaround.tasks.vision.models import build_model
from reference.tiny_experiment import Kept

ISSUED = {
    *(f"lookaround-table-{n}" for n in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)),
    *(f"lookaround-figure-{n}" for n in (3, 4, 5, 6)),
    *(f"lookahead-table-{n}" for n in (1, 2, 3, 4, 5, 6)),
    *(f"lookahead-figure-{n}" for n in (2, 5, 6, "7a", "7b", 8, 9, 10, 13, 14, 15, 16)),
    *(f"swa-table-{n}" for n in (1, 2)),
    *(f"swa-figure-{n}" for n in (1, 2, 3, 4, 5)),
    "airbench",
}
# Two steps need no full minibatch: the stand-in for each, in what the task counts it in.
BATCH = {"vision": "2", "language": "2", "translation": "60"}


def stand_in(name: str, root: str | None, *, size: int | None, **how: object) -> ImageData:
    """Eight images to train on and two to test, of as many classes as CIFAR-100 or fewer, and of the size asked for."""
    side, classes = size or 32, 100 if name == "cifar100" else 10
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (10, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10) % min(8, classes)
    return ImageData.from_images(name, images[:8], labels[:8], images[8:], labels[8:], [str(i) for i in range(classes)])


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, words = tmp_path_factory.mktemp("texts"), ["one", "two", "three", "four"]
    drawn = random.Random(0)
    for part, lines in (("train", 300), ("valid", 8), ("test", 8)):
        for ending in ("txt", "en", "de"):
            content = "".join(" ".join(drawn.choices(words, k=5)) + "\n" for _ in range(lines))
            (folder / f"{part}.{ending}").write_text(content)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where torchvision is to look for weights: all recipes that begin with a network's share one file."""
    return tmp_path_factory.mktemp("torch")


@pytest.fixture
def weights(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts drawn weights where torchvision keeps the published ones."""
    from torchvision import models

    def put(name: str) -> None:
        file = hub / "hub" / "checkpoints" / models.get_model_weights(name).IMAGENET1K_V1.url.rpartition("/")[2]
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(getattr(models, name)().state_dict(), file)
        monkeypatch.setenv("TORCH_HOME", str(hub))

    return put


def small(part: Part, texts: Path) -> Plan:
    """The part's plan on stand-in data: another root, minibatches of a few, half held out for who chooses by that."""
    plan = part.plan
    options = plan.options() | {"device": "cpu", "threads": 1, "amp": False, "hold_out": 0.5}
    if options.get("image_size") == 224:
        options["image_size"] = 80  # seen by the same layers, in an eighth of the time; up to 64 they begin otherwise
    if plan.task != "vision":
        options |= {"root": str(texts)}
    if plan.task == "language":
        options |= {"ending": "txt"}
    if plan.task == "translation":
        options |= {"vocabulary": 280}
    batch = BATCH[plan.task]
    options["methods"] = [with_batch(spec, batch).label for spec in plan.methods]
    if not any(spec.entry.held_out for spec in plan.methods):
        del options["hold_out"]
    return Plan.from_options(options)


def with_batch(spec: Spec, batch: str) -> Spec:
    kept = ",".join(part for part in spec.label.partition(":")[2].split(",") if not part.startswith("batch="))
    return Spec.parse(f"{spec.name}:{kept},batch={batch}" if kept else f"{spec.name}:batch={batch}")


def parts() -> Iterator[tuple[str, Part, tuple[Spec, ...]]]:
    """Every different experiment once, as a figure often shows the curves of a table, with those of its methods that no experiment
    before trains on the same network; or its first, for its data pipeline."""
    seen: list[Plan] = []
    trained: set[tuple[str, str]] = set()
    for name in RECIPES:
        for part in make(name, {}).parts:
            plain = replace(part.plan, budget=replace(part.plan.budget, eval_train=False))
            if plain in seen:
                continue
            seen.append(plain)
            network = getattr(part.plan.config, "model", part.plan.task)
            new = tuple(spec for spec in part.plan.methods if (network, spec.name) not in trained)
            trained |= {(network, spec.name) for spec in new}
            yield f"{name}/{part.name}", part, new or part.plan.methods[:1]


def test_there_is_a_recipe_for_every_table_and_figure_on_training() -> None:
    assert set(RECIPES) >= ISSUED


@pytest.mark.parametrize(("part", "methods"), [pytest.param(*rest, id=name) for name, *rest in parts()])
def test_two_steps(
    part: Part,
    methods: tuple[Spec, ...],
    texts: Path,
    weights: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vision, "load_data", stand_in)
    if getattr(part.plan.config, "init_from", None):
        weights(part.plan.config.model)
    prepared = prepare(small(part, texts))
    for spec in methods:
        training = Training(prepared, with_batch(spec, BATCH[part.plan.task]), 0, tmp_path, Kept())
        assert training.total >= 40, "the real schedule, not one of two steps"
        before = [parameter.detach().clone() for parameter in training.model.parameters() if parameter.requires_grad]
        training.step = training.total // 10  # after the warm-up, where the learning rate is no longer 0
        for _ in range(2):
            training._train([Minibatch(training.batches, training.step)])
        after = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
        assert training.tally[1] == 2 * training.batches.branches
        assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert all(parameter.isfinite().all() for parameter in after)


@pytest.mark.parametrize("name", RECIPES)
def test_every_choice_of_a_recipes_own_fields_makes_a_plan(name: str) -> None:
    from typing import get_args

    for field, (kind, default) in parameters(name).items():
        values = get_args(kind) if get_args(kind) else (default,)
        for value in values:
            recipe = make(name, {field: str(value).lower() if isinstance(value, bool) else str(value)})
            assert all(part.rows for part in recipe.parts)
            assert len({part.name for part in recipe.parts}) == len(recipe.parts)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("preresnet110", 1_146_842),
        ("preresnet164", 1_703_258),
        ("wrn-28-10", 36_479_194),
        ("vit-b-16", 85_806_346),
        ("densenet161", 26_482_570),
        ("airbench", 1_972_792),
    ],
)
def test_the_networks_have_the_sizes_that_are_published(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(name, classes=10, image_size=224 if name == "vit-b-16" else 32)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["preresnet110", "toy-cnn", "airbench", "vgg16", "densenet161", "wrn-28-10"])
def test_the_networks_give_a_logit_a_class_and_gradients_to_all(name: str) -> None:
    model = build_model(name, classes=7)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert missing == []


def tiny(*methods: str) -> Recipe:
    options = {
        "task": "vision",
        "train_images": 60,
        "test_images": 20,
        "width": 2,
        "epochs": 1,
        "methods": list(methods),
    }
    plan = Plan.from_options({**options, "seeds": [0, 1]})
    rows = (Row("SGDM", methods[0], {"top1": 50.0, "nll": 1.0}), Row("Ours", methods[1]))
    return Recipe("A paper, Table 0", "digits", (Part("one", plan, rows),), ("a note",))


def test_the_table_shows_paper_ours_and_the_difference(tmp_path: Path) -> None:
    text = run(tiny("sgd", "lookaround:k=2"), tmp_path / "out", lambda: Lines(lambda _: None))
    results = json.loads((tmp_path / "out" / "one" / "results.json").read_text())["runs"]
    ours = [result["metrics"]["top1"] for result in results if result["method"] == "sgd"]
    mean = sum(ours) / 2
    lines = text.splitlines()
    assert lines[0] == "A paper, Table 0: digits"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert cells[0] == ["part", "row", "metric", "paper", "ours", "difference"]
    assert cells[2][:4] == ["one", "SGDM", "top-1 %", "50.00"]
    assert cells[2][4].startswith(f"{mean:.2f} ± ")
    assert cells[2][5] == f"{mean - 50:+.2f}"
    assert [row[1:4] for row in cells[3:]] == [["SGDM", "NLL", "1.0000"], ["Ours", "top-1 %", "–"]]
    assert cells[4][5] == "–"
    assert lines[-1] == "- a note"
    assert (tmp_path / "out" / "paper.md").read_text() == f"{text}\n"
    again = run(tiny("sgd", "lookaround:k=2"), tmp_path / "out", lambda: Lines(lambda _: None))
    assert again == text


def test_a_recipe_runs_from_the_command_line(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lookahead-table-3", f"root={texts}", "ending=txt", "width=8", "hidden=8", "layers=1", "window=4"]
    small_enough = ["budget=700", "evaluations=1", "device=cpu"]
    assert main(["run", *words, *small_enough, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "| part | row      | metric     | paper | ours | difference |" in printed
    assert "| ptb  | LA(ADAM) | perplexity | 57.72 |" in printed
    assert main(["recipes"]) == 0
    assert "swa-figure-5" in capsys.readouterr().out
    assert main(["recipes", "lookaround-table-1", "data=cifar10"]) == 0
    shown = capsys.readouterr().out
    assert "SGDM: top1 95.96, nll 0.16" in shown
    assert "lookaround:k=5" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "unknown recipe 'nothing'; choose one that lookaround recipes lists"),
        (["airbench", "epochs"], "expected field=value instead of 'epochs'"),
        (["airbench", "epochs=2", "epochs=3"], "epochs is given twice"),
        (["airbench", "epochs=two"], "epochs must be a whole number, got 'two'"),
        (["airbench", "size=2"], "airbench has no field 'size'"),
        (["lookahead-table-1", "data=mnist"], "data must be cifar10 or cifar100, got 'mnist'"),
        *(
            (
                [name, "root=/nowhere"],
                "there is no folder /nowhere; name another folder with --root FOLDER (lookaround run: root=",
            )
            for name in ("swa-table-1", "lookaround-table-3", "lookahead-table-3", "lookahead-table-4")
        ),
    ],
)
def test_what_a_user_gets_wrong_is_said_in_a_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_guesses_or_where_it_differs_from_its_source(name: str) -> None:
    assert make(name, {}).notes


def test_the_options_of_a_recipe_are_its_plans() -> None:
    recipe = make("lookahead-table-3", {})
    assert {"window", "epochs", "device", "seeds"} <= options(recipe).keys()
