"""Run the optimizer tests of timm or pytorch_optimizer with every optimizer wrapped, and list what fails that does not fail without.

    python tests/peers/run.py timm path/to/checkout
    python tests/peers/run.py pytorch_optimizer path/to/checkout --ways "lookaround, passes"

The checkout is a source tree of theirs with its tests (the source distribution has them); the interpreter has torch, lookaround, pytest,
the library's own dependencies and what torch's testing module asks for (expecttest). Nothing of theirs is changed.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from wrapped import WAYS

TESTS = {"timm": ["tests/test_optim.py"], "pytorch_optimizer": ["tests"]}
# Of theirs: coverage options of a plugin that is not needed here.
OPTIONS = ["-v", "-p", "no:cacheprovider", "-p", "no:doctest", "-rfE", "--tb=line", "-o", "addopts=", "-W", "ignore"]
# Of two processes one is started anew and not wrapped: they would take different numbers of steps, and wait for each other's collectives.
NOT_WRAPPED = {"timm": [], "pytorch_optimizer": ["tests/optimizers/test_muon.py::TestMuon::test_sharded_updates"]}
HERE = Path(__file__).parent


def outcomes(library: str, checkout: Path, way: str | None, more: list[str]) -> tuple[dict[str, str], str]:
    """The message of each test that fails, by its name, and pytest's last line; what pytest prints goes to stderr as it comes."""
    environment = {k: v for k, v in os.environ.items() if k != "LOOKAROUND_WRAP"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    plugin = []
    if way is not None:
        environment |= {"LOOKAROUND_WRAP": way, "LOOKAROUND_PEER": library}
        plugin = ["-p", "wrapped", *(f"--deselect={test}" for test in NOT_WRAPPED[library])]
    command = [sys.executable, "-m", "pytest", *plugin, *OPTIONS, *more, *TESTS[library]]
    printed = []
    with subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or []:
            printed.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if tests.returncode not in (0, 1):
        raise SystemExit(
            f"the tests of {library} ({way or 'not wrapped'}) died with status {tests.returncode}: see what they have printed"
        )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+(?:\[.*?\])?)(?: - (.*))?$", "".join(printed), flags=re.MULTILINE)
    return dict(failed), printed[-1].strip()


def report(failed: dict[str, str]) -> None:
    """The failures, by message."""
    reasons = defaultdict(list)
    for test, message in failed.items():
        reasons[message].append(test)
    for message, tests in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"    {len(tests)} x {message}")
        for test in tests:
            print(f"        {test}")


def main() -> None:
    """Run without a wrapper, then in each way, and print what only fails there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=TESTS)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--pytest", nargs=argparse.REMAINDER, default=[], help="further arguments of pytest, last of all"
    )
    arguments = parser.parse_args()
    without, last = outcomes(arguments.library, arguments.checkout, None, arguments.pytest)
    print(f"{arguments.library}, not wrapped: {last}")
    report(without)
    for way in arguments.ways:
        failed, last = outcomes(arguments.library, arguments.checkout, way, arguments.pytest)
        only = {test: message for test, message in failed.items() if test not in without}
        print(f"{arguments.library}, {way}: {last}; {len(only)} fail only so", flush=True)
        report(only)


if __name__ == "__main__":
    main()
