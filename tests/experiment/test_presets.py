from __future__ import annotations

import pytest

from lookaround.experiment import preset
from lookaround.tasks.vision.data import DATA_SETS


def test_every_data_set_has_one_of_its_own():
    assert [preset(name).data for name in DATA_SETS] == list(DATA_SETS)
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        preset("mnist")


def test_cifar_follows_the_paper():
    for name in ("cifar10", "cifar100"):
        config = preset(name)
        assert (config.lr, config.momentum, config.batch_size, config.warmup_epochs) == (0.1, 0.9, 128, 1)
        assert (config.epochs, config.k, config.branches) == (200, 5, 3)
    assert preset("cifar10").schedule == "cosine"
    hundred = preset("cifar100")
    assert (hundred.schedule, hundred.milestones, hundred.gamma) == ("multi-step", (60, 120, 160), 0.2)
