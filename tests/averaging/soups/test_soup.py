"""Soups in memory and from files against plain means and the naive greedy algorithm."""

import copy
import json
import os
import signal

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lookaround.averaging import greedy_soup, soup_files, uniform_soup
from lookaround.averaging.files import save_tensors
from lookaround.averaging.soups import cook
from lookaround.averaging.soups.recipe import METADATA_KEY
from lookaround.averaging.soups.stored import StoredFile


def states(count=4, dtype=torch.float32):
    result = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 300)).to(dtype)
        model(torch.randn(5, 3, 4, 4, dtype=dtype))
        model[1].num_batches_tracked += seed
        result.append(model.state_dict())
    return result


def digests(paths):
    return [{path.name: f"blake3:{blake3(path.read_bytes()).hexdigest()}"} for path in paths]


def mean(ingredients, weights=None):
    weights = weights or [1.0] * len(ingredients)
    return {
        k: sum(w * s[k].double() for w, s in zip(weights, ingredients, strict=True)) / sum(weights)
        if v.is_floating_point()
        else v
        for k, v in ingredients[0].items()
    }


def write(folder, ingredients, kind="safetensors"):
    paths = [folder / f"m{i}.{kind}" for i in range(len(ingredients))]
    for path, state in zip(paths, ingredients, strict=True):
        save_file(state, path, {"origin": "here", "run": path.name}) if kind == "safetensors" else torch.save(
            state, path
        )
    return paths


def same(a, b, rtol=1e-6):
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value.double(), b[key].double(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("weights", [None, [3.0, 0.0, 1.0, 4.0], [0, 0, 0, 2]])
def test_the_mean_of_models_states_and_files(tmp_path, weights):
    ingredients = states()
    expected = mean(ingredients, weights)
    same(uniform_soup(ingredients, weights=weights), expected)
    same(uniform_soup(write(tmp_path, ingredients), weights=weights), expected)
    same(uniform_soup(write(tmp_path, ingredients, "pt"), weights=weights), expected)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 300))
    model.load_state_dict(ingredients[1])
    mixed = [ingredients[0], model, str(tmp_path / "m2.pt"), tmp_path / "m3.safetensors"]
    same(uniform_soup(mixed, weights=weights), expected)


def test_equal_weights_of_equal_models_change_nothing():
    state = states(1)[0]
    soup = uniform_soup([state] * 7)
    assert all(torch.equal(soup[k], v) for k, v in state.items())
    assert all(soup[k].data_ptr() != v.data_ptr() for k, v in state.items())


@pytest.mark.parametrize("index", [0, 1])
def test_an_ingredient_without_weight_has_no_say_whatever_it_holds(tmp_path, index):
    ingredients = [{"w": torch.ones(3)}, {"w": torch.ones(3)}]
    ingredients[index]["w"] = torch.full((3,), float("nan"))
    weights = [1.0, 1.0]
    weights[index] = 0.0
    assert torch.equal(uniform_soup(ingredients, weights=weights)["w"], torch.ones(3))
    soup_files(tmp_path / "soup.safetensors", write(tmp_path, ingredients), weights=weights)
    assert torch.equal(load_file(tmp_path / "soup.safetensors")["w"], torch.ones(3))


def test_the_best_n():
    ingredients = states()
    soup = uniform_soup(ingredients, best=2, scores=[0.5, 0.9, 0.5, 0.7])
    same(soup, mean([ingredients[1], ingredients[3]]))
    tied = uniform_soup(ingredients, best=3, scores=[0.5, 0.9, 0.5, 0.7], weights=[1, 2, 3, 4])
    same(tied, mean([ingredients[i] for i in (0, 1, 3)], [1, 2, 4]))


def test_low_precision_is_averaged_in_float32():
    ingredients = [{"w": torch.full((3,), v, dtype=torch.bfloat16)} for v in (256.0, 1.0, 1.0, 1.0)]
    soup = uniform_soup(ingredients)
    assert soup["w"].dtype == torch.bfloat16
    assert torch.equal(soup["w"], torch.full((3,), 259 / 4, dtype=torch.float32).bfloat16())


