"""Soups from files to files: block by block, in a few megabytes of memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import torch

from lookaround.averaging.soups.cook import Progress
from lookaround.averaging.soups.opening import as_list, open_files
from lookaround.averaging.soups.recipe import RecipeLine, warn_of_strangers, without_hashes
from lookaround.averaging.soups.shares import pulls, shares
from lookaround.averaging.soups.writing import Order, planned_files, write


@torch.no_grad()
def soup_files(
    out: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    hashes: bool = True,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> list[RecipeLine]:
    """Write the weighted mean of several models' files as a safetensors file, or as a folder of several with an index.

    The models are averaged block by block in at least float32, by a few threads; memory holds some megabytes, whatever
    the models' size. A tensor whose elements a ``torch.save`` file has in another order (channels last, transposed) is
    read whole. Every input is read once; one whose tensors come in another order than the first input's once more for
    its hash.

    The output appears only when it is complete, and may take the place of an input or of an earlier soup. Its metadata
    (or its index) lists file, weight and hash of each ingredient as JSON under ``lookaround.soup``, beside what all
    inputs' metadata agree on. Integers are copied from the first input; weights that are tied in all inputs are written
    once. A folder gets the first input's configuration and tokenizer too.

    Args:
        out: The safetensors file to write; or the folder, if it does not end in ``.safetensors`` and the first input is a
            folder or ``shard_size`` is given.
        inputs: Safetensors files, ``torch.save`` files of state dicts, or folders as Hugging Face's libraries write them:
            ``model.safetensors``, or several files with ``model.safetensors.index.json``. Files are known by what is in
            them. Nothing in them is run.
        weights: Their weights, scaled to add up to one; equal ones by default.
            :func:`~lookaround.averaging.snapshot_weights` has those of LAWA and other rules.
        hashes: List the hashes of the inputs' files: BLAKE3 where the ``blake3`` package is installed, or else SHA-256, which
            takes longer than the average.
        shard_size: Bytes of a folder's files at most; by default it is cut as the first input is.
        progress: Called now and then, from any thread, with the bytes that are written and those of the whole soup.

    Returns:
        The recipe, as in the metadata.

    Raises:
        ValueError: The inputs differ in names, shapes or dtypes (the message lists how), a file is damaged, numbers cannot
            be averaged, or the weights or ``shard_size`` do not fit.
        TypeError: ``inputs`` is one path, or a file holds something else than a state dict.
        OSError: A file cannot be read or written; what was at ``out`` is still there. A folder with something else in it
            than an earlier soup is not replaced.

    Warns:
        UserWarning: The inputs' metadata say that they were trained from different initial weights.

    >>> import tempfile, torch
    >>> from lookaround.averaging import soup_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for value in (1.0, 3.0):
    ...         torch.save({"w": torch.tensor([value])}, f"{folder}/{value}.pt")
    ...     recipe = soup_files(f"{folder}/soup.safetensors", [f"{folder}/1.0.pt", f"{folder}/3.0.pt"], weights=[3, 1])
    >>> [line.weight for line in recipe]
    [0.75, 0.25]

    References: Wortsman et al. 2022, "Model soups".
    """
    paths = as_list(inputs)
    portions = shares(weights, len(paths))
    with open_files(paths) as sources:
        warn_of_strangers(sources)
        recipe = without_hashes(sources, portions, room=hashes)
        used = [(s, w) for i, (s, w) in enumerate(zip(sources, portions, strict=True)) if hashes or w or not i]
        pull = pulls([weight for _, weight in used])
        order = Order([source for source, _ in used], recipe, dict.fromkeys(sources[0].layout, pull), hashes, {})
        return write(out, order, shard_size, progress)


@dataclass(frozen=True)
class Plan:
    """What :func:`soup_files` would write.

    Attributes:
        recipe: Without hashes.
        files: The files, with the bytes of the tensors in each.
    """

    recipe: list[RecipeLine]
    files: dict[str, int]


def plan_soup(
    out: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    weights: Sequence[float] | None = None,
    shard_size: int | None = None,
) -> Plan:
    """What :func:`soup_files` would write, after every check that it makes before it begins. No tensor is read.

    Args:
        out: As for :func:`soup_files`.
        inputs: Likewise.
        weights: Likewise.
        shard_size: Likewise.

    Raises:
        ValueError: As :func:`soup_files`.
        TypeError: Likewise.
        OSError: An input cannot be read.

    >>> import tempfile, torch
    >>> from lookaround.averaging import plan_soup
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"w": torch.zeros(1)}, f"{folder}/a.pt")
    ...     plan = plan_soup("soup.safetensors", [f"{folder}/a.pt", f"{folder}/a.pt"])
    >>> [line.weight for line in plan.recipe], plan.files
    ([0.5, 0.5], {'soup.safetensors': 4})
    """
    paths = as_list(inputs)
    portions = shares(weights, len(paths))
    with open_files(paths) as sources:
        warn_of_strangers(sources)
        return Plan(without_hashes(sources, portions, room=False), planned_files(out, sources, shard_size))
