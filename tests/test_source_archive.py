"""What a source archive and a package index hold."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = shutil.ignore_patterns(".git", ".venv*", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
OUTPUT = {"runs", "build", "dist", "data"}  # of commands that are run in the repository's folder


def not_of_the_repository(folder: str, names: list[str]) -> set[str]:
    return set(MADE(folder, names)) | (OUTPUT & set(names) if Path(folder) == ROOT else set())


SHIPPED = ["src", "benchmarks", "docs", "recipes", "tests", ".ci/run", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md"]
SHIPPED += ["LICENSE", "LOG.md", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml", "setup.py"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, bytes]:
    """The files of a source archive, by their paths in the repository."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    shutil.copytree(ROOT, tree, ignore=not_of_the_repository)
    program = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    built = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    with tarfile.open(tree / "dist" / built.stdout.splitlines()[-1]) as file:
        members = [member for member in file.getmembers() if member.isfile()]
        return {m.name.partition("/")[2]: file.extractfile(m).read() for m in members}


def files_of(part: str) -> list[str]:
    path = ROOT / part
    inside = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return [str(p.relative_to(ROOT)) for p in inside if ".egg-info" not in str(p)]


def test_it_holds_what_the_repository_does(archive):
    expected = {name for part in SHIPPED for name in files_of(part)}
    made = {name for name in archive if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert set(archive) - made == expected


def test_a_package_index_shows_the_readme_without_a_broken_link(archive):
    described = message_from_bytes(archive["PKG-INFO"])
    assert described["Description-Content-Type"] == "text/markdown"
    assert described.get_all("Project-URL")
    text = described.get_payload(decode=True).decode()
    assert text.startswith("# lookaround\n")
    assert text.count("```") == (ROOT / "README.md").read_text(encoding="utf-8").count("```")
    prose = re.sub(r"(?s)```.*?```", "", text)
    assert [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if not target.startswith("https://")] == []


@pytest.mark.parametrize(
    ("repository", "shown"),
    [
        (None, "A LOG of it, b.py, [paper](https://arxiv.org/abs/1) [up](#top)  `x[i](y)`"),
        (
            "https://example.org/a",
            "A [LOG](https://example.org/a/blob/HEAD/LOG.md) of it, [b.py](https://example.org/a/blob/HEAD/docs/b.py), "
            "[paper](https://arxiv.org/abs/1) [up](#top) ![c](https://example.org/a/raw/HEAD/c.png) `x[i](y)`",
        ),
    ],
)
def test_links_to_files_lead_to_the_repository_where_its_address_is_known(repository, shown):
    spec = importlib.util.spec_from_file_location("setup_of_lookaround", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    text = "A [LOG](LOG.md) of it, [b.py](docs/b.py), [paper](https://arxiv.org/abs/1) [up](#top) ![c](c.png) `x[i](y)`"
    assert setup.described(text, repository) == shown
