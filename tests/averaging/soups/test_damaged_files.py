"""Files of every kind, damaged in every way: one clear error or a soup, never a crash, a half-written file or a huge allocation."""

import json
import os
import random
import re
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lookaround.averaging import soup_files, uniform_soup

MUTATIONS = 2_500  # of each kind; four kinds
HEADROOM = 2**28


def state():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(3, 5, generator=generator) for i in range(4)}
    return tensors | {"steps": torch.tensor(7), "half": torch.ones(6, dtype=torch.bfloat16), "none": torch.zeros(0, 2)}


def safetensors_file(folder):
    save_file(state(), folder / "m", {"origin": "here"})
    return folder / "m", folder / "m"


def torch_file(folder):
    torch.save(state(), folder / "m")
    return folder / "m", folder / "m"


def old_torch_file(folder):
    torch.save(state(), folder / "m", _use_new_zipfile_serialization=False)
    return folder / "m", folder / "m"


def index_of_shards(folder):
    (folder / "model").mkdir()
    names = sorted(state())
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state()[name] for name in names if files[name] == file}, folder / "model" / file)
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return folder / "model", index


KINDS = [safetensors_file, torch_file, old_torch_file, index_of_shards]


def damaged(content, rng):
    """The bytes with something done to them, mostly where headers and directories are."""
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        edge = rng.random()
        limit = min(len(found), 700)
        at = rng.randrange(limit) if edge < 0.6 else max(0, len(found) - 1 - rng.randrange(limit or 1))
        match rng.randrange(7):
            case 0:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                found[at : at + 1] = bytes([found[at] ^ 1 << rng.randrange(8)])
            case 2:
                del found[at : at + rng.randrange(1, 40)]
            case 3:
                found[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 4:
                found[at : at + 8] = rng.choice(
                    [b"\xff" * 8, b"\x00" * 8, b"\x00" * 4 + b"\x7f" * 4, b"\x00\x00\x00\x00\x40\x00\x00\x00"]
                )
            case 5:
                found = found[:at]
            case 6:
                digits = [i for i, byte in enumerate(found) if chr(byte).isdigit()]
                if digits:
                    found[rng.choice(digits)] = ord(rng.choice("0123456789-.e"))
        if not found:
            break
    return bytes(found)


@pytest.fixture
def little_memory():
    """At most a quarter of a gigabyte more than now, so that a huge allocation fails."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(out, given):
    try:
        soup_files(out, [given])
    except (ValueError, TypeError) as error:
        return error
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(tmp_path, little_memory, kind):
    rng = random.Random(kind.__name__)
    (tmp_path / "in").mkdir()
    given, file = kind(tmp_path / "in")
    whole, out = file.read_bytes(), tmp_path / "soup.safetensors"
    errors = 0
    for _ in range(MUTATIONS):
        content = damaged(whole, rng)
        file.write_bytes(content)
        error = outcome(out, given)
        if error is None:
            load_file(out)
            out.unlink()
        else:
            errors += 1
            assert str(tmp_path / "in") in str(error), repr(error)
            assert not out.exists()
    assert os.listdir(tmp_path) == ["in"]
    assert errors > MUTATIONS / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_short_anywhere(tmp_path, kind):
    given, file = kind(tmp_path)
    whole = file.read_bytes()
    for length in range(0, len(whole), 5):
        file.write_bytes(whole[:length])
        with pytest.raises((ValueError, TypeError)) as caught:
            uniform_soup([given])
        assert str(tmp_path) in str(caught.value)


def test_an_old_file_that_ends_in_the_count_of_an_empty_storage(tmp_path):
    """Which storage comes last hangs on addresses in memory; here there is one alone."""
    file = tmp_path / "m"
    torch.save({"none": torch.zeros(0, 2)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    assert uniform_soup([file])["none"].shape == (0, 2)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises((ValueError, TypeError)) as caught:
            uniform_soup([file])
        assert str(file) in str(caught.value)


def pickled_alone(tmp_path, instructions):
    """A torch file that is nothing but this pickle."""
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + instructions + b".")
    return tmp_path / "m"


@pytest.mark.parametrize("depth", [5, 5_000, 1_000_000])
@pytest.mark.parametrize(
    ("before", "after"), [(b"}N", b"K\x01s"), (b"}", b"K\x01s"), (b"ctorch\nSize\n(K\x01", b"tR"), (b"(N", b"NNNNtQ")]
)
def test_tuples_in_tuples(tmp_path, little_memory, depth, before, after):
    """As a key, a size, a reference: a hash or a repr of what is nested so deep overflows the stack."""
    file = pickled_alone(tmp_path, before + b"\x85" * depth + after)
    with pytest.raises((ValueError, TypeError), match=re.escape(str(file))):
        uniform_soup([file])


@pytest.mark.parametrize(
    "use", [b"ctorch\nSize\nh\x01\x85R", b"ccollections\nOrderedDict\nh\x01\x85R"], ids=["size", "dictionary"]
)
def test_a_list_that_is_used_again_and_again_is_not_copied_each_time(tmp_path, little_memory, use):
    pairs = b"".join(b"J" + i.to_bytes(4, "little") + b"K\x01\x86" for i in range(20_000))
    file = pickled_alone(tmp_path, b"](" + pairs + b"eq\x01" + use * 5_000)
    with pytest.raises((ValueError, TypeError), match=re.escape(str(file))):
        uniform_soup([file])


def header(text, data=b"\x00" * 8):
    raw = text if isinstance(text, bytes) else text.encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), start=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(json.dumps({"w": entry(start=-8, end=0)})), "not counts"),
        (header(json.dumps({"w": entry(shape=(-1, -2))})), "not counts"),
        (header(json.dumps({"w": entry(shape=(True, 2))})), "not counts"),
        (header(json.dumps({"w": entry(shape=(2.0,))})), "not counts"),
        (header(json.dumps({"w": entry(start=8, end=0)})), "do not fit its shape"),
        (header(json.dumps({"a": entry(), "b": entry()})), "'b' overlaps the tensor before it"),
        (header(json.dumps({"a": entry(), "b": entry(start=4, end=12)}), b"\x00" * 12), "overlaps"),
        (header(json.dumps({"a": entry(), "b": entry(start=16, end=24)}), b"\x00" * 24), "leaves a gap"),
        (header(json.dumps({"w": entry()}), b"\x00" * 11), "3 bytes at its end belong to no tensor"),
        (header(json.dumps({"w": entry(shape=(2**62, 2**62))})), "do not fit its shape"),
        (header('{"w":' + "9" * 5000 + "}"), "cannot be read"),
        (header("[" * 100_000), "neither a safetensors nor a torch.save file"),
        (header('{"w":' + "[" * 100_000), "RecursionError"),
        (header(json.dumps({"w": entry()}).encode("utf-16-le")), "cannot be read"),
        (header('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"shape":[2]}}'), "stands in it twice"),
        (header(json.dumps({"w": entry(), "__metadata__": {"a": 1}})), "must map strings to strings"),
        (header(json.dumps({"w": entry(dtype="F8_E8M0", shape=(8,))})), "'w' has dtype F8_E8M0: common exponents"),
        (header(json.dumps({"w": entry(dtype="F4", shape=(16,))})), "'w' has dtype F4: 4-bit floats"),
        (header(json.dumps({"w": entry(dtype="F128")})), "'w' has dtype 'F128', which is not known"),
        (b"", "it is empty"),
        (b"a checkpoint\n", "it begins with b'a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, content, said):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    for soup in (uniform_soup, lambda paths: soup_files(tmp_path / "out.safetensors", paths)):
        with pytest.raises(ValueError, match=r"model\.pt") as caught:
            soup([path])
        assert said in str(caught.value)
    assert os.listdir(tmp_path) == ["model.pt"]


def rewritten(path, change):
    """A torch.save file with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("m/data.pkl"), "a zip archive without a pickle"),
        (lambda r: r.pop("m/data/0"), "its record m/data/0 is missing"),
        (lambda r: r.update({"m/data/0": r["m/data/0"][:-4]}), "storage 0 has 4 bytes"),
        (lambda r: r.update({"m/byteorder": b"big"}), "other byte order"),
        (
            lambda r: r.update({"m/data.pkl": r["m/data.pkl"].replace(b"K\x02\x85", b"K\x7f\x85")}),
            "larger than its storage",
        ),
        (lambda r: r.update({"m/data.pkl": r["m/data.pkl"].replace(b"FloatStorage", b"GloatStorage")}), "unknown kind"),
        (lambda r: r.update({"m/data.pkl": b"\x80\x02\x8e" + b"\xff" * 8}), "pickle is damaged"),
        (lambda r: r.update({"m/data.pkl": b"\x80\x02\x96" + b"\xff" * 8 + b"."}), "pickle is damaged"),
        (lambda r: r.update({"m/data.pkl": b"\x80\x02Nr\xff\xff\xff\xff."}), "NoneType"),
    ],
)
def test_what_is_wrong_with_a_torch_file_is_said(tmp_path, little_memory, change, said):
    torch.save({"w": torch.ones(2)}, tmp_path / "m")
    rewritten(tmp_path / "m", change)
    with pytest.raises((ValueError, TypeError)) as caught:
        uniform_soup([tmp_path / "m"])
    assert str(tmp_path / "m") in str(caught.value)
    assert said in str(caught.value)


