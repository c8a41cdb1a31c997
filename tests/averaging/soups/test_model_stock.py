"""Model Stock against the paper's formula, tensor by tensor, and against the triangle it comes from."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lookaround.averaging import model_stock_files
from lookaround.averaging.soups.stock import ratio


def plain(start, tuned):
    """w_H = t · mean + (1 - t) · start with t = N cos / (1 + (N - 1) cos), cos the mean over pairs: a loop over tensors."""
    found, count = {}, len(tuned)
    for name, base in start.items():
        offsets = [(state[name] - base).double().flatten() for state in tuned]
        pairs = [(offsets[i], offsets[j]) for i in range(count) for j in range(i)]
        cosines = [float(a @ b / (a.norm() * b.norm())) if a.norm() * b.norm() else 0.0 for a, b in pairs]
        cosine = min(max(sum(cosines) / len(cosines), 0.0), 1.0)
        t = count * cosine / (1 + (count - 1) * cosine)
        found[name] = (t * sum(state[name].double() for state in tuned) / count + (1 - t) * base.double()).to(
            base.dtype
        )
    return found


def write(folder, states):
    for index, state in enumerate(states):
        save_file(state, folder / str(index))
    return [folder / str(index) for index in range(len(states))]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_paper_s_formula(tmp_path, count, dtype):
    generator = torch.Generator().manual_seed(count)
    shapes = {"small": (7,), "large": (600, 501), "frozen": (3,), "opposed": (4,)}
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    common = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tuned = [
        {name: start[name] + common[name] + torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(count)
    ]
    for index, state in enumerate(tuned):
        state["frozen"] = start["frozen"]
        state["opposed"] = start["opposed"] + common["opposed"] * (-1) ** index
    states = [{name: value.to(dtype) for name, value in state.items()} for state in (start, *tuned)]
    states = [state | {"steps": torch.tensor(index)} for index, state in enumerate(states)]
    first, *others = write(tmp_path, states)
    recipe = model_stock_files(tmp_path / "soup.safetensors", first, others)
    found = load_file(tmp_path / "soup.safetensors")
    assert found.pop("steps") == 0
    expected = plain(*({k: v for k, v in states[0].items() if k != "steps"}, states[1:]))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    with safe_open(tmp_path / "soup.safetensors", "pt") as file:
        metadata = file.metadata()
    ratios = json.loads(metadata["lookaround.soup.ratios"])
    assert ratios.keys() == shapes.keys()
    assert ratios["frozen"] == 1.0
    share = sum(ratios[name] * start[name].numel() for name in shapes) / sum(v.numel() for v in start.values())
    assert [line.weight for line in recipe] == pytest.approx([1 - share, *[share / count] * count])
    assert json.loads(metadata["lookaround.soup"]) == [vars(line) for line in recipe]
    assert all(line.hashes for line in recipe)


@given(st.integers(2, 6), st.floats(0.1, 10.0), st.floats(0.1, 10.0))
@settings(max_examples=50, deadline=None)
def test_it_is_the_point_of_the_models_plane_that_is_nearest_to_their_centre(count, way, noise):
    """The paper's picture: models lie around a centre, each apart from it by a vector orthogonal to all others and to the way there."""
    centre = torch.zeros(count + 1, dtype=torch.float64)
    centre[0] = way
    models = centre + noise * torch.eye(count + 1, dtype=torch.float64)[1:]
    nearest = models.T @ torch.linalg.lstsq(models.T, centre.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(ratio(models @ models.T) * models.mean(0), nearest, rtol=1e-9, atol=1e-9)


def test_models_that_agree_are_averaged_and_those_that_do_not_are_left(tmp_path):
    start = {"w": torch.zeros(4)}
    same = [{"w": torch.ones(4)}] * 2
    model_stock_files(tmp_path / "soup", *(lambda p: (p[0], p[1:]))(write(tmp_path, [start, *same])))
    assert torch.equal(load_file(tmp_path / "soup")["w"], torch.ones(4))
    apart = [{"w": torch.tensor([1.0, 0, 0, 0])}, {"w": torch.tensor([0, 1.0, 0, 0])}]
    model_stock_files(tmp_path / "soup", *(lambda p: (p[0], p[1:]))(write(tmp_path, [start, *apart])))
    assert torch.equal(load_file(tmp_path / "soup")["w"], torch.zeros(4))


def test_folders(tmp_path):
    states = [{"a": torch.full((3,), v), "b": torch.arange(4.0) * v} for v in (1.0, 2.0, 3.0)]
    for index, state in enumerate(states):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name, value in state.items():
            save_file({name: value}, folder / f"{name}.safetensors")
        weight_map = {name: f"{name}.safetensors" for name in state}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    paths = [tmp_path / str(index) for index in range(3)]
    model_stock_files(tmp_path / "soup", paths[0], paths[1:])
    index = json.loads((tmp_path / "soup" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["lookaround.soup.ratios"] == {"a": 1.0, "b": 1.0}
    found = {name: load_file(tmp_path / "soup" / file)[name] for name, file in index["weight_map"].items()}
    assert torch.equal(found["a"], torch.full((3,), 2.5))
    torch.testing.assert_close(found["b"], torch.arange(4.0) * 2.5)


def test_mistakes_are_errors_before_anything_is_written(tmp_path):
    first, second, third = write(
        tmp_path, [{"w": torch.ones(2)}, {"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.nan])}]
    )
    with pytest.raises(ValueError, match="needs at least 2, got 1"):
        model_stock_files(tmp_path / "soup", first, [second])
    with pytest.raises(ValueError, match="'w' holds numbers that are not finite"):
        model_stock_files(tmp_path / "soup", first, [second, third])
    with pytest.raises(TypeError, match="put it in a list"):
        model_stock_files(tmp_path / "soup", first, second)
    assert not (tmp_path / "soup").exists()
