"""The command where the package was installed without its extra: torch is there, and nothing that the command needs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import lookaround
from lookaround.cli import _PACKAGES, COMMANDS

IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}
PROGRAM = """
import sys
from lookaround.cli import COMMANDS, main

assert [main([command]) for command in COMMANDS] == [2] * len(COMMANDS)
main(["--help"])
"""


def test_every_command_says_in_one_line_what_to_install(tmp_path):
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if entry.name.split(".")[0] not in _PACKAGES and entry.suffix != ".pth":
                (tmp_path / entry.name).symlink_to(entry)
    seen = os.pathsep.join([str(Path(lookaround.__file__).parents[1]), str(tmp_path)])
    # Without warnings: torch has one, at its import, wherever there is no NumPy.
    words = [sys.executable, "-S", "-W", "ignore", "-c", PROGRAM]
    ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": seen}, capture_output=True, text=True)
    said = (
        f"lookaround: the command needs packages that are not installed ({', '.join(_PACKAGES)}); "
        "add them with: pip install '.[train]'\n"
    )
    assert (ended.returncode, ended.stderr) == (0, said * len(COMMANDS))
    assert all(command in ended.stdout for command in COMMANDS)


def test_the_packages_are_those_of_the_extra():
    root = Path(__file__).parents[1]
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    names = [requirement.partition(">=")[0] for requirement in extra]
    assert sorted(IMPORTED_AS.get(name, name) for name in names) == sorted(_PACKAGES)
