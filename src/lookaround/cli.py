"""The ``lookaround`` command: parses, calls, prints."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import NoReturn

_FAILURE, _USAGE = 1, 2
# What `pip install '.[train]'` adds, by the names under which it is imported.
_PACKAGES = (
    "PIL",
    "blake3",
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
_SMALLER = "nothing written before is lost: make batches, images or the network smaller, or free some memory, and try again with"
_Run = Callable[[Sequence[str]], None]


class _Parser(argparse.ArgumentParser):
    """Says in one line what cannot be used."""

    def error(self, message: str) -> NoReturn:
        self.exit(_USAGE, f"lookaround: {message}; see lookaround --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after ``lookaround``; by default those of the process.

    Returns:
        The exit status: 0, 2 for something that the user has to change, 128 + the signal's number after an
        interruption, 1 for everything else that went wrong. A failure is one line on standard error.

    Raises:
        BrokenPipeError: where nobody reads standard output any longer.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="lookaround", description="Weight averaging during training.")
    parser.add_argument("--version", action="version", version=f"lookaround {version('lookaround')}")
    names = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name, command in COMMANDS.items():
        names.add_parser(name, help=command.summary, add_help=False)
    command = COMMANDS[parser.parse_args(words[:1]).command]
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        what = f"the command needs packages that are not installed ({', '.join(missing)})"
        return _fail(f"{what}; add them with: pip install '.[train]'", _USAGE)
    _show_progress()
    return _guarded(command, words)


def _show_progress() -> None:
    """What the libraries have to say while something takes long goes to standard error."""
    log = logging.getLogger("lookaround")
    log.handlers = [logging.StreamHandler()]
    log.setLevel(logging.INFO)


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
        if isinstance(error, BrokenPipeError) and _unread():
            raise  # to what began this process, which ends it without a word
        return _fail(_failed_write(error, command.resuming(words)), _FAILURE)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _fail(f"out of memory: {_needed(error)}; {_SMALLER}: {command.resuming(words)}", _FAILURE)
    return 0


def _unread() -> bool:
    """Whether standard output is a pipe that nobody reads any longer."""
    look = select.poll()
    try:
        look.register(sys.stdout.fileno(), 0)
    except OSError:  # it is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in look.poll(0))


def _is_out_of_memory(error: Exception) -> bool:
    """Of the processor or of an accelerator; torch has no exception of its own for the former."""
    from torch import OutOfMemoryError

    return isinstance(error, (MemoryError, OutOfMemoryError)) or "can't allocate memory" in str(error)


def _needed(error: Exception) -> str:
    """How much was asked for, where the message says so."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    return f"{found[1]} could not be had" if found else "some could not be had"


def _failed_write(error: OSError, resuming: str) -> str:
    where = f": {error.filename}" if error.filename else ""
    what = f"{error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what += f"; nothing written before is lost: free some space and go on with: {resuming}"
    return what


def _fail(message: str, status: int) -> int:
    if int(os.environ.get("RANK", "0")):  # of several processes the first one says what went wrong everywhere
        return status
    print(f"lookaround: {' '.join(message.split())}", file=sys.stderr)
    return status


def _train(words: Sequence[str]) -> None:
    from lookaround.commands.train import train

    train(words)


def _tune(words: Sequence[str]) -> None:
    from lookaround.commands.tune import tune

    tune(words)


def _methods(words: Sequence[str]) -> None:
    from lookaround.commands.methods import methods

    methods(words)


def _status(words: Sequence[str]) -> None:
    from lookaround.commands.status import status

    status(words)


def _recipes(words: Sequence[str]) -> None:
    from lookaround.commands.recipes import recipes

    recipes(words)


def _run_recipe(words: Sequence[str]) -> None:
    from lookaround.commands.recipes import run

    run(words)


def _landscape(words: Sequence[str]) -> None:
    from lookaround.commands.landscape import landscape

    landscape(words)


def _theory(words: Sequence[str]) -> None:
    from lookaround.commands.theory import theory

    theory(words)


def _compare(words: Sequence[str]) -> None:
    from lookaround.commands.compare import compare_command

    compare_command(words)


def _evaluate(words: Sequence[str]) -> None:
    from lookaround.commands.evaluate import evaluate

    evaluate(words)


def _predict(words: Sequence[str]) -> None:
    from lookaround.commands.predict import predict

    predict(words)


def _export(words: Sequence[str]) -> None:
    from lookaround.commands.export import export

    export(words)


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
    "train": Command("train and compare methods on a task, at equal budget", _train, "--resume"),
    "tune": Command("choose every method's settings with equal effort, then compare", _tune, "--resume"),
    "methods": Command("list the methods and their settings", _methods),
    "status": Command("say which runs of an experiment are finished", _status),
    "recipes": Command("list the papers' tables and figures, or show one whole", _recipes),
    "run": Command("compute a table or figure of a paper, and compare", _run_recipe, "--resume"),
    "compare": Command("put experiments on one task side by side, paired by seed", _compare),
    "evaluate": Command("measure finished networks, their calibration included", _evaluate),
    "predict": Command("classify images, translate sentences, score text", _predict),
    "export": Command("write a network as a file that runs without this package", _export),
    "soup": Command("average finished models' weights into one file", _soup),
    "landscape": Command("draw loss and accuracy on planes, lines and inside rounds", _landscape),
    "theory": Command("draw the papers' figures on quadratics; advise k, alpha and d for a run", _theory),
}
