from __future__ import annotations

import pytest
import torch
from torch import nn

from lookaround.tasks.vision.models import MODELS, build_model

SMALL = ("small-cnn", "resnet9")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("resnet9", 10, 6_573_130),
        ("resnet18", 10, 11_173_962),
        ("resnet50", 10, 23_520_842),  # 23.52M and 23.71M in the Lookaround paper's tables
        ("resnet50", 100, 23_705_252),
        ("vgg19-bn", 10, 20_040_522),
        ("resnext50", 10, 22_992_714),
    ],
)
def test_parameter_counts_on_cifar(name, classes, expected):
    with torch.device("meta"):
        model = build_model(name, classes=classes)
    assert parameters(model) == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def test_parameter_count_on_digits():
    assert parameters(build_model("small-cnn", classes=10, channels=1, image_size=8)) == 33_338


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("small-cnn", 1, 8),
        ("small-cnn", 3, 4),
        ("small-cnn", 2, 33),
        ("resnet9", 3, 32),
        ("resnet9", 1, 8),
        ("resnet18", 3, 32),
        ("resnet18", 1, 8),
        ("resnet18", 4, 96),
        ("resnet50", 3, 32),
        ("vgg19-bn", 3, 32),
        ("vgg19-bn", 1, 64),
        ("resnext50", 3, 32),
    ],
)
def test_logits_and_gradients_are_finite_and_reach_every_parameter(name, channels, size):
    torch.manual_seed(0)
    model = build_model(name, classes=7, channels=channels, image_size=size, width=8 if name in SMALL else None)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50"])
def test_small_images_keep_their_resolution_through_the_stem(name):
    with torch.device("meta"):
        small, large = (build_model(name, classes=10, image_size=size) for size in (64, 65))
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert isinstance(large.maxpool, nn.MaxPool2d)


def test_large_images_get_torchvisions_own_network():
    from torchvision import models

    for name, builder in (
        ("resnet18", models.resnet18),
        ("resnext50", models.resnext50_32x4d),
        ("vgg19-bn", models.vgg19_bn),
    ):
        with torch.device("meta"):
            ours, theirs = build_model(name, classes=10, image_size=224), builder(weights=None, num_classes=10)
        assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
            (key, value.shape) for key, value in theirs.state_dict().items()
        ]


@pytest.mark.parametrize("name", ["resnet18", "vgg19-bn"])
def test_convolutions_start_as_torchvisions_do(name):
    """Kaiming-normal with fan-out, also in the layers put in place: std of sqrt(2 / (outputs × kernel))."""
    torch.manual_seed(0)
    model = build_model(name, classes=10, channels=5)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert layers[0].in_channels == 5
    for layer in layers:
        expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.06)
        assert layer.bias is None or not layer.bias.any()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.running_var == 1).all()
            assert not layer.bias.any()
            assert not layer.running_mean.any()
            assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("name", [*SMALL, "vgg19-bn"])
def test_the_global_seed_fixes_the_weights(name):
    torch.manual_seed(3)
    first = build_model(name, classes=10).state_dict()
    torch.manual_seed(3)
    second = build_model(name, classes=10).state_dict()
    other = build_model(name, classes=10).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", SMALL)
def test_width_sets_the_channels(name):
    assert build_model(name, classes=10, width=24)[0].out_channels == 24
    assert build_model(name, classes=10, width=24)[-1].in_features == 24 * (4 if name == "small-cnn" else 8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"name": "resnet10"}, f"unknown model 'resnet10'; choose one of {', '.join(MODELS)}"),
        (
            {"name": "resnet18", "width": 32},
            "resnet18 has a fixed width, got width=32; only small-cnn, resnet9, toy-cnn, airbench take one",
        ),
        ({"name": "resnet9", "width": 0}, "resnet9 takes a width of at least 1, got 0"),
        ({"name": "resnet9", "classes": 0}, "resnet9 takes classes of at least 1, got 0"),
        ({"name": "resnet18", "channels": 0}, "resnet18 takes channels of at least 1, got 0"),
        ({"name": "resnet9", "image_size": 7}, "resnet9 takes image_size of at least 8, got 7"),
        ({"name": "small-cnn", "image_size": 3}, "small-cnn takes image_size of at least 4, got 3"),
        ({"name": "vgg19-bn", "image_size": 31}, "vgg19-bn takes image_size of at least 32, got 31"),
    ],
)
def test_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        build_model(**{"classes": 10, **arguments})


@pytest.mark.parametrize(("name", "width"), [("small-cnn", 16), ("resnet9", 8)])
def test_small_networks_learn_real_digits_at_the_usual_rate(name, width):
    """Four passes over scikit-learn's digits, from lr 0.1 down to 0: chance is a tenth."""
    from lookaround.tasks.vision.data import load_data

    torch.manual_seed(0)
    data = load_data("digits")
    model = build_model(name, classes=10, channels=1, image_size=8, width=width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = data.normalize(data.train_images)
    batches = [rows for _ in range(4) for rows in torch.randperm(len(images)).split(64)]
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    for rows in batches:
        loss = nn.functional.cross_entropy(model(images[rows]), data.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        accuracy = (model.eval()(data.normalize(data.test_images)).argmax(1) == data.test_labels).float().mean()
    assert accuracy > 0.95


def test_resnet9_s_head_is_a_linear_layer_scaled_by_an_eighth():
    torch.manual_seed(0)
    head = build_model("resnet9", classes=10, width=8)[-1]
    features = torch.randn(4, 64)
    torch.testing.assert_close(head(features), nn.functional.linear(features, head.weight, head.bias) / 8)
