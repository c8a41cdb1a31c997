"""An experiment trained once undisturbed, and once in processes that die by SIGKILL when each run first comes to some steps.

    python tests/tasks/killed_at_steps.py WHOLE KILLED train WORD...

A child is forked from a process that has imported everything and computed nothing: a death costs no interpreter's start. Prints the
deaths, and the exit status of the last child.
"""

import os
import signal
import sys
import warnings

import torch._dynamo  # noqa: F401 (the children need these)

import lookaround.commands.train  # noqa: F401
from lookaround.cli import main
from lookaround.experiment.training import Training

# In the first minibatch, and later, among those of a round that branches take at once: each time before the step's own is written.
STEPS = (1, 5)


def dies(training: Training) -> bool:
    """Whether the run has come to a step where it has not died before; leaves a mark that now it has."""
    marks = [training.folder / f"died-{step}" for step in STEPS if training.step >= step]
    new = [mark for mark in marks if not mark.exists()]
    for mark in new:
        mark.touch()
    return bool(new)


def run(words: list[str], *, dying: bool) -> int:
    """The exit status of a child that runs the command."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    train = Training._train

    def last_step(self, minibatches):
        train(self, minibatches)
        if dying and dies(self):
            os.kill(os.getpid(), signal.SIGKILL)

    Training._train = last_step
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
    os._exit(main(words))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    whole, killed, *words = sys.argv[1:]
    assert run([*words, "--out", whole], dying=False) == 0
    deaths = 0
    while (ended := run([*words, "--out", killed, "--resume"], dying=True)) == -signal.SIGKILL:
        deaths += 1
    print(deaths, ended)
