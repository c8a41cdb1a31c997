from __future__ import annotations

import pytest

from lookaround.errors import UsageError
from lookaround.experiment.compare import against, choose_baseline, holm, merge, paired_difference
from lookaround.experiment.reading import read_folder
from reference.experiments import write_experiment

RUNS = {
    "ema": {seed: [value] for seed, value in enumerate((93.0, 94.5, 92.5, 95.0))},
    "sgd:lr=0.1": {seed: [value] for seed, value in enumerate((90.0, 91.0, 90.0, 92.0))},
    "sam": {seed: [value] for seed, value in enumerate((90.5, 90.5, 90.5, 91.5))},
    "swad": {seed: [value] for seed, value in enumerate((90.0, 91.0, 90.0, 92.0))},
    "slow": {seed: [value] for seed, value in enumerate((80.0, 82.5, 79.5, 84.0))},
    "dart": {3: [95.0], 4: [1.0]},
    "gone": {0: [], 1: []},
    "other": {7: [99.0]},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = write_experiment(tmp_path_factory.mktemp("against") / "a", RUNS)
    return merge([read_folder(path)])[0], read_folder(path).metrics


def test_plain_sgd_is_the_baseline_or_the_first_or_what_is_named(rows):
    found, _ = rows
    assert choose_baseline(found, None).label == "sgd:lr=0.1"
    assert choose_baseline(found[:1] + found[2:], None).label == "ema"
    assert choose_baseline(found, "sam").label == "sam"
    assert choose_baseline([found[6], found[2]], None).label == "sam"


def test_a_baseline_that_is_none_is_refused(rows):
    found, _ = rows
    with pytest.raises(UsageError, match=r"^there is no method 'sgd' to compare with; choose from ema, sgd:lr=0.1, "):
        choose_baseline(found, "sgd")
    with pytest.raises(UsageError, match=r"^every run of gone has diverged"):
        choose_baseline(found, "gone")
    with pytest.raises(UsageError, match=r"^every run has diverged"):
        choose_baseline([found[6]], None)


@pytest.mark.parametrize("index", [0, 1])
def test_every_other_method_is_judged_as_its_metric_asks(rows, index):
    found, metrics = rows
    judged = against(found, choose_baseline(found, None), metrics[index])
    assert [(one.row.label, one.verdict, one.better, one.worse) for one in judged] == [
        ("ema", "better", 4, 0),
        ("sam", "not told apart", 2, 2),
        ("swad", "equal", 0, 0),
        ("slow", "worse", 0, 4),
        ("dart", "one seed", 1, 0),
    ]


def test_p_values_are_corrected_over_the_tests_that_were_made(rows):
    found, metrics = rows
    base = choose_baseline(found, None)
    judged = {one.row.label: one for one in against(found, base, metrics[0])}
    own = {
        row.label: paired_difference(row.values(metrics[0]), base.values(metrics[0])) for row in found[:1] + found[2:5]
    }
    ps = [own[label].p for label in ("ema", "sam", "slow")]
    assert [judged[label].p for label in ("ema", "sam", "slow")] == holm(ps)
    assert judged["swad"].p is judged["dart"].p is None
    # Five sign tests: two of 2/16, and three that cannot say anything.
    assert [one.p_sign for one in judged.values()] == [0.625, 1.0, 1.0, 0.625, 1.0]
    plain = {one.row.label: one for one in against(found, base, metrics[0], correction="none")}
    assert [plain[label].p for label in ("ema", "sam", "slow")] == ps
    multiplied = {one.row.label: one for one in against(found, base, metrics[0], correction="bonferroni")}
    assert multiplied["ema"].p == pytest.approx(3 * own["ema"].p)


def test_at_a_higher_confidence_less_is_told_apart(rows):
    found, metrics = rows
    base = choose_baseline(found, None)
    assert against(found, base, metrics[0], confidence=0.99999)[0].verdict == "not told apart"
