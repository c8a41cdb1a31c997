"""What each process of `test_train.py` runs: ``lookaround train`` as torchrun starts it."""

import os
import signal

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lookaround.cli import main as cli
from lookaround.experiment.training import Training

METHODS = ["sgd", "lookaround:k=3,inner_state=interpolate,alpha=0.8", "lookaround+ema:k=3,overlap=2"]
METHODS += ["diloco+swa:norm_stats=reestimate,swa_start=0.5,k=3"]
WORDS = ["train", "--data", "digits", "--seeds", "0", "--epochs", "2", "--train-images", "200", "--width", "4"]
WORDS += ["--threads", "1", "--checkpoint-every", "2"]


def as_torchrun(rank: int, size: int, store) -> None:
    """The environment that torchrun gives, with the store of its agent."""
    inside = store
    while hasattr(inside, "underlying_store"):
        inside = inside.underlying_store
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(inside.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}


def train(rank: int, size: int, out: str, *more: str) -> int:
    return cli([*WORDS, "--methods", *METHODS, "--out", out, *more])


def interrupted(rank: int, size: int, out: str, *more: str) -> int:
    """Ctrl-C reaches the last process alone, in the middle of lookaround's run."""
    take = Training._train

    def taking(self, minibatches):
        take(self, minibatches)
        if self.label.startswith("lookaround:") and self.step == 3 and rank == size - 1:
            os.kill(os.getpid(), signal.SIGINT)

    Training._train = taking
    try:
        return train(rank, size, out, *more)
    finally:
        Training._train = take


def main(rank: int, most: int, store, folder: str) -> None:
    plain = (f"{folder}/one", f"{folder}/three")
    stopped = f"{folder}/stopped"
    among = (
        (1, train, 0, plain[0]),
        (3, train, 0, plain[1]),
        (3, interrupted, 130, stopped),
        (2, train, 2, stopped),  # unfinished, and not asked to go on
        (2, train, 0, stopped, "--resume"),
        (3, train, 2, f"{folder}/none", "--data", "nothing"),
        (4, train, 2, f"{folder}/none"),  # more processes than branches
    )
    for index, (few, action, code, *words) in enumerate(among):
        own = dist.PrefixStore(str(index), store)
        if rank < few:
            as_torchrun(rank, few, store)
            os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
            os.environ["TORCHELASTIC_RUN_ID"] = str(index)
            ended = action(rank, few, *words)
            print(f"{index}: process {rank} of {few} ended with {ended}, expected {code}\n", end="", flush=True)
            assert ended == code
            own.set(f"done {rank}", "")
        own.wait([f"done {other}" for other in range(few)])
    if rank == 0:
        for label in (method.replace(":", ",") for method in METHODS):
            exact = "reestimate" not in label  # moments are pooled in another order
            files = [load_file(f"{out}/{label}/seed-0/model.safetensors") for out in (*plain, stopped)]
            for name, value in files[0].items():
                for other in files:
                    torch.testing.assert_close(other[name], value, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-7)
