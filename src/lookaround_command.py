"""Starts the ``lookaround`` command.

It stands beside the package because importing the package imports torch, which takes seconds: Ctrl-C in that time is one line too.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command line of this process and returns its exit status."""
    try:
        from lookaround.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("lookaround: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
