"""Minibatches and random numbers that depend on seed, epoch, branch and step, and not on which process asks for them."""

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def keyed_seed(*parts: int | str | None) -> int:
    """A 63-bit seed that depends on all of ``parts`` and on their order, the same on every machine.

    >>> from lookaround.distributed import keyed_seed
    >>> keyed_seed(0, "order", 1) == keyed_seed(0, "order", 2)
    False
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def keyed_generator(seed: int, branch: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers for the augmentation of one branch's minibatch, keyed by (seed, branch, step) alone.

    Whichever process holds the branch, and wherever a run was resumed, the same numbers come. Where several processes share a branch's
    minibatch draw for all of it and use this process's part, so that their number does not matter either.

    Args:
        seed: of the run.
        branch: from 0.
        step: steps of every branch so far, in the whole run.
        device: of the generator. A CPU's and a CUDA device's numbers differ for the same seed.

    Example:
        >>> from lookaround.distributed import keyed_generator
        >>> import torch
        >>> crops = torch.randint(4, (8, 2), generator=keyed_generator(seed=0, branch=1, step=7))
        >>> again = torch.randint(4, (8, 2), generator=keyed_generator(seed=0, branch=1, step=7))
        >>> torch.equal(crops, again)
        True
    """
    return torch.Generator(device).manual_seed(keyed_seed(seed, "augmentation", branch, step))


class BranchBatches(Sampler[list[int]]):
    """The minibatches of a branch, shuffled anew each epoch by (seed, epoch, branch): a ``batch_sampler`` for a DataLoader.

    With ``branch=None`` all branches see the same minibatches, as Algorithm 1 says; with a branch's number it draws from an order of its
    own, as the authors' code does. Samples left over after an epoch's last full minibatch are skipped in that epoch, so that
    all branches take equally many steps.

    Args:
        samples: of the data set.
        batch_size: of a branch, over all the processes that share it.
        seed: of the run.
        branch: from 0, or None for an order that all branches share.
        part: of the processes that share a branch, which this one is, and
        parts: how many they are: each gets ``batch_size / parts`` samples of every minibatch, so DDP's or FSDP2's mean over them is the
            mean over the minibatch. Their number does not change what the minibatch is.

    Raises:
        ValueError: no minibatch, a minibatch that the parts cannot share evenly, a part that there is not.

    Example:
        >>> from lookaround.distributed import BranchBatches
        >>> from torch.utils.data import DataLoader
        >>> batches = BranchBatches(10, 4, seed=0, branch=1)
        >>> batches.set_epoch(3)
        >>> loader = DataLoader(range(10), batch_sampler=batches)
        >>> [len(batch) for batch in loader]
        [4, 4]
    """

    def __init__(
        self, samples: int, batch_size: int, *, seed: int, branch: int | None = None, part: int = 0, parts: int = 1
    ) -> None:
        if not 1 <= batch_size <= samples:
            raise ValueError(f"batch_size has to be between 1 and the {samples} samples, got {batch_size}")
        if parts < 1 or batch_size % parts:
            raise ValueError(
                f"{parts} processes cannot share minibatches of {batch_size} evenly: choose a batch_size that {parts} divides"
            )
        if not 0 <= part < parts:
            raise ValueError(f"part has to be between 0 and {parts - 1}, got {part}")
        self.samples, self.batch_size = samples, batch_size
        self.seed, self.branch = seed, branch
        self.part, self.parts = part, parts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch, counted from 0: to be called before each, as with torch's DistributedSampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Minibatches in an epoch."""
        return self.samples // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(keyed_seed(self.seed, "order", self.epoch, self.branch))
        order = torch.randperm(self.samples, generator=generator)
        share = self.batch_size // self.parts
        for index in range(len(self)):
            begin = index * self.batch_size + self.part * share
            yield order[begin : begin + share].tolist()
