"""A task trained once undisturbed, and once in processes that die by SIGKILL at random moments; prints the files in which the two differ.

    PYTHONPATH=tests:tests/experiment:tests/tasks python tests/tasks/killed_at_random.py FOLDER language|translation|fine_tuning KILLS

FOLDER must not exist. By the functions of tests/experiment/killed_at_random.py, and on the small data of test_tasks_killed.py.
"""

import importlib.util
import random
import signal
import sys
import time
import warnings
from pathlib import Path

METHODS = {"fine_tuning": ["sgd", "lookaround:k=2"]}


def processes():
    """The module of the same name beside the experiment's tests."""
    path = Path(__file__).parents[1] / "experiment" / "killed_at_random.py"
    spec = importlib.util.spec_from_file_location("processes_killed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    import test_killed
    import test_tasks_killed as tasks

    warnings.simplefilter("ignore")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    here, task, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (here / "data").mkdir(parents=True)
    words = ["train", "--resume", *getattr(tasks, task)(here / "data"), "--epochs", "2", "--checkpoint-every", "2"]
    words += ["--threads", "1", "--methods", *METHODS.get(task, ["adamw", "lookaround:k=2"]), "--out"]
    kill, started = processes(), time.monotonic()
    assert kill.run([*words, str(here / "whole")], None) == 0
    took = time.monotonic() - started
    died = kill.killed([*words, str(here / "killed")], kills, took, random.Random(1))
    print(f"{task}: {died} deaths, {took:.1f} s undisturbed;", test_killed.differences(here / "whole", here / "killed"))
