from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookaround.methods import METHODS, Spec, find
from lookaround.methods.presets import PRESETS
from lookaround.methods.values import read, write
from lookaround.tasks.base import Defaults

DEFAULTS = Defaults("sgd", 64, {"sgd": {"lr": 0.1, "momentum": 0.9}, "adamw": {"lr": 1e-3}}, {"warmup": 1.0})


@pytest.mark.parametrize(
    ("text", "label", "slug"),
    [
        ("sgd", "sgd", "sgd"),
        ("lookaround:lr=0.20,k=20,start=0.5", "lookaround:k=20,start=0.5,lr=0.2", "lookaround,k=20,start=0.5,lr=0.2"),
        ("lookaround:batch=1/d", "lookaround:batch=1/d", "lookaround,batch=1_d"),
        ("lookahead:inner=adamw,alpha=0.8", "lookahead:alpha=0.8,inner=adamw", "lookahead,alpha=0.8,inner=adamw"),
        ("adamw:betas=0.90/0.95", "adamw:betas=0.9/0.95", "adamw,betas=0.9_0.95"),
        ("lookahead:inner=rmsprop,inner.alpha=0.9", "lookahead:inner.alpha=0.9,inner=rmsprop", None),
        ("sgd:inner.momentum=0.5", "sgd:momentum=0.5", None),
        ("anytime", "anytime", "anytime"),
        ("anytime:lr=0.2,width=0.05", "anytime:width=0.05,lr=0.2", "anytime,width=0.05,lr=0.2"),
        ("anytime:width=0.10", "anytime", "anytime"),
    ],
)
def test_a_label_is_the_method_as_one_would_write_it(text, label, slug):
    spec = Spec.parse(text)
    assert spec.label == label
    assert Spec.parse(label) == spec
    assert slug is None or spec.slug == slug


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_method_under_a_name_that_no_method_has(name):
    preset = PRESETS[name]
    assert name not in METHODS
    assert Spec.parse(name).label == name
    assert Spec.parse(name).written_out == preset.method
    assert Spec.parse(name).resolve(DEFAULTS, 3) == Spec.parse(preset.method).resolve(DEFAULTS, 3)
    assert "docs/results" in preset.evidence


def test_long_labels_have_short_folders_of_their_own():
    long = [Spec.parse(f"adamw:betas={'/'.join(['0.9'] * 60)}/{last}") for last in (0.1, 0.2)]
    assert len({spec.slug for spec in long}) == 2
    assert all(len(spec.slug) < 140 for spec in long)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("anytime:k=3", "power-ema has no setting 'k'; it has"),
        ("lookahead+anytime", "unknown method 'anytime'"),
        ("adan", "unknown method 'adan'; choose from sgd, adamw, muon,"),
        ("", "unknown method ''"),
        ("sgd:k=3", "sgd has no setting 'k'; it has lr, momentum, dampening, weight_decay, nesterov, batch, schedule,"),
        ("sgd:lr", "'sgd:lr': expected setting=value instead of 'lr'"),
        ("sgd:", "expected setting=value instead of ''"),
        ("sgd:lr=", "expected setting=value instead of 'lr='"),
        ("sgd:lr=0.1,lr=0.2", "chooses lr twice"),
        ("sgd:lr=fast", "sgd: lr must be a number, got 'fast'"),
        ("sgd:lr= 0.1", "sgd: lr must be a number, got ' 0.1'"),
        ("sgd:nesterov=1", "sgd: nesterov must be true or false, got '1'"),
        ("sgd:schedule=sine", "schedule must be cosine, linear, constant, multi-step, ramp, inverse-sqrt, wsd"),
        ("sgd:batch=1/3", "sgd: batch must be a whole number, 1/d or none, got '1/3'"),
        ("sgd:batch=0", "sgd: batch must be at least 1, got 0"),
        ("sgd:warmup=-1", "sgd: warmup must be at least 0, got -1"),
        ("lookaround:k=2.5", "lookaround: k must be a whole number or epoch, got '2.5'"),
        ("lookaround:alpha=nan", "lookaround: alpha must be a number, got 'nan'"),
        ("sgd:lr=inf", "sgd: lr must be a number, got 'inf'"),
        ("lookahead:alpha=1.5", "lookahead: alpha must be from 0 to 1, got 1.5"),
        ("lookahead:inner=adan", "unknown optimizer 'adan'; choose one of sgd, adamw, muon,"),
        ("lookahead:inner=sparseadam", "unknown optimizer 'sparseadam'"),
        ("lookahead:inner=adamw,momentum=0.9", "lookahead has no setting 'momentum'; it has"),
        ("swa:betas=0.6/0.999", "An inner optimizer chosen beside it may have it: inner=adamw,betas=0.6/0.999 (adamw,"),
        ("adamw:inner=sgd", "adamw has no setting 'inner'"),
        ("sam+lookaround", "cannot be joined; write ROUND"),
        ("ema+swa", "cannot be joined"),
        ("lookaround+lookahead", "cannot be joined"),
        ("lookaround+sgd", "cannot be joined"),
        ("lookaround+adan", "unknown method 'adan'"),
    ],
)
def test_what_cannot_be_is_named_with_what_can(text, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        Spec.parse(text)


def test_settings_resolve_to_the_chosen_the_tasks_and_the_methods_own():
    found = Spec.parse("lookahead:inner=adamw,alpha=0.8,batch=1/d").resolve(DEFAULTS, 3)
    assert (found.inner, found.batch, found.branches, found.gradients) == ("adamw", 21, 3, 1)
    assert (found.optimizer["lr"], found.optimizer["betas"]) == (1e-3, (0.9, 0.999))
    said = found.as_json()
    assert [said[name] for name in ("k", "alpha", "warmup", "schedule", "betas")] == [
        5,
        0.8,
        1.0,
        "cosine",
        [0.9, 0.999],
    ]
    assert Spec.parse("lookaround:branches=4").resolve(DEFAULTS, 3).branches == 4
    assert Spec("sam").resolve(DEFAULTS, 3).gradients == 2
    assert Spec.parse("lbfgs:max_iter=8").resolve(DEFAULTS, 3).gradients == 10
    clash = Spec.parse("lookahead:inner=rmsprop,alpha=0.5,inner.alpha=0.9").resolve(DEFAULTS, 3)
    assert (clash.settings.alpha, clash.optimizer["alpha"], clash.as_json()["inner.alpha"]) == (0.5, 0.9, 0.9)


@pytest.mark.parametrize("name", [*METHODS, "lookaround+sam+ema", "lookahead+tail", "dart+swad", "sam+lawa"])
def test_every_method_can_be_written_with_all_its_settings(name):
    """What resolves to a value can be typed: the label of all of them is read again as the same."""
    found = Spec(name).resolve(DEFAULTS, 3).as_json()
    known = Spec(name).fields()
    typed = {key: write(found[key]) for key in known if key in found and found[key] not in ([], "")}
    spec = Spec(name).with_settings(typed)
    assert Spec.parse(spec.label) == spec
    again = spec.resolve(DEFAULTS, 3).as_json()
    assert {key: again[key] for key in typed} == {key: found[key] for key in typed}


def test_joined_methods_have_the_settings_and_the_cost_of_their_parts():
    joined = find("lookaround+sam+swad")
    assert (joined.gradients, joined.held_out) == (2, True)
    assert {"k", "alpha", "rho", "tolerance", "norm_stats", "lr"} <= set(Spec("lookaround+sam+swad").fields())


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_a_value_that_is_written_is_read(value):
    kind = bool | None if isinstance(value, bool) or value is None else type(value)
    assert read(kind, write(value)) == value
