"""Fine-tuning: weights are taken over, heads are new where classes are, rates are per group, and what is frozen stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lookaround.tasks.vision import VisionConfig, VisionTask
from lookaround.tasks.vision.finetuning import freeze, groups, head_of, load_start
from lookaround.tasks.vision.models import build_model

CPU = torch.device("cpu")
CONFIG = VisionConfig(train_images=40, test_images=20, width=4)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A network for digits as a run leaves it."""
    task = VisionTask.load(CONFIG, CPU)
    torch.manual_seed(1)
    model = task.network()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
    task.save(tmp_path / "model.safetensors", model, {"method": "sgd", "seed": "1"})
    return tmp_path, model


def test_a_run_of_the_same_classes_is_taken_over_whole(saved: tuple[Path, nn.Module]) -> None:
    folder, model = saved
    for source in (folder, folder / "model.safetensors"):
        begun = VisionTask.load(replace(CONFIG, init_from=str(source)), CPU).network()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(begun.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("classes", [("a", "b"), tuple("abcdefghij")])
def test_a_head_for_other_classes_is_as_drawn_and_the_body_is_not(
    saved: tuple[Path, nn.Module], classes: tuple[str, ...]
) -> None:
    folder, model = saved
    torch.manual_seed(5)
    fresh = build_model("small-cnn", classes=len(classes), channels=1, image_size=8, width=4)
    drawn = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    load_start(str(folder)).put(fresh, classes)
    head = head_of(fresh)
    for name, tensor in fresh.state_dict().items():
        expected = drawn[name] if name.startswith(head) else model.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_the_head_is_the_last_linear_layer() -> None:
    names = {"resnet18": "fc", "vgg16": "classifier", "densenet161": "classifier"}
    with torch.device("meta"):
        assert {name: head_of(build_model(name, classes=2, image_size=32)) for name in names} == names
        assert head_of(build_model("vit-b-16", classes=2, image_size=224)) == "heads.head"
    with pytest.raises(ValueError, match="has no linear layer to replace"):
        head_of(nn.Sequential(nn.Conv2d(3, 2, 3)))


def test_rates_are_per_group_and_frozen_weights_are_in_none() -> None:
    model = build_model("resnet18", classes=2)
    freeze(model, ("conv1", "layer1"))
    head, body = groups(model, 0.1)
    assert (head["lr_scale"], body["lr_scale"]) == (1.0, 0.1)
    assert {id(p) for p in head["params"]} == {id(model.fc.weight), id(model.fc.bias)}
    listed = {id(p) for p in (*head["params"], *body["params"])}
    assert listed == {id(p) for n, p in model.named_parameters() if not n.startswith(("conv1", "layer1"))}


def test_frozen_stages_stay_as_they_are_in_a_training_loop(saved: tuple[Path, nn.Module]) -> None:
    folder, _ = saved
    task = VisionTask.load(replace(CONFIG, init_from=str(folder), frozen=("0", "1"), body_rate=0.5), CPU)
    model = task.network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(task.parameters(model), lr=0.1)
    batches = task.batches(0, 16, 3)
    for position in range(2):
        model.train()
        optimizer.zero_grad()
        task.loss(model, batches.copy(position, 0)).backward()
        optimizer.step()
    after = model.state_dict()
    for name, tensor in before.items():
        if name.endswith("num_batches_tracked"):
            continue
        assert torch.equal(after[name], tensor) == name.startswith(("0.", "1.")), name
    assert not model[1].training
    assert model[4].training


def test_a_frozen_norm_normalizes_by_its_own_statistics(saved: tuple[Path, nn.Module]) -> None:
    folder, _ = saved
    model = VisionTask.load(replace(CONFIG, init_from=str(folder), frozen=("0", "1")), CPU).network()
    images = torch.randn(8, 1, 8, 8)
    expected = nn.Sequential(*model[:2]).eval()(images)
    model.train()
    torch.testing.assert_close(model[1](model[0](images)), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_from": "nowhere"}, "there is no nowhere; give a safetensors file or the folder of a run"),
        ({"init_from": "torchvision:resnet0"}, "torchvision has no model 'resnet0'"),
        ({"init_from": "torchvision:resnet50"}, "its weights are not on this machine"),
        ({"init_from": "{folder}", "width": 8}, "holds another network: its 0.weight has the shape (4, 1, 3, 3)"),
        ({"init_from": "{folder}", "model": "resnet9"}, "holds another network: it has no 7.body.0.weight"),
        ({"init_from": "{folder}", "frozen": ("layer7",)}, "the network has no stage 'layer7'; it has 0, 1, 2"),
        ({"init_from": "{folder}/text"}, "is no safetensors file"),
    ],
)
def test_weights_that_cannot_be_used_are_said_in_a_line_before_training(
    saved: tuple[Path, nn.Module], changes: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved
    monkeypatch.setenv("TORCH_HOME", str(folder / "empty"))
    (folder / "text").write_text("weights")
    given = {name: value.format(folder=folder) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=r".") as caught:
        VisionTask.load(replace(CONFIG, **given), CPU)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frozen_stages_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="--frozen and --body-rate are for weights from --init-from"):
        VisionConfig(frozen=("conv1",))


def test_torchvisions_weights_are_found_where_torchvision_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from torchvision import models

    torch.manual_seed(0)
    published = models.resnet18()
    url = models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    model = build_model("resnet18", classes=7, image_size=224)
    load_start("torchvision:resnet18").put(model, tuple("abcdefg"))
    torch.testing.assert_close(model.layer4[1].conv2.weight, published.layer4[1].conv2.weight, rtol=0, atol=0)
    assert model.fc.weight.shape == (7, 512)


@pytest.mark.parametrize("name", ["resnet10t", "resnet10t.c3_in1k"])
def test_timms_weights_are_found_in_the_hubs_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm, hub = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"its weights are not on this machine; .* fetch them with timm.create_model"):
        load_start(f"timm:{name}")
    torch.manual_seed(0)
    published = timm.create_model("resnet10t", num_classes=1000)
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(published.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    model = build_model("timm:resnet10t", classes=7, image_size=64)
    load_start(f"timm:{name}").put(model, tuple("abcdefg"))
    for key, weight in model.state_dict().items():
        assert key.startswith("fc.") or torch.equal(weight, published.state_dict()[key])
    assert model.fc.weight.shape == (7, 512)


def test_timm_names_that_are_none_are_said_in_a_line() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="--init-from timm:resnet0: timm has no model 'resnet0'"):
        load_start("timm:resnet0")


def test_the_weights_are_part_of_the_tasks_identity(saved: tuple[Path, nn.Module]) -> None:
    folder, _ = saved
    begun = VisionTask.load(replace(CONFIG, init_from=str(folder)), CPU).identity()
    moved = folder / "moved.safetensors"
    moved.write_bytes((folder / "model.safetensors").read_bytes())
    assert VisionTask.load(replace(CONFIG, init_from=str(moved)), CPU).identity() == begun
    save_file({"0.weight": torch.zeros(1)}, folder / "other.safetensors")
    assert load_start(str(folder / "other.safetensors")).digest != begun["init_from"]
    assert VisionTask.load(CONFIG, CPU).identity() != begun
