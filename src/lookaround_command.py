"""Starts the ``lookaround`` command.

It stands beside the package because importing the package imports torch, which takes seconds: Ctrl-C in that time is one line too.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Runs the command line of this process and returns its exit status."""
    try:
        try:
            from lookaround.cli import main as run

            return run()
        finally:
            sys.stdout.flush()  # what is left fails here, if it does, and not at the interpreter's end
    except KeyboardInterrupt:
        print("lookaround: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _end_quietly()


def _end_quietly() -> int:
    """What read standard output, such as ``head``, has enough: the status of a program that SIGPIPE ends, and not a word."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
