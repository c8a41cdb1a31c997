"""The ``lookaround`` command: parses, calls, prints."""

from __future__ import annotations

import argparse
import errno
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

_FAILURE, _USAGE = 1, 2
# What `pip install 'lookaround[train]'` adds, by the names under which it is imported.
_PACKAGES = (
    "PIL",
    "matplotlib",
    "numpy",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "torchvision",
    "tyro",
)
_Run = Callable[[Sequence[str]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after ``lookaround``; by default those of the process.

    Returns:
        The exit status: 0, 2 for something that the user has to change, 128 + the signal's number after an
        interruption, 1 for everything else that went wrong. A failure is one line on standard error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="lookaround", description="Weight averaging during training.")
    names = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.summary, add_help=False)
    command = COMMANDS[parser.parse_args(words[:1]).command]
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        what = f"the command needs packages that are not installed ({', '.join(missing)})"
        return _fail(f"{what}; add them with: pip install 'lookaround[train]'", _USAGE)
    return _guarded(command, words)


def _guarded(command: Command, words: list[str]) -> int:
    """Turns what a user can do something about into one line, and leaves the traceback to bugs."""
    from lookaround.experiment import DivergedError, InterruptedRunError, UsageError

    try:
        command.run(words[1:])
    except UsageError as error:
        return _fail(str(error), _USAGE)
    except DivergedError as error:
        return _fail(str(error), _FAILURE)
    except InterruptedRunError as error:
        return _fail(f"interrupted: {error}; go on with: {command.resuming(words)}", 128 + error.signal)
    except KeyboardInterrupt:
        return _fail(f"interrupted; go on with: {command.resuming(words)}", 128 + signal.SIGINT)
    except OSError as error:
        return _fail(_failed_write(error, command.resuming(words)), _FAILURE)
    return 0


def _failed_write(error: OSError, resuming: str) -> str:
    where = f": {error.filename}" if error.filename else ""
    what = f"{error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what += f"; nothing written before is lost: free some space and go on with: {resuming}"
    return what


def _fail(message: str, status: int) -> int:
    print(f"lookaround: {' '.join(message.split())}", file=sys.stderr)
    return status


def _train(words: Sequence[str]) -> None:
    from lookaround.commands.train import train

    train(words)


def _landscape(words: Sequence[str]) -> None:
    from lookaround.commands.landscape import landscape

    landscape(words)


def _theory(words: Sequence[str]) -> None:
    from lookaround.commands.theory import theory

    theory(words)


def _compare(words: Sequence[str]) -> None:
    from lookaround.commands.compare import compare_command

    compare_command(words)


def _soup(words: Sequence[str]) -> None:
    from lookaround.commands.soup import soup

    soup(words)


@dataclass(frozen=True)
class Command:
    """A subcommand: a line for the list of commands, what runs on the words after its name, and how it is gone on with.

    Attributes:
        summary: for the list of commands.
        run: takes the words after the name.
        resume: the word that an interrupted command needs to go on; the others go on, or start anew, as they are.
    """

    summary: str
    run: _Run
    resume: str | None = None

    def resuming(self, words: Sequence[str]) -> str:
        """The command line that goes on where this one stopped."""
        added = [] if self.resume is None or self.resume in words else [self.resume]
        return shlex.join(["lookaround", *words, *added])


COMMANDS = {
    "train": Command("train and compare methods on images, at equal budget", _train, "--resume"),
    "compare": Command("put experiments on one task side by side, paired by seed", _compare),
    "soup": Command("average finished models' weights into one file", _soup),
    "landscape": Command("draw loss and accuracy on planes, lines and inside rounds", _landscape),
    "theory": Command("draw the papers' figures on quadratics; advise k, alpha and d for a run", _theory),
}
