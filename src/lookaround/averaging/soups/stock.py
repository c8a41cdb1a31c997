"""Model Stock: how far to go from the pre-trained weights to the mean of a few fine-tuned ones, told by the angle between them."""

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from os import PathLike

import torch
from torch import Tensor

from lookaround import tensors
from lookaround.averaging.soups.cook import Block, Progress, Scratch, blocks, in_threads, read
from lookaround.averaging.soups.dtypes import is_averaged
from lookaround.averaging.soups.opening import as_list, open_files
from lookaround.averaging.soups.recipe import RATIOS_KEY, RecipeLine, without_hashes
from lookaround.averaging.soups.shares import pulls
from lookaround.averaging.soups.sources import FileSource
from lookaround.averaging.soups.writing import Order, write


@torch.no_grad()
def model_stock_files(
    out: str | PathLike[str],
    start: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]],
    *,
    hashes: bool = True,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> list[RecipeLine]:
    """Write t · (mean of fine-tuned models) + (1 - t) · (the model that they were fine-tuned from), with t by Model Stock.

    For each tensor, t = N cos θ / (1 + (N - 1) cos θ), where θ is the angle between what fine-tuning added to two of the
    N models, and cos θ its mean over the pairs: the point of their plane that is nearest to the centre around which
    fine-tuned weights lie. Where fine-tuned models go ways of their own (cos θ ≤ 0) t is 0; where they agree, 1.

    Files are read twice, once for the angles and once for the mean. Integers are those of ``start``. The ratios stand in
    the metadata under ``lookaround.soup.ratios``; the rest is as for :func:`~lookaround.averaging.soup_files`.

    Args:
        out: As for :func:`~lookaround.averaging.soup_files`.
        start: The file or folder of the model that was fine-tuned.
        inputs: Those of the fine-tuned models, at least two.
        hashes: As for :func:`~lookaround.averaging.soup_files`.
        shard_size: Likewise.
        progress: Likewise; it is told of the second reading.

    Returns:
        The recipe, ``start`` first. Weights are means over the elements that are averaged.

    Raises:
        ValueError: There are fewer than two inputs, they do not fit ``start`` or each other, a file is damaged, or a weight is
            not finite.
        TypeError: ``inputs`` is one path, or a file holds something else than a state dict.
        OSError: A file cannot be read or written; what was at ``out`` is still there.

    >>> import tempfile, torch
    >>> from lookaround.averaging import model_stock_files
    >>> points = {"start": [0.0, 0.0], "a": [2.0, 0.0], "b": [1.0, 3**0.5]}  # 60° apart: t = 2 · ½ / (1 + ½)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, point in points.items():
    ...         torch.save({"w": torch.tensor(point)}, f"{folder}/{name}")
    ...     recipe = model_stock_files(f"{folder}/out.safetensors", f"{folder}/start", [f"{folder}/a", f"{folder}/b"])
    >>> [round(line.weight, 6) for line in recipe]
    [0.333333, 0.333333, 0.333333]

    References: Jang et al. 2024 (arXiv 2403.19522), "Model Stock: All we need is just a few fine-tuned models", section 4.
    """
    paths = as_list(inputs)
    if len(paths) < 2:
        raise ValueError(
            f"Model Stock goes by the angle between fine-tuned models: it needs at least 2, got {len(paths)}"
        )
    with open_files([start, *paths]) as sources:
        ratios = {name: _checked_ratio(name, products) for name, products in inner_products(sources).items()}
        count = len(paths)
        weights = {name: _weights(ratios.get(name, 0.0), count) for name in sources[0].layout}
        whole = _weights(_mean_ratio(ratios, sources[0]), count)
        recipe = without_hashes(sources, whole, room=hashes)
        pull = {name: pulls(portions) for name, portions in weights.items()}
        return write(out, Order(sources, recipe, pull, hashes, {RATIOS_KEY: json.dumps(ratios)}), shard_size, progress)


def _weights(ratio: float, count: int) -> list[float]:
    return [1 - ratio, *[ratio / count] * count]


def _mean_ratio(ratios: Mapping[str, float], source: FileSource) -> float:
    sizes = {name: math.prod(source.layout[name][1]) for name in ratios}
    total = sum(sizes.values())
    return sum(ratios[name] * size for name, size in sizes.items()) / total if total else 0.0


def _checked_ratio(name: str, products: Tensor) -> float:
    if not products.isfinite().all():
        raise ValueError(
            f"{name!r} holds numbers that are not finite in one of the models, so there is no angle between them"
        )
    return ratio(products)


def ratio(products: Tensor) -> float:
    """t of Model Stock, from the inner products of what fine-tuning added to each of N models, (N, N).

    Where it added something to none or one of them, their angle counts as none or a right one.

    >>> import torch
    >>> from lookaround.averaging.soups.stock import ratio
    >>> ratio(torch.tensor([[4.0, 2.0], [2.0, 4.0]])), ratio(torch.eye(3)), ratio(torch.ones(2, 2))
    (0.666..., 0.0, 1.0)
    """
    count = len(products)
    lengths = products.diagonal().sqrt()
    if not lengths.any():
        return 1.0
    cosines = (products / lengths.outer(lengths)).nan_to_num(0.0, 0.0, 0.0)
    between = [float(cosines[i, j]) for i in range(count) for j in range(i)]
    cosine = min(max(math.fsum(between) / len(between), 0.0), 1.0)
    return count * cosine / (1 + (count - 1) * cosine)


def inner_products(sources: Sequence[FileSource]) -> dict[str, Tensor]:
    """For each tensor that is averaged, the inner products of the differences of all sources but the first from the first.

    They are formed block by block in float64.
    """
    first, count = sources[0], len(sources) - 1
    names = [name for name in first.order() if is_averaged(first.layout[name][0])]
    found = {name: torch.zeros(count, count, dtype=torch.float64) for name in names}
    lock = threading.Lock()

    def work(following: Callable[[], Block | None]) -> None:
        scratch, zero = Scratch(), Scratch()
        while block := following():
            start, _ = read(first, block, zero)
            rows = torch.stack([_difference(read(source, block, scratch)[0], start) for source in sources[1:]])
            products = rows @ rows.T
            with lock:
                found[block[0]] += products

    for file in first.files:
        in_threads(work, blocks([name for name in names if first.place(name)[0] is file], sources), sources)
        for source in sources:
            source.rest()
    return found


def _difference(values: Tensor, start: Tensor) -> Tensor:
    wide = torch.complex128 if values.is_complex() else torch.float64
    return tensors.local(values.to(wide) - start.to(wide)).flatten()
