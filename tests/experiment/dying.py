"""Runs `lookaround train` again and again, each time in a process of its own that dies by SIGKILL, until the experiment is finished.

A child is forked from a process that has imported everything and computed nothing: a death costs no interpreter's start.
"""

import os
import signal
import sys
import warnings

import matplotlib.figure  # noqa: F401 (the children need these)
import sklearn.datasets  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

from lookaround.cli import main
from lookaround.experiment.training import Training

# In the first minibatch, at an epoch's end before its record, and in the last part: each time the step's checkpoint is not yet written.
DEATHS = (1, 4, 7)


def dies(training: Training) -> bool:
    """Whether the run has come to a step where it has not died before; leaves a mark that now it has."""
    mark = training.folder / f"died-{training.step}"
    if training.step not in DEATHS or mark.exists():
        return False
    mark.touch()
    return True


def run_in_a_child(words: list[str], *, dying: bool) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    step = Training._train_minibatch

    def last_step(self, minibatch):
        step(self, minibatch)
        if dying and dies(self):
            os.kill(os.getpid(), signal.SIGKILL)

    Training._train_minibatch = last_step
    os._exit(main(words))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    whole, killed, *words = sys.argv[1:]
    assert run_in_a_child([*words, "--out", whole], dying=False) == 0
    deaths = 0
    while (ended := run_in_a_child([*words, "--out", killed, "--resume"], dying=True)) == -signal.SIGKILL:
        deaths += 1
    print(deaths, ended)