def test_a_local_header_that_has_other_bytes_begin_than_were_written(tmp_path):
    """Its lengths say where a record begins: with one that is off by a little, other numbers would be taken for the weights."""
    file = tmp_path / "m"
    torch.save({"w": torch.arange(1000.0), "v": torch.ones(1000)}, file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        headers = [info.header_offset for info in archive.infolist() if "/data/" in info.filename]
    assert len(headers) == 2
    for header in headers:
        for at in (26, 28):  # of the name, of what follows it
            length = int.from_bytes(whole[header + at : header + at + 2], "little")
            for by in (-16, -8, -4, -1, 1, 4, 8, 12, 16, 64):
                changed = max(0, length + by).to_bytes(2, "little")
                file.write_bytes(whole[: header + at] + changed + whole[header + at + 2 :])
                with pytest.raises(ValueError, match=r"its record m/data/\d (does not end|is called otherwise)"):
                    uniform_soup([file])
    file.write_bytes(whole)
    assert torch.equal(uniform_soup([file])["w"], torch.arange(1000.0))


def test_a_record_that_is_called_otherwise_in_its_own_header(tmp_path):
    file = tmp_path / "m"
    torch.save({"w": torch.zeros(10), "v": torch.ones(10)}, file)
    whole = file.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    swapped = (
        whole[directory:]
        .replace(b"m/data/0", b"m/data/x")
        .replace(b"m/data/1", b"m/data/0")
        .replace(b"m/data/x", b"m/data/1")
    )
    file.write_bytes(whole[:directory] + swapped)
    with pytest.raises(ValueError, match=r"its record m/data/\d is called otherwise in its own header"):
        uniform_soup([file])
    file.write_bytes(whole[:directory] + whole[directory:].replace(b"m/data/1", b"m/data/0"))
    with pytest.raises(ValueError, match="two of its records have one name"):
        uniform_soup([file])


@pytest.mark.parametrize("crc32", [True, False])
def test_records_of_all_kinds_of_files_that_torch_writes_are_found(tmp_path, crc32):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc32)
    try:
        for count in (0, 1, 15, 16, 1000):
            torch.save({"ä": torch.arange(float(count)), "b": torch.ones(3)}, tmp_path / f"m{count}")
            assert torch.equal(uniform_soup([tmp_path / f"m{count}"])["ä"], torch.arange(float(count)))
    finally:
        torch.serialization.set_crc32_options(before)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_expanded_tensor_is_read_whatever_its_file_is_large(tmp_path, zipped):
    file = tmp_path / "m"
    wide = {"w": torch.tensor([2.0]).expand(100_000), "v": torch.arange(3.0)[:, None].expand(3, 50_000)}
    torch.save(wide, file, _use_new_zipfile_serialization=zipped)
    assert file.stat().st_size < 10_000
    soup = uniform_soup([file, file])
    assert all(torch.equal(soup[name], value) for name, value in wide.items())
    soup_files(tmp_path / "out.safetensors", [file, file])
    written = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(written[name], value) for name, value in wide.items())


