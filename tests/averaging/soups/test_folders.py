"""Folders as Hugging Face's libraries write them, as ingredients and as soups."""

import json
import os

import pytest
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from lookaround.averaging import plan_soup, soup_files, uniform_soup
from lookaround.averaging.soups.opening import open_file
from lookaround.averaging.soups.outputs import is_soup

INDEX = "model.safetensors.index.json"


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    layers = {f"layers.{i}.weight": torch.randn(40, 50, generator=generator).to(dtype) for i in range(6)}
    return layers | {"steps": torch.tensor(seed), "bias": torch.randn(7, generator=generator).to(dtype)}


def write_folder(folder, tensors, shards, kind="safetensors"):
    """A model in a number of files with an index, beside its description and what a training leaves."""
    folder.mkdir()
    names = list(tensors)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    files = {name: f"{stem}-{1 + i * shards // len(names):05}-of-{shards:05}.{kind}" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: tensors[name] for name in names if files[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file, {"format": "pt"})
        else:
            torch.save(part, folder / file)
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": files})
    (folder / f"{stem}.{kind}.index.json").write_text(index)
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json", "optimizer.pt", "trainer_state.json"):
        (folder / name).write_text(f"{folder.name}: {name}")
    return folder


def load(folder):
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    found = {name: load_file(folder / file)[name] for name, file in weight_map.items()}
    held = {name for file in set(weight_map.values()) for name in load_file(folder / file)}
    assert held == found.keys()
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hashes", [True, False])
def test_folders_cut_in_different_ways(tmp_path, dtype, hashes):
    states = [state(seed, dtype) for seed in range(3)]
    shuffled = dict(reversed(states[2].items()))
    given = [write_folder(tmp_path / "a", states[0], 3), write_folder(tmp_path / "b", states[1], 2)]
    given.append(write_folder(tmp_path / "c", shuffled, 4))
    recipe = soup_files(tmp_path / "soup", given, weights=[1, 2, 1], hashes=hashes)
    expected = uniform_soup(states, weights=[1, 2, 1])
    assert all(torch.equal(value, expected[name]) for name, value in load(tmp_path / "soup").items())
    assert names(tmp_path / "soup") == [
        "config.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        INDEX,
        "special_tokens_map.json",
        "tokenizer.json",
    ]
    assert (tmp_path / "soup" / "config.json").read_text() == "a: config.json"
    metadata = json.loads((tmp_path / "soup" / INDEX).read_text())["metadata"]
    assert metadata["total_size"] == sum(value.nbytes for value in expected.values())
    assert metadata["lookaround.soup"] == [vars(line) for line in recipe]
    for line, folder in zip(recipe, given, strict=True):
        files = sorted(folder.glob("*.safetensors")) if hashes else []
        assert line.hashes == {file.name: f"blake3:{blake3(file.read_bytes()).hexdigest()}" for file in files}
    for file in (tmp_path / "soup").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}


def test_every_file_of_a_soup_has_at_most_the_bytes_asked_for(tmp_path):
    given = [write_folder(tmp_path / "a", state(0), 2), write_folder(tmp_path / "b", state(1), 2)]
    soup_files(tmp_path / "soup", given, shard_size=20_000)  # two layers of 8,000 bytes each
    same(load(tmp_path / "soup"), uniform_soup([state(0), state(1)]))
    sizes = [sum(v.nbytes for v in load_file(file).values()) for file in (tmp_path / "soup").glob("*.safetensors")]
    assert sorted(sizes) == [16_000, 16_000, 16_036]
    plan = plan_soup(tmp_path / "other", given, shard_size=20_000)
    assert sorted(plan.files.values()) == sorted(sizes)
    assert list(plan.files) == [str(tmp_path / "other" / f"model-0000{i}-of-00003.safetensors") for i in (1, 2, 3)]
    assert not (tmp_path / "other").exists()
    soup_files(tmp_path / "tiny", given, shard_size=1)
    assert len(list((tmp_path / "tiny").glob("*.safetensors"))) == len(state(0))
    same(load(tmp_path / "tiny"), uniform_soup([state(0), state(1)]))


