"""``lookaround evaluate``, ``predict`` and ``export`` on real runs, and on a soup of them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lookaround.averaging import soup_files
from lookaround.cli import main
from lookaround.tasks.vision import load_network
from lookaround.tasks.vision.data import load_data


@pytest.fixture(scope="module")
def soup(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("soup") / "soup.safetensors"
    soup_files(out, [f"{runs[method]}/model.safetensors" for method in ("sgd", "lookahead")])
    return str(out)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of twenty test digits as files, two of them below it, and what they are."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "below").mkdir()
    images = load_data("digits").test_images[:20]
    for index, image in enumerate(images):
        name = folder / ("below" if index >= 18 else "") / f"{index:02}.png"
        Image.fromarray(image[0].numpy()).save(name)
    return folder, images


def test_evaluate_gives_what_training_measured(runs, capsys):
    assert main(["evaluate", *runs.values()]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "top-1", "%", "top-5", "%", "NLL", "ECE", "%"]
    for folder, line in zip(runs.values(), lines, strict=True):
        result = json.loads(Path(folder, "result.json").read_text())
        metrics = result["metrics"]
        shown = [f"{metrics[name]:.{digits}f}" for name, digits in (("top1", 2), ("top5", 2), ("nll", 4), ("ece", 2))]
        assert line.split() == [f"{result['method']},", "seed", "0", *shown]


def test_evaluate_takes_soups_and_splits(soup, runs, capsys):
    assert main(["evaluate", soup, "--data", "digits"]) == 0
    test = capsys.readouterr().out
    assert main(["evaluate", soup, "--data", "digits", "--split", "train", "--batch-size", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == test.splitlines()[-1].split()[0] == "soup"


def test_a_soup_names_its_data_and_a_folder_stands_for_its_runs(soup, experiment, runs, capsys, tmp_path):
    assert main(["evaluate", soup, "--data", "digits"]) == 0
    expected = capsys.readouterr().out
    assert main(["evaluate", soup]) == 0
    assert capsys.readouterr().out == expected
    assert main(["evaluate", *sorted(runs.values())]) == 0
    expected = capsys.readouterr().out
    assert main(["evaluate", str(experiment)]) == 0
    assert capsys.readouterr().out == expected


def predictions(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_predict_says_the_class_of_every_image(runs, digits, capsys, tmp_path):
    folder, images = digits
    assert main(["predict", runs["sgd"], str(folder), "--batch-size", "6"]) == 0
    rows = predictions(capsys.readouterr().out)
    assert [row["file"] for row in rows] == sorted(str(path) for path in folder.rglob("*.png"))
    model, about = load_network(f"{runs['sgd']}/model.safetensors")
    with torch.inference_mode():
        expected = model(about.prepare(images)).softmax(1).max(1)
    by_name = {row["file"].rpartition("/")[2]: row for row in rows}
    for index, (value, chosen) in enumerate(zip(*expected, strict=True)):
        row = by_name[f"{index:02}.png"]
        assert row["class"] == about.classes[chosen]
        assert float(row["probability"]) == pytest.approx(float(value), abs=2e-6)
    assert main(["predict", runs["sgd"], str(folder), "--out", str(tmp_path / "p.csv")]) == 0
    assert predictions((tmp_path / "p.csv").read_text()) == rows
    assert capsys.readouterr().out == f"20 images: {tmp_path / 'p.csv'}\n"


def test_predict_resizes_and_takes_colours(runs, tmp_path, capsys):
    Image.new("RGB", (40, 30), (200, 30, 60)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 30), (200, 30, 60)).convert("L").save(tmp_path / "b.png")
    assert main(["predict", runs["sgd"], str(tmp_path / "b.png"), str(tmp_path / "a.png")]) == 0
    b, a = predictions(capsys.readouterr().out)
    assert (a["class"], a["probability"]) == (b["class"], b["probability"])


def test_predict_names_all_bad_images_and_writes_nothing(runs, digits, tmp_path, refused, capsys):
    (tmp_path / "one.png").write_bytes(b"no image")
    (tmp_path / "two.jpg").mkdir()
    said = refused("predict", runs["sgd"], str(digits[0]), str(tmp_path), "--out", str(tmp_path / "p.csv"))
    one, two = f"{tmp_path}/one.png: it is not an image", f"{tmp_path}/two.jpg: it is not a regular file"
    assert said == f"cannot decode 2 images: {one}; {two}"
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("of", ["run", "soup"])
def test_an_exported_program_needs_torch_alone(of, runs, soup, digits, tmp_path):
    source = {"run": runs["lookaround"], "soup": soup}[of]
    assert main(["export", source, str(tmp_path / "net.pt2")]) == 0
    torch.save(digits[1], tmp_path / "images.pt")
    program = (
        "import torch; images = torch.load('images.pt'); net = torch.export.load('net.pt2').module();"
        "torch.save([net(images), net(images[:1])], 'logits.pt')"
        "\nimport sys; assert not [name for name in sys.modules if name.startswith('lookaround')]"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    model, about = load_network(source if of == "soup" else f"{source}/model.safetensors")
    with torch.inference_mode():
        expected = model(about.prepare(digits[1]))
    whole, one = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(one, expected[:1])


def test_an_onnx_file_gives_the_same_logits(runs, digits, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["export", runs["lookaround"], str(tmp_path / "net.onnx")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    model, about = load_network(f"{runs['lookaround']}/model.safetensors")
    for count in (20, 1, 7):
        (found,) = session.run(["logits"], {"images": digits[1][:count].numpy()})
        with torch.inference_mode():
            expected = model(about.prepare(digits[1][:count]))
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_exported_weights_are_the_networks(runs, tmp_path):
    assert main(["export", runs["sgd"], str(tmp_path / "w.bin"), "--format", "safetensors"]) == 0
    found, expected = load_file(tmp_path / "w.bin"), load_network(f"{runs['sgd']}/model.safetensors")[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate"], "nothing to evaluate; give runs"),
        (["evaluate", "{nowhere}"], "there is no {nowhere}; give a run's folder"),
        (["evaluate", "{sgd}", "--split", "validation"], ""),
        (["evaluate", "{sgd}", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["predict", "{sgd}"], "nothing to predict; give image files"),
        (["predict", "{sgd}", "{nowhere}"], "there is no {nowhere}; give image files, or folders of them"),
        (["predict", "{sgd}", "{empty}"], "{empty} holds no images (.bmp, "),
        (["predict", "{sgd}", "{empty}", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["predict", "{sgd}", "{digits}", "--out", "{empty}"], "{empty} cannot be written"),
        (
            ["predict", "{sgd}", "{digits}", "--out", "{nowhere}/x.csv"],
            "cannot be written: give a file in a folder that exists",
        ),
        (["predict", "{sgd}", "{digits}", "--device", "tpu"], "unknown device 'tpu'"),
        (["predict", "{empty}", "{digits}"], "{empty} holds no finished run"),
        (
            ["export", "{sgd}", "net.xyz"],
            "net.xyz does not say which format it is to have: end it with .safetensors, .pt2, .onnx",
        ),
        (["export", "{sgd}", "{empty}", "--format", "torch"], "{empty} cannot be written"),
        (["export", "{sgd}", "{nowhere}/net.pt2"], "cannot be written"),
        (
            ["export", "{sgd}", "{sgd}/model.safetensors"],
            "{sgd}/model.safetensors is the network itself; choose another FILE",
        ),
        (["export", "{sgd}", "net.pt2", "--format", "tflite"], ""),
        (["export", "{nowhere}", "net.pt2"], "there is no {nowhere}"),
    ],
)
def test_bad_input_is_one_line(words, said, runs, digits, tmp_path, refused):
    names = {"sgd": runs["sgd"], "digits": digits[0], "empty": tmp_path, "nowhere": tmp_path / "nowhere"}
    assert said.format(**names) in refused(*(word.format(**names) for word in words))
    assert not list(tmp_path.iterdir())


def test_what_onnx_needs_is_said(runs, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("lookaround.commands.export.find_spec", lambda name: None)
    said = refused("export", runs["sgd"], str(tmp_path / "net.onnx"))
    assert said == "onnx needs onnx and onnxscript; add it with: pip install '.[onnx]'"
