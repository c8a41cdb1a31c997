"""An experiment, its two extensions and its comparison, run again and again in processes that die by SIGKILL at random moments.

    python tests/experiment/killed_at_random.py WHOLE KILLED KILLS

The same commands run undisturbed into WHOLE and, until so many have died, into KILLED. A child is forked from a process that has
imported everything and computed nothing: a death costs no interpreter's start. Prints the deaths and when they came.
"""

import os
import random
import signal
import sys
import time
import warnings

import matplotlib.figure  # noqa: F401 (the children need these)
import sklearn.datasets  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import lookaround.commands.compare
import lookaround.commands.train  # noqa: F401
from lookaround.cli import main

THREE = ["lookaround:k=3,batch=16", "lookaround:k=3,start=0.5,batch=16", "lookaround:k=2,batch=1/d,lr=0.05"]
RATES = ["sgd:lr=0.05,batch=16", "sgd:lr=0.1,batch=16", "sgd:lr=0.2,batch=16"]
BEGIN = [
    "--train-images",
    "64",
    "--test-images",
    "30",
    "--width",
    "4",
    "--device",
    "cpu",
    "--budget",
    "768",
    "--evaluations",
    "3",
]
BEGIN += ["--checkpoint-every", "1", "--plain", "--methods", *THREE, *RATES, "--seeds", "0", "1"]


def stages(folder: str) -> list[list[str]]:
    train = ["train", "--out", f"{folder}/experiment", "--resume"]
    return [
        [*train, *BEGIN],
        [*train, "--add-seeds", "7"],
        [*train, "--add-methods", "lookahead+ema:k=2,decay=0.9,batch=16"],
        ["compare", f"{folder}/experiment", "--out", f"{folder}/compared"],
    ]


def run(words: list[str], seconds: float | None) -> int:
    """The exit status of a child that runs the command; it is killed after so many seconds, if it lives that long."""
    while signal.sigtimedwait([signal.SIGCHLD], 0) is not None:
        pass  # what is pending is of children that are gone
    child = os.fork()
    if not child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        os._exit(main(words))
    if seconds is not None and signal.sigtimedwait([signal.SIGCHLD], seconds) is None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(words: list[str], most: int, whole: float, chance: random.Random) -> int:
    """Deaths until the command ended well; each after up to a part of what it takes undisturbed, so that most come before the end."""
    deaths = 0
    while True:
        ended = run(words, chance.uniform(0, whole * 1.5 / max(most, 2)) if deaths < most else None)
        if ended != -signal.SIGKILL:
            assert ended == 0, (words, ended)
            return deaths
        deaths += 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    whole, other, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
    chance, total = random.Random(0), 0
    shares = (0.6, 0.2, 0.15, 0.05)
    for words, disturbed, share in zip(stages(whole), stages(other), shares, strict=True):
        started = time.monotonic()
        assert run(words, None) == 0
        took = time.monotonic() - started
        died = killed(disturbed, max(1, round(share * kills)), took, chance)
        print(f"{died} deaths in {disturbed[0]} {disturbed[-2]}, which takes {took:.1f} s undisturbed", flush=True)
        total += died
    print(total)
