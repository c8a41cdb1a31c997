from __future__ import annotations

import pytest

from lookaround.methods import Spec
from lookaround.tasks.vision import preset
from lookaround.tasks.vision.data import DATA_SETS
from lookaround.tasks.vision.presets import defaults


def test_every_data_set_has_one_of_its_own():
    assert [preset(name).data for name in DATA_SETS] == list(DATA_SETS)
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        preset("mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_follows_the_paper(name):
    config = preset(name)
    found = Spec("lookaround").resolve(defaults(config), config.branches).as_json()
    assert [found[key] for key in ("lr", "momentum", "weight_decay", "batch", "warmup")] == [0.1, 0.9, 5e-4, 128, 1]
    assert (config.suits()["epochs"], found["k"], found["branches"]) == (200, 5, 3)
    drops = {"cifar10": ["cosine", [], 0.1], "cifar100": ["multi-step", [0.3, 0.6, 0.8], 0.2]}[name]
    assert [found[key] for key in ("schedule", "milestones", "gamma")] == drops
