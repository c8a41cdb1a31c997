"""Ingredients of every kind: tied weights, extra states, dtypes, layouts in memory and in files, files by their content."""

import copy
import json
import warnings
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from lookaround.averaging import RunningAverage, greedy_soup, soup_files, uniform, uniform_soup
from lookaround.averaging.files import save_tensors
from lookaround.averaging.soups.opening import open_file


class Tied(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        nn.init.constant_(self.embed.weight, value)


def exported(folder, value):
    """A tied model and its own export."""
    model = Tied(value)
    average = RunningAverage(model, uniform())
    average.update()
    average.export(folder / f"{value}.safetensors")
    return model, folder / f"{value}.safetensors"


def test_a_tied_model_with_its_own_export(tmp_path):
    model, path = exported(tmp_path, 1.0)
    other = Tied(3.0)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    save_model(Tied(8.0), tmp_path / "saved.safetensors")
    soup = uniform_soup([model, path, other.state_dict(), tmp_path / "other.pt", tmp_path / "saved.safetensors"])
    assert list(soup) == list(model.state_dict())
    assert soup["head.weight"] is soup["embed.weight"]
    torch.testing.assert_close(soup["embed.weight"], torch.full((5, 3), 16 / 5))
    model.load_state_dict(soup)
    greedy = greedy_soup([model, path], lambda state: float(state["head.weight"].mean()))
    assert greedy.weights.keys() == model.state_dict().keys()


def test_tied_files_make_a_tied_file(tmp_path):
    paths = [exported(tmp_path, value)[1] for value in (1.0, 5.0)]
    soup_files(tmp_path / "soup.safetensors", paths, weights=[3, 1])
    assert list(load_file(tmp_path / "soup.safetensors")) == ["embed.weight"]
    model = Tied(0.0)
    assert load_model(model, tmp_path / "soup.safetensors") == (set(), [])
    assert torch.equal(model.head.weight, torch.full((5, 3), 2.0))
    again = uniform_soup([tmp_path / "soup.safetensors", model])
    assert torch.equal(again["head.weight"], torch.full((5, 3), 2.0))


def test_what_is_not_tied_in_all_ingredients_is_not_tied_in_the_soup(tmp_path):
    model, path = exported(tmp_path, 1.0)
    parted = copy.deepcopy(model)
    parted.head.weight = nn.Parameter(torch.full((5, 3), 3.0))
    torch.save(parted.state_dict(), tmp_path / "parted.pt")
    soup_files(tmp_path / "soup.safetensors", [path, tmp_path / "parted.pt"])
    for soup in (load_file(tmp_path / "soup.safetensors"), uniform_soup([model, parted])):
        assert torch.equal(soup["embed.weight"], torch.full((5, 3), 1.0))
        assert torch.equal(soup["head.weight"], torch.full((5, 3), 2.0))


class Counting(nn.Linear):
    """Keeps something beside its tensors."""

    def __init__(self, count):
        super().__init__(2, 2)
        self.count = count

    def get_extra_state(self):
        return {"count": self.count}

    def set_extra_state(self, state):
        self.count = state["count"]


def test_extra_states_are_those_of_the_first_ingredient():
    models = [nn.Sequential(Counting(3), nn.Linear(2, 2)), nn.Sequential(Counting(4), nn.Linear(2, 2))]
    for ingredients in (models, [model.state_dict() for model in models], [models[0], models[1].state_dict()]):
        soup = uniform_soup(ingredients)
        assert soup["0._extra_state"] == {"count": 3}
        fresh = nn.Sequential(Counting(0), nn.Linear(2, 2))
        fresh.load_state_dict(soup)
        assert fresh[0].count == 3
    best = greedy_soup(models, lambda state: float(state["0._extra_state"]["count"]), scores=[1.0, 2.0])
    assert best.weights["0._extra_state"] == {"count": 4}
    with pytest.raises(ValueError, match=r"missing: 0\._extra_state"):
        uniform_soup([models[0], {k: v for k, v in models[1].state_dict().items() if "extra" not in k}])


def test_extra_states_in_files_are_copied_if_they_are_tensors_and_refused_by_name_if_not(tmp_path):
    for value in (1, 3):
        state = {"w": torch.full((2,), float(value)), "_extra_state": torch.full((4,), value, dtype=torch.uint8)}
        torch.save(state, tmp_path / f"{value}.pt")
    soup_files(tmp_path / "soup.safetensors", [tmp_path / "1.pt", tmp_path / "3.pt"])
    found = load_file(tmp_path / "soup.safetensors")
    assert found["w"].tolist() == [2.0, 2.0]
    assert found["_extra_state"].tolist() == [1, 1, 1, 1]
    torch.save(Counting(1).state_dict(), tmp_path / "m.pt")
    with pytest.raises(TypeError, match=r"m\.pt holds '_extra_state', which is dict and no tensor; load the files"):
        uniform_soup([tmp_path / "m.pt"])


@pytest.mark.parametrize("weights", [[1e308, 1e308], [5e-324, 5e-324], [1e308, 1e308, 0.0][:2]])
def test_weights_of_any_size(weights):
    soup = uniform_soup([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], weights=weights)
    assert soup["w"].item() == 2.0


def test_a_lone_path_or_model_is_no_list(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "m")
    for lone in (str(tmp_path / "m"), tmp_path / "m", b"m"):
        for soup in (uniform_soup, lambda x: soup_files(tmp_path / "out", x), lambda x: greedy_soup(x, lambda s: 0.0)):
            with pytest.raises(TypeError, match=r"got one path, .*: put it in a list"):
                soup(lone)
    with pytest.raises(TypeError, match="got one Linear: put it in a list"):
        uniform_soup(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="takes paths, got dict"):
        soup_files(tmp_path / "out", [{"w": torch.ones(2)}])
    assert not (tmp_path / "out").exists()


def test_files_are_known_by_what_is_in_them(tmp_path):
    state = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    save_file(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.safetensors.tmp")
    torch.save(state, tmp_path / "c", _use_new_zipfile_serialization=False)
    paths = [tmp_path / "a.pt", tmp_path / "b.safetensors.tmp", tmp_path / "c"]
    soup_files(tmp_path / "soup", paths)
    assert torch.equal(load_file(tmp_path / "soup")["w"], state["w"])
    assert torch.equal(uniform_soup(paths)["w"], state["w"])


AVERAGED = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
]


@pytest.mark.parametrize("dtype", AVERAGED, ids=str)
def test_dtypes_that_are_averaged(tmp_path, dtype):
    states = [{"w": torch.tensor(values).to(dtype)} for values in ([1.0, -2.0], [3.0, 6.0])]
    expected = torch.tensor([2.0, 2.0]).to(dtype)
    for index, state in enumerate(states):
        save_tensors(tmp_path / f"{index}.safetensors", state, {})
        torch.save(state, tmp_path / f"{index}.pt")
    for kind in ("safetensors", "pt"):
        paths = [tmp_path / f"{index}.{kind}" for index in range(2)]
        soup_files(tmp_path / "soup", paths)
        for soup in (load_file(tmp_path / "soup")["w"], uniform_soup(paths)["w"], uniform_soup(states)["w"]):
            assert soup.dtype == dtype
            assert torch.equal(soup.to(torch.complex64), expected.to(torch.complex64))


REFUSED = [
    torch.zeros(4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
]


def test_half_precision_complex_numbers_are_refused_by_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says itself that it hardly supports them
        tensor = torch.zeros(4, dtype=torch.complex32)
    with pytest.raises(ValueError, match=r"'w' has dtype complex32 \(.*save the model in complex64\)"):
        uniform_soup([{"w": tensor}])


@pytest.mark.parametrize("tensor", REFUSED, ids=lambda t: str(t.dtype))
def test_dtypes_that_mean_nothing_alone_are_refused_by_name(tmp_path, tensor):
    torch.save({"scales": tensor}, tmp_path / "m.pt")
    name = str(tensor.dtype).removeprefix("torch.")
    for ingredient in ({"scales": tensor}, tmp_path / "m.pt"):
        with pytest.raises(ValueError, match=rf"'scales' has dtype {name} \(.*\) and cannot be averaged"):
            uniform_soup([ingredient])


def test_sparse_tensors_are_refused_and_conjugated_ones_averaged(tmp_path):
    with pytest.raises(ValueError, match=r"state dict 0: 'w' is sparse \(torch.sparse_coo\); give it as to_dense"):
        uniform_soup([{"w": torch.eye(3).to_sparse()}])
    value = torch.tensor([1 + 2j, 3 - 1j])
    assert torch.equal(uniform_soup([{"w": value.conj()}, {"w": value}])["w"], torch.tensor([1 + 0j, 3 + 0j]))
    for name, tensor in (("sparse", torch.eye(3).to_sparse()), ("conjugated", value.conj())):
        torch.save({"w": tensor}, tmp_path / name)
        with pytest.raises(TypeError, match="and 'w' is"):
            uniform_soup([tmp_path / name])


def awkward():
    """Tensors as state dicts have them, in every layout in memory."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    return {
        "transposed": base.T,
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "slice": base[2:4, 1:7:2],
        "row": base[3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0),
        "one": base[:1, :1],
        "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 3),
        "parameter": nn.Parameter(torch.randn(3, generator=generator)),
        "steps": torch.arange(5),
        "mask": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_files_of_every_layout_are_read_as_torch_reads_them(tmp_path, zipped, protocol):
    torch.save(awkward(), tmp_path / "m", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    expected = torch.load(tmp_path / "m", weights_only=False)  # True warns of the newer protocols
    source = open_file(tmp_path / "m")
    found = dict(source.tensors())
    source.close()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())
    soup_files(tmp_path / "soup", [tmp_path / "m"] * 2)
    soup = load_file(tmp_path / "soup")
    assert all(torch.equal(soup[name], value) for name, value in expected.items())


def test_a_module_s_state_dict_of_another_device_and_without_checksums(tmp_path):
    model = nn.BatchNorm1d(3)
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save(model.state_dict(), tmp_path / "m")
    torch.serialization.set_crc32_options(options)
    with zipfile.ZipFile(tmp_path / "m") as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in uniform_soup([tmp_path / "m"]).items())


def test_a_whole_model_or_a_checkpoint_of_more_than_weights_is_named(tmp_path):
    for name, held, said in (
        ("whole", nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ("more", {"model": {"w": torch.ones(2)}, "epoch": 3}, "the keys model, epoch, and 'model' is dict"),
        ("list", [torch.ones(2)], "holds list"),
        ("numbers", {0: torch.ones(2)}, "and 0 is StoredTensor"),
    ):
        torch.save(held, tmp_path / name)
        with pytest.raises(TypeError, match=name) as caught:
            uniform_soup([tmp_path / name])
        assert said in str(caught.value)


def test_the_recipe_is_json_and_common_metadata_stay(tmp_path):
    for index in (0, 1):
        save_file({"w": torch.full((2,), float(index))}, tmp_path / f"{index}", {"origin": "here", "run": str(index)})
    soup_files(tmp_path / "soup", [tmp_path / "0", tmp_path / "1"])
    soup_files(tmp_path / "again", [tmp_path / "soup", tmp_path / "soup"], hashes=False)
    with safe_open(tmp_path / "again", "pt") as file:
        metadata = file.metadata()
    assert metadata["origin"] == "here"
    assert "run" not in metadata
    assert (
        json.loads(metadata["lookaround.soup"]) == [{"file": str(tmp_path / "soup"), "weight": 0.5, "hashes": {}}] * 2
    )


def provenance(folder, name, **notes):
    save_file({"w": torch.ones(2)}, folder / name, {f"lookaround.{key}": value for key, value in notes.items()})
    return folder / name


def test_models_without_a_common_start_are_warned_of(tmp_path):
    seed0 = provenance(tmp_path, "a", seed="0", method="sgd")
    seed1 = provenance(tmp_path, "b", seed="1", method="sgd")
    with pytest.warns(UserWarning, match=r"did not start from common weights: .*a \(seed 0\), .*b \(seed 1\)"):
        soup_files(tmp_path / "soup", [seed0, seed1])
    with pytest.warns(UserWarning, match="did not start from common weights"):
        uniform_soup([seed0, seed1])
    five = [seed0, seed1, *(provenance(tmp_path, f"more{seed}", seed=seed) for seed in "234")]
    with pytest.warns(UserWarning, match=r"more2 \(seed 2\) and 2 more; the mean"):
        uniform_soup(five)
    tuned = [provenance(tmp_path, f"tuned{seed}", seed=seed, start="5f3c") for seed in "01"]
    uniform_soup(tuned)
    uniform_soup([seed0, provenance(tmp_path, "c", seed="0", method="swa")])
    uniform_soup([seed0, provenance(tmp_path, "unknown")])
