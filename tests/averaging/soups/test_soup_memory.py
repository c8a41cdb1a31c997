"""What soups hold in memory, counted in float32 models, and soups of all formats of files."""

import gc

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from lookaround import tensors
from lookaround.averaging import greedy_soup, soup_files, uniform_soup

# A size that no other test's tensors have, so that those of a soup can be told from others.
SIZE, LAYERS = 1237, 6
ONE_TENSOR = 1 / LAYERS


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    layers = {f"w{i}": torch.randn(SIZE, generator=generator).to(dtype) for i in range(LAYERS)}
    return layers | {"steps": torch.tensor(seed)}


def write(folder, kinds, dtype=torch.float32):
    """A file of each kind: safetensors, pt, or old, the format of before PyTorch 1.6."""
    paths = []
    for seed, kind in enumerate(kinds):
        paths.append(folder / f"m{seed}.{'safetensors' if kind == 'safetensors' else 'pt'}")
        if kind == "safetensors":
            save_file(state(seed, dtype), paths[-1])
        else:
            torch.save(state(seed, dtype), paths[-1], _use_new_zipfile_serialization=kind == "pt")
    return paths


class Peak:
    """The most that tensors of `SIZE` elements took whenever they were looked at."""

    def __init__(self):
        self.models = 0.0

    def look(self):
        alive = [found for found in gc.get_objects() if type(found) is torch.Tensor and found.shape == (SIZE,)]
        memory = {tensor.data_ptr(): tensor.dtype.itemsize for tensor in alive}
        self.models = max(self.models, sum(memory.values()) / (4 * LAYERS))


@pytest.fixture
def peak(monkeypatch):
    """Looks at memory whenever a tensor that was read is averaged in; at what is new, since there is much else after other tests."""
    counted, lerp = Peak(), tensors.lerp_each_
    gc.collect()
    gc.freeze()

    def watched(*args):
        counted.look()
        lerp(*args)

    monkeypatch.setattr(tensors, "lerp_each_", watched)
    yield counted
    gc.unfreeze()


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("kind", "dtype", "models"),
    [
        ("safetensors", torch.float32, 2 + ONE_TENSOR),
        ("safetensors", torch.bfloat16, 2.5),
        ("pt", torch.float32, 2 + ONE_TENSOR),
        ("old", torch.float32, 2 + ONE_TENSOR),
    ],
)
@pytest.mark.parametrize("scores", [None, [5.0, 4.0, 3.0, 2.0, 1.0]])
def test_greedy_drops_a_candidate_before_it_forms_the_next(tmp_path, peak, kind, dtype, models, scores):
    paths = write(tmp_path, [kind] * 5, dtype)
    results = iter([*([6.0] if scores else [5.0, 4.0, 3.0, 2.0, 1.0]), 7.0, 0.0, 0.0, 8.0])

    def evaluate(weights):
        peak.look()
        return next(results)

    soup = greedy_soup(paths, evaluate, scores=scores)
    assert soup.members == (0, 1, 4)
    assert peak.models == pytest.approx(models)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, [0.0, 3.0, 1.0, 0.0, 4.0]])
@pytest.mark.parametrize("kinds", [["old"] * 5, ["safetensors", "old", "pt", "old", "safetensors"]])
def test_they_give_the_same_soup_to_the_last_bit(tmp_path, kinds, weights, dtype):
    paths, states = write(tmp_path, kinds, dtype), [state(seed, dtype) for seed in range(5)]
    expected = uniform_soup(states, weights=weights)
    same(uniform_soup(paths, weights=weights), expected)
    recipe = soup_files(tmp_path / "soup.safetensors", paths, weights=weights)
    same(load_file(tmp_path / "soup.safetensors"), expected)
    assert [line.file for line in recipe] == [str(path) for path in paths]
    hashes = [{path.name: f"blake3:{blake3(path.read_bytes()).hexdigest()}"} for path in paths]
    assert [line.hashes for line in recipe] == hashes
    greedy = [greedy_soup(given, lambda weights: float(weights["w0"].mean())) for given in (paths, states)]
    assert greedy[0].members == greedy[1].members
    same(greedy[0].weights, greedy[1].weights)


def test_one_that_differs_or_cannot_be_read_is_found_before_anything_is_made(tmp_path):
    paths = write(tmp_path, ["old", "old"])
    torch.save({"w0": torch.zeros(2)}, paths[1], _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"m1\.pt and .*m0\.pt: the former does not match: missing: w1"):
        greedy_soup(paths, pytest.fail)
    paths[1].write_bytes(paths[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"m1\.pt is no checkpoint"):
        greedy_soup(paths, pytest.fail)
    torch.save([1, 2], paths[1], _use_new_zipfile_serialization=False)
    with pytest.raises(TypeError, match="holds list"):
        soup_files(tmp_path / "soup.safetensors", paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0.pt", "m1.pt"]
