"""``lookaround train`` with a journal of what each process does and when, for those who kill it: what torchrun starts.

    torchrun --standalone --nproc-per-node 2 --max-restarts 100 trains_on.py FOLDER EVERY

Steps are counted over all runs of the experiment, which is in FOLDER/out.
"""

import os
import sys
from pathlib import Path

from goes_on import Journal

from lookaround.cli import main
from lookaround.experiment.training import Training

METHODS = ["lookaround:k=3,inner_state=interpolate,alpha=0.8", "diloco+ema:k=4"]
WORDS = ["train", "--data", "digits", "--seeds", "0", "--epochs", "50", "--evaluations", "4", "--train-images", "200"]
WORDS += ["--width", "4", "--threads", "1", "--methods", *METHODS]


def journalled(journal: Journal) -> None:
    """Have trainings say where they begin, and each of their steps."""
    train, take = Training.train, Training._train

    def training(self, stop):
        journal.write("begins", step_of(self))
        return train(self, stop)

    def taking(self, minibatches):
        take(self, minibatches)
        journal.write("took", step_of(self))

    Training.train, Training._train = training, taking


def step_of(training: Training) -> int:
    return METHODS.index(training.label) * training.total + training.step


if __name__ == "__main__":
    folder, every = Path(sys.argv[1]), sys.argv[2]
    journalled(Journal(folder, int(os.environ.get("RANK", "0"))))
    sys.exit(main([*WORDS, "--checkpoint-every", every, "--out", str(folder / "out")]))