def naive_greedy(ingredients, evaluate):
    """Recipe 1 as printed: every candidate's mean from all its members."""
    scores = [evaluate(s) for s in ingredients]
    members = []
    for i in sorted(range(len(ingredients)), key=lambda i: -scores[i]):
        trial = [*members, i]
        if not members or evaluate(mean([ingredients[j] for j in trial])) >= evaluate(
            mean([ingredients[j] for j in members])
        ):
            members = trial
    return members


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=8), st.integers(-8, 8), st.booleans())
@settings(max_examples=100, deadline=None)
def test_greedy_is_the_naive_algorithm(values, target, scored):
    ingredients = [{"w": torch.tensor([float(v), 1.0], dtype=torch.float64)} for v in values]

    def evaluate(state):
        # Rounded, so that there are ties, and none is decided by the last bit.
        return -round(abs(state["w"][0].item() - target), 1)

    soup = greedy_soup(ingredients, evaluate, scores=[evaluate(s) for s in ingredients] if scored else None)
    members = naive_greedy(ingredients, evaluate)
    assert list(soup.members) == members
    same(soup.weights, mean([ingredients[i] for i in members]), rtol=1e-12)
    assert soup.score == evaluate(soup.weights)
    assert soup.scores == tuple(evaluate(s) for s in ingredients)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_greedy_over_files_reads_and_evaluates_as_often_as_needed(tmp_path, kind):
    ingredients, calls = states(5), []

    def evaluate(state):
        calls.append(state["3.bias"].dtype)
        return -float((state["3.bias"] - 0.05).square().sum())

    soup = greedy_soup(write(tmp_path, ingredients, kind), evaluate)
    assert list(soup.members) == naive_greedy(ingredients, lambda s: -float((s["3.bias"] - 0.05).square().sum()))
    assert calls == [torch.float32] * (5 + 4)
    assert soup.weights["1.num_batches_tracked"] == ingredients[soup.members[0]]["1.num_batches_tracked"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hashes", [True, False])
def test_soup_files_write_the_mean_with_its_recipe(tmp_path, dtype, hashes):
    ingredients = states(5, dtype)
    paths = write(tmp_path, ingredients)
    out = tmp_path / "soup.safetensors"
    recipe = soup_files(out, paths, weights=[1, 1, 1, 1, 4], hashes=hashes)
    same(load_file(out), mean(ingredients, [1, 1, 1, 1, 4]), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert all(v.dtype == ingredients[0][k].dtype for k, v in load_file(out).items())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata[METADATA_KEY]) == [vars(i) for i in recipe]
    assert metadata["origin"] == "here"
    assert "run" not in metadata
    assert [i.file for i in recipe] == [str(p) for p in paths]
    assert [i.weight for i in recipe] == [0.125, 0.125, 0.125, 0.125, 0.5]
    assert [i.hashes for i in recipe] == (digests(paths) if hashes else [{}] * 5)


def test_tensors_of_many_blocks_and_other_orders_are_hashed_and_averaged_right(tmp_path):
    torch.manual_seed(0)
    big = [{"a": torch.randn(700_001), "b": torch.randn(3, 100_003), "empty": torch.zeros(0, 4)} for _ in range(3)]
    paths = write(tmp_path, big)
    save_tensors(tmp_path / "reversed.safetensors", dict(reversed(big[2].items())), {})
    paths[2] = tmp_path / "reversed.safetensors"
    recipe = soup_files(tmp_path / "soup.safetensors", paths)
    same(load_file(tmp_path / "soup.safetensors"), mean(big))
    assert [i.hashes for i in recipe] == digests(paths)


def test_torch_files_and_an_output_over_an_input(tmp_path):
    ingredients = states(3)
    paths = [*write(tmp_path, ingredients[:2], "pt"), tmp_path / "m2.safetensors"]
    save_file(ingredients[2], paths[2])
    before = digests(paths)
    recipe = soup_files(paths[2], paths)
    same(load_file(paths[2]), mean(ingredients))
    assert [i.hashes for i in recipe] == before


def test_differences_are_listed():
    first, second = states(2)
    other = dict(second)
    other["3.weight"] = torch.zeros(2, 2)
    other["1.bias"] = other["1.bias"].double()
    other["extra"] = other.pop("3.bias")
    with pytest.raises(ValueError, match=r"state dict 1 and state dict 0") as error:
        uniform_soup([first, other])
    for part in (
        "missing: 3.bias",
        "unexpected: extra",
        "3.weight is torch.float32 (2, 2) instead of torch.float32 (300, 16)",
        "1.bias is torch.float64 (4,) instead of torch.float32 (4,)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: uniform_soup([]), ValueError, "at least one ingredient"),
        (lambda s: uniform_soup(s, weights=[1, 2]), ValueError, "4 ingredients, got 2"),
        (lambda s: uniform_soup(s, weights=[1, -1, 1, 1]), ValueError, "not be negative"),
        (lambda s: uniform_soup(s, weights=[0, 0, 0, 0]), ValueError, "not all 0"),
        (lambda s: uniform_soup(s, best=5, scores=[1] * 4), ValueError, "1 to the 4 ingredients, got 5"),
        (lambda s: uniform_soup(s, best=2), ValueError, "got None"),
        (lambda s: uniform_soup(s, best=2, scores=[1, float("nan"), 1, 1]), ValueError, "NaN"),
        (lambda s: uniform_soup([3]), TypeError, "got int"),
        (lambda s: uniform_soup([{"model": s[0]}]), TypeError, "holds the keys model"),
        (lambda s: greedy_soup([], lambda w: 0.0), ValueError, "at least one ingredient"),
    ],
)
def test_mistakes_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(states())


