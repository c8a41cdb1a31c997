"""The code of the README and of the guide, taken from the page and run with a real model: a line that does not run is not shown."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lookaround.averaging

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(page):
    return FENCE.findall((ROOT / page).read_text(encoding="utf-8"))


README, CHOOSING, MIGRATING = map(blocks, ("README.md", "docs/choosing.md", "docs/migrating.md"))


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


class Loader(list):
    """Minibatches. Where the page only hints at a step of training, one is made between two of them."""

    def __init__(self, model):
        generator = torch.Generator().manual_seed(1)
        super().__init__((torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 3) for _ in range(24))
        self.model, self.steps = model, False

    def __iter__(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        for images, labels in super().__iter__():
            if self.steps and self.model.training:
                train(self.model, optimizer, images, labels)
            yield images, labels


def train(model, optimizer, images, labels):
    model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


class World(dict):
    """What a page takes for granted: the reader's model, data, step and evaluation."""

    def __init__(self):
        model = net()
        loader = Loader(model)
        plain = torch.optim.SGD(model.parameters(), lr=0.2)
        self.seen = []
        super().__init__(
            torch=torch,
            model=model,
            other=net(1),
            loader=loader,
            criterion=nn.CrossEntropyLoss(),
            augment=[lambda x: x, lambda x: x.flip(-1), lambda x: x.flip(-2)],
            train_step=lambda images, labels, optimizer=plain: train(model, optimizer, images, labels),
            evaluate=lambda network: self.seen.append(self.loss(network)),
            held_out_loss=self.loss,
        )

    def loss(self, network):
        """Over all data, with the network's running statistics; its modes stay as they were."""
        modes = [module.training for module in network.modules()]
        network.eval()
        with torch.no_grad():
            batches = list.__iter__(self["loader"])
            loss = sum(nn.functional.cross_entropy(network(x), y).item() for x, y in batches)
        for module, mode in zip(network.modules(), modes, strict=True):
            module.training = mode
        return loss


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "step-100", "step-200", "step-300")):
        save_file(net(seed).state_dict(), f"{name}.safetensors")
    return World()


def run(code, world):
    world["loader"].steps = "..." in code
    exec(compile(code, "page", "exec"), world)


def test_the_readmes_round_ends_in_a_model_that_has_learned(world):
    (code,) = (block for block in README if "optimizer.around()" in block)
    before = copy.deepcopy(world["model"].state_dict())
    untrained = world.loss(world["model"])
    run(code, world)
    assert world.seen[-1] < untrained
    assert not torch.equal(before["5.weight"], world["model"].state_dict()["5.weight"])


def test_the_readmes_average_exports_what_it_evaluates(world):
    (code,) = (block for block in README if "RunningAverage" in block)
    run(code, world)
    training = copy.deepcopy(world["model"].state_dict())
    (file,) = re.findall(r'export\("(.*?)"', code)
    fresh = net(7)
    fresh.load_state_dict(load_file(file))
    assert math.isfinite(world.loss(fresh))
    # Evaluated after re-estimation; exported, it is the same model, and not the one with the statistics of before.
    shown = int(re.findall(r"averaged\((\d?)\)", code)[0] or 0)
    world["average"].export("shown.safetensors", shown)
    fresh.load_state_dict(load_file("shown.safetensors"))
    assert world.loss(fresh) == world.seen[-1]
    assert all(torch.equal(v, training[k]) for k, v in world["model"].state_dict().items())


@pytest.mark.parametrize("code", README + CHOOSING + MIGRATING, ids=lambda code: code.splitlines()[0][:60])
@pytest.mark.filterwarnings("ignore:the SWAD window never opened")
@pytest.mark.filterwarnings("ignore:Profile.*cannot be made of the")
def test_every_block_runs(code, world):
    run(code, world)
    assert all(math.isfinite(loss) for loss in world.seen)
    average = world.get("average") or world.get("swad")
    if average is not None and getattr(average, "count", 1):
        average.export("result.safetensors")
        fresh = net(9)
        fresh.load_state_dict(load_file("result.safetensors"))
        assert math.isfinite(world.loss(fresh))


def test_names_that_the_migration_notes_promise_are_there():
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    for there in ("update_bn", "AveragedModel", "SWALR", "ModelEmaV3"):
        assert there in page
    ours = set(re.findall(r"`(?:lookaround\.averaging\.)?([A-Z]\w+|[a-z_]+)\(", FENCE.sub("", page)))
    theirs = {
        "AveragedModel",
        "update_bn",
        "ModelEmaV3",
        "EMA",
        "LossValley",
        "averaged",
        "averaged_model_state",
        "load_averaged_model_state",
    }
    assert {name for name in ours - theirs if not hasattr(lookaround.averaging, name)} == set()


def test_the_guide_is_short_where_it_matters_and_says_where_nothing_is_known():
    assert len(CHOOSING) >= 10
    page = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
    for section in page.split("\n## ")[1:]:
        if section[0].isdigit():
            assert "**Measured**" in section, section.splitlines()[0]
    anchors = re.findall(r"\]\(#(.*?)\)", page)
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", page, re.M)}
    assert set(anchors) <= headings


@pytest.mark.parametrize("name", ["choosing", "migrating"])
def test_relative_links_of_the_guides_lead_somewhere(name):
    page = FENCE.sub("", (ROOT / f"docs/{name}.md").read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!#|http)(.*?)(?:#.*?)?\)", page):
        assert (ROOT / "docs" / target).exists(), target
