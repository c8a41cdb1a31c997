"""A preset in tables, folders and files: by its name, and what it is said once."""

import json

import pytest

from lookaround.errors import UsageError
from lookaround.experiment import Plan, train
from reference.tiny_experiment import a_plan


def test_a_preset_keeps_its_name_and_says_once_what_it_is(tmp_path, display):
    plan = a_plan("anytime:batch=16", "sgd:batch=16", epochs=1)
    comparison = train(plan, tmp_path, display)
    assert [row.method for row in comparison.rows] == ["anytime:batch=16", "sgd:batch=16"]
    said = "anytime:batch=16 is power-ema:width=0.1,batch=16,schedule=constant"
    assert comparison.table.count("power-ema") == (tmp_path / "table.md").read_text().count("power-ema") == 1
    assert comparison.table.splitlines()[-1] == (tmp_path / "table.md").read_text().splitlines()[-1] == said
    assert (tmp_path / "anytime,batch=16" / "seed-0" / "result.json").is_file()
    assert Plan.from_options(json.loads((tmp_path / "experiment.json").read_text())["options"]) == plan


def test_a_preset_beside_its_own_settings_is_said_to_be_the_same(tmp_path, display):
    plan = a_plan("anytime", "power-ema:width=0.1,schedule=constant")
    said = "anytime and power-ema:width=0.1,schedule=constant are the same on digits; leave one out"
    with pytest.raises(UsageError, match=f"^{said}$"):
        train(plan, tmp_path, display)