def test_files_and_folders_are_one_soup(tmp_path):
    folder = write_folder(tmp_path / "a", state(0), 3)
    binary = write_folder(tmp_path / "b", state(1), 2, "bin")
    save_file(state(2), tmp_path / "c.safetensors")
    single = tmp_path / "d"
    single.mkdir()
    save_file(state(3), single / "model.safetensors")
    (single / "config.json").write_text("d")
    given = [folder, binary, tmp_path / "c.safetensors", single]
    expected = uniform_soup([state(seed) for seed in range(4)])
    same(uniform_soup(given), expected)
    soup_files(tmp_path / "one.safetensors", given)
    same(load_file(tmp_path / "one.safetensors"), expected)
    soup_files(tmp_path / "many", given)
    same(load(tmp_path / "many"), expected)
    soup_files(tmp_path / "single", [single, folder])
    assert names(tmp_path / "single") == ["config.json", "model.safetensors"]
    same(load_file(tmp_path / "single" / "model.safetensors"), uniform_soup([state(3), state(0)]))
    again = uniform_soup([tmp_path / "many", tmp_path / "one.safetensors"])
    same(again, expected)


def test_a_soup_takes_the_place_of_a_soup_and_of_no_other_folder(tmp_path):
    given = [write_folder(tmp_path / "a", state(0), 2), write_folder(tmp_path / "b", state(1), 2)]
    out = tmp_path / "soup"
    out.mkdir()
    soup_files(out, given)
    assert is_soup(out)
    soup_files(out, given, weights=[0, 1])
    same(load(out), state(1) | {"steps": torch.tensor(0)})
    (out / "results.txt").write_text("mine")
    for folder in (out, tmp_path / "a"):
        before = names(folder)
        with pytest.raises(FileExistsError) as caught:
            soup_files(folder, given)
        assert caught.value.filename == str(folder)
        assert names(folder) == before
    assert names(tmp_path) == ["a", "b", "soup"]


def test_shards_go_to_a_folder_alone(tmp_path):
    save_file(state(0), tmp_path / "a")
    for size in (5, 0):
        with pytest.raises(ValueError, match="go to a folder: give OUT a name without"):
            soup_files(tmp_path / "soup.safetensors", [tmp_path / "a"], shard_size=size)
    soup_files(tmp_path / "soup", [tmp_path / "a"], shard_size=10**9)
    assert names(tmp_path / "soup") == ["model.safetensors"]


class Tied(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.middle = nn.Linear(3, 3)
        self.last = nn.Linear(3, 3, bias=False)
        self.last.weight = self.first.weight
        nn.init.constant_(self.first.weight, value)


def test_weights_tied_across_files_stay_tied(tmp_path):
    for value in (1.0, 3.0):
        save_model(Tied(value), tmp_path / f"{value}.safetensors")
    given = [tmp_path / "1.0.safetensors", tmp_path / "3.0.safetensors"]
    soup_files(tmp_path / "soup", given, shard_size=40)
    assert len(list((tmp_path / "soup").glob("*.safetensors"))) == 3
    soup = uniform_soup([tmp_path / "soup"])
    assert soup["last.weight"] is soup["first.weight"]
    model = Tied(0.0)
    model.load_state_dict(soup)
    assert torch.equal(model.last.weight, torch.full((3, 3), 2.0))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    given = [write_folder(tmp_path / name, state(seed), 8) for seed, name in enumerate("ab")]
    opened, most, close, open_ = set(), [0], os.close, os.open

    def counting_open(path, *args, **kwargs):
        found = open_(path, *args, **kwargs)
        if str(path).endswith(".safetensors") and "partial" not in str(path):
            opened.add(found)
            most[0] = max(most[0], len(opened))
        return found

    def counting_close(file):
        opened.discard(file)
        close(file)

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "close", counting_close)
    soup_files(tmp_path / "soup", given, hashes=False)
    assert most == [2]
    assert not opened


def test_a_file_that_is_replaced_while_it_is_read_is_not_mixed_in(tmp_path):
    folder = write_folder(tmp_path / "a", state(0), 2)
    source = open_file(folder)
    first, *_, last = source.order()
    source.tensor(first)
    source.rest()
    file = folder / "model-00002-of-00002.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, tmp_path / "new")
    os.replace(tmp_path / "new", file)
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors was changed while it was read"):
        source.tensor(last)
    source.close()


def test_several_models_in_a_folder_have_to_be_named(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds 0 safetensors files"):
        uniform_soup([tmp_path / "model"])
    for name in ("unet.safetensors", "vae.safetensors"):
        save_file(state(0), tmp_path / "model" / name)
    with pytest.raises(
        ValueError, match=r"holds 2 safetensors files and no model\.safetensors\.index\.json or model\.safetensors"
    ):
        uniform_soup([tmp_path / "model"])
    (tmp_path / "model" / "vae.safetensors").unlink()
    same(uniform_soup([tmp_path / "model"]), state(0))