def test_damaged_files_leave_the_output_alone(tmp_path):
    paths = write(tmp_path, states(3))
    out = tmp_path / "soup.safetensors"
    out.write_bytes(b"before")
    whole = paths[1].read_bytes()
    cases = {
        "cut short": whole[:5],
        "damaged": whole[:-1],
        "cannot be read": (50).to_bytes(8, "little") + b"[" * 50,
        "not a safetensors file": b"\xff" * 64,
    }
    for message, content in cases.items():
        paths[1].write_bytes(content)
        with pytest.raises(ValueError, match=message):
            soup_files(out, paths)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError):
        soup_files(out, paths)
    (tmp_path / "bad.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"bad\.pt is no checkpoint"):
        soup_files(out, [tmp_path / "bad.pt"])
    assert out.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["bad.pt", "m0.safetensors", "m2.safetensors", "soup.safetensors"]


def test_a_file_that_shrinks_while_it_is_read_stops_all_threads(tmp_path, monkeypatch):
    torch.manual_seed(0)
    paths = write(tmp_path, [{"w": torch.randn(2_000_000)} for _ in range(3)])
    opened = StoredFile._opened

    def shrink(self):
        file = opened(self)
        if self.path == str(paths[1]):
            os.truncate(paths[1], 3_000_000)
        return file

    monkeypatch.setattr(StoredFile, "_opened", shrink)
    with pytest.raises(ValueError, match="ended while it was read"):
        soup_files(tmp_path / "soup.safetensors", paths)
    assert not (tmp_path / "soup.safetensors").exists()


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("how", ["interrupt", "failure"])
def test_a_soup_that_is_interrupted_or_fails_stops_at_once(tmp_path, monkeypatch, hashes, how):
    monkeypatch.setattr(cook, "_BLOCK", 2**12)
    paths, blocks = write(tmp_path, [{"w": torch.zeros(2**22)}] * 2), []
    # A test run that a shell started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def stop(done, total):
        blocks.append(done)
        if len(blocks) == 1 and how == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif len(blocks) == 1:
            raise RuntimeError("no more")

    try:
        with pytest.raises(KeyboardInterrupt if how == "interrupt" else RuntimeError):
            soup_files(tmp_path / "soup.safetensors", paths, hashes=hashes, progress=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(blocks) < 1024
    assert sorted(os.listdir(tmp_path)) == ["m0.safetensors", "m1.safetensors"]


def test_ingredients_are_not_changed(tmp_path):
    ingredients = states(3)
    before = copy.deepcopy(ingredients)
    uniform_soup(ingredients)
    greedy_soup(ingredients, lambda s: float(s["3.bias"][0]))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(ingredients, before, strict=True) for k in a)


def test_one_path_is_no_list_of_ingredients():
    with pytest.raises(TypeError, match=r"got one path, 'm\.pt': put it in a list"):
        uniform_soup("m.pt")