def test_an_expanded_tensor_that_would_take_all_memory_is_refused_for_what_it_is(tmp_path, little_memory):
    torch.save({"w": torch.ones(1).expand(2**40)}, tmp_path / "m")
    with pytest.raises(
        ValueError, match=r"4,398,046,511,104 bytes is an expanded view of 4: save it as contiguous\(\) makes it"
    ):
        uniform_soup([tmp_path / "m"])


def test_an_old_file_without_one_of_its_storages(tmp_path):
    file = tmp_path / "m"
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    key = re.search(rb"\]q\x00X(.)\0\0\0(\d+)q", whole, re.DOTALL)
    file.write_bytes(whole[: key.start(2)] + b"0" * len(key[2]) + whole[key.end(2) :])
    with pytest.raises(ValueError, match=r"nothing says how large storage 0+ is"):
        uniform_soup([file])


class Harmful:
    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(tmp_path, zipped):
    torch.save({"w": torch.ones(2), "x": Harmful()}, tmp_path / "m", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TypeError, match=r"'x' is posix\.abort"):
        uniform_soup([tmp_path / "m"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
            "names model-00002-of-00002.safetensors, which is not there",
        ),
        (
            lambda f: shutil.copy(f / "model-00001-of-00002.safetensors", f / "model-00002-of-00002.safetensors"),
            "what the index says",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "no weight_map that can be read"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'),
            "does not map names to files",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../m"}}'),
            "no name of a file beside it",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").unlink(),
            "holds 2 safetensors files and no model.safetensors.index.json",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, change, said):
    folder, _ = index_of_shards(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match="model") as caught:
        uniform_soup([folder])
    assert said in str(caught.value)
