"""What an optimizer needs of other processes: who holds which branch, who takes part in an average, and the mean over all branches."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from operator import and_

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from lookaround.distributed import wire as wires
from lookaround.distributed.exchange import Bucket, Exchange
from lookaround.distributed.placement import BRANCH, place
from lookaround.distributed.roll_call import RollCall
from lookaround.tensors import Tensors, blocks, local, wide_dtype

Block = tuple[list[Tensor], ...]

_BITS = 62

# Elements of a bucket: two messages of each cost the processor the same whatever their size, which a cache's worth is too small for.
_MESSAGE = 2**20


class Rows:
    """The rows of processes that d branches are shared out to, as one of them sees it.

    Args:
        mesh: with a dimension named "branch": a process holds the branches of its row.
        branches: d, at least the rows.
        wire: how weights travel: ``"exact"``, ``"bfloat16"`` or ``"int8"``; the last two as displacements with error feedback.
        time_limit: how long an average waits for a process.
        apart: talk in a process group of their own, made here by all processes of a column, so that a thread can do so while others use
            the mesh's.

    Raises:
        TypeError, ValueError: see `place`; an unknown wire; a limit that is not positive.
    """

    def __init__(
        self,
        mesh: DeviceMesh,
        branches: int,
        *,
        wire: wires.Format = "exact",
        time_limit: timedelta = timedelta(minutes=10),
        apart: bool = False,
    ) -> None:
        self.placement = place(mesh, branches)
        self._wire = wires.by_name(wire)
        if time_limit <= timedelta(0):
            raise ValueError(f"time_limit has to be positive, got {time_limit}")
        self._group = _twin(mesh.get_group(BRANCH)) if apart else mesh.get_group(BRANCH)
        self._device = torch.device(mesh.device_type)
        self._exact = Exchange(self._group, wires.by_name("exact"), time_limit)
        self._lossy = Exchange(self._group, self._wire, time_limit)
        self._calls = RollCall(self._group, time_limit) if self.placement.rows > 1 else None

    @property
    def branches(self) -> int:
        """The number of branches, d."""
        return self.placement.branches

    @property
    def local(self) -> range:
        """The branches that this process holds."""
        return self.placement.local

    @property
    def exact(self) -> bool:
        """Whether what is sent arrives as it is. If not, `means` wants a common start and what was lost; without them it sends exactly."""
        return self._wire.exact

    @property
    def sent(self) -> int:
        """Bytes of numbers that this process has sent so far."""
        return self._exact.sent + self._lossy.sent

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Be together with one process of every row; ``what`` is done is named in errors.

        Raises:
            LostRankError: naming the ranks that do not come within the time limit, or leave in the middle.
        """
        if self._calls is None:
            yield
            return
        with self._calls.meeting(what):
            yield

    def share(self, numbers: Sequence[int]) -> list[list[int]]:
        """What each row says, as many integers from each. One small collective; it waits for an accelerator once."""
        if self.placement.rows == 1:
            return [list(numbers)]
        mine = torch.tensor([*numbers], dtype=torch.int64, device=self._device)
        all_of_them = torch.empty(self.placement.rows * len(mine), dtype=torch.int64, device=self._device)
        dist.all_gather_into_tensor(all_of_them, mine, group=self._group)
        answer: list[list[int]] = all_of_them.view(self.placement.rows, -1).tolist()
        return answer

    def agree(
        self, round_number: int, tensors: Tensors, well: Sequence[bool], skipped: int = 0, k: int = 0
    ) -> tuple[list[bool], int]:
        """Of all d branches, which are well, given those here; and that all rows are about to average the same thing.

        Args:
            round_number, tensors: in which rows have to agree.
            well: of the branches here.
            skipped: a bit for each step of the round that no branch here has made.
            k: steps of a round.

        Returns:
            Of all branches, which are well, and how many of the k steps no branch of any row has made.

        Raises:
            ValueError: rows differ in the round they are in or in the tensors they hold.
        """
        most = max(self.placement.counts)
        flags = [*map(int, well)] + [0] * (most - len(well))
        shapes = zlib.crc32(repr([(tuple(local(t).shape), t.dtype) for t in tensors]).encode())
        said = self.share([round_number, shapes, *flags, *_words(skipped, k)])
        for place_in, what in enumerate(("the round", "the tensors")):
            values = [row[place_in] for row in said]
            if len(set(values)) > 1:
                raise ValueError(
                    f"the rows of the mesh differ in {what} they are about to average ({values} from row 0 on): build the same model "
                    "and optimizer, load the same checkpoint and take the same steps on all of them"
                )
        everywhere = [
            bool(flag) for row, of in zip(said, self.placement.counts, strict=True) for flag in row[2 : 2 + of]
        ]
        by_all = (reduce(and_, words) for words in zip(*(row[2 + most :] for row in said), strict=True))
        return everywhere, sum(map(int.bit_count, by_all))

    @torch.no_grad()
    def means(
        self,
        branches: Sequence[Tensors],
        taking_part: Sequence[bool],
        *beside: Tensors,
        start: Tensors | None = None,
        lost: Tensors | None = None,
    ) -> Iterator[tuple[list[Tensor], Block]]:
        """The mean over all branches that take part, on every row, block by block.

        Yields (mean, (lists of ``branches`` …, lists ``beside`` …)): views of the same elements; the mean is in the averaging dtype and
        the caller's to keep or change. Nothing is written but ``lost``. The bits are the same on all rows, and those of one process
        that holds all branches, where no row but the first has more than one.

        Args:
            branches: the tensors of each local branch; DTensors stand for their local shards.
            taking_part: of all d branches; at least one.
            beside: further lists of which views are wanted.
            start: weights all branches have come from, on which all rows agree, in the averaging dtype. A wire that is not exact
                sends the way from there; an exact one leaves it aside. Without it everything is sent exactly.
            lost: what that wire has lost so far, in the averaging dtype, zero at first; changed in place.
        """
        lossy = not self.exact and start is not None and lost is not None
        exchange = self._lossy if lossy else self._exact
        lists = [*branches, *beside, *((start, lost) if start is not None and lost is not None and lossy else ())]
        mine = [taking_part[branch] for branch in self.local]
        weights = [sum(taking_part[b] for b in self.placement.of(row)) for row in range(self.placement.rows)]
        waiting: list[tuple[Block, list[Tensor]]] = []

        def packed() -> Iterator[Bucket]:
            for block in blocks(*lists, least=_MESSAGE):
                bucket, views = _pack(exchange, block, mine)
                waiting.append((block, views))
                yield bucket

        for bucket in exchange.means(packed(), weights):
            block, views = waiting.pop(0)
            if bucket.lost is not None:
                torch._foreach_add_(views, block[-2])
                torch._foreach_copy_(block[-1], _views(bucket.lost, block[-1]))
            yield views, block[: len(branches) + len(beside)]

    @torch.no_grad()
    def copy_(self, tensors: Tensors, branch: int) -> None:
        """Write what the row that holds ``branch`` has into ``tensors`` on all rows: integer buffers, say. One collective a block."""
        if self.placement.rows == 1:
            return
        source = self.placement.row_of(branch)
        for (block,) in blocks(tensors, least=_MESSAGE):
            packed = torch.cat([t.reshape(-1) for t in block])
            dist.broadcast(packed.view(torch.uint8), group_src=source, group=self._group)
            if self.placement.row != source:
                torch._foreach_copy_(block, _views(packed, block))
            else:
                self._exact.sent += packed.nbytes * (self.placement.rows - 1)


def _twin(group: ProcessGroup) -> ProcessGroup:
    """Another group of the same processes, which nobody else knows of."""
    ranks = dist.get_process_group_ranks(group)
    made = dist.new_group(ranks, use_local_synchronization=True, group_desc="lookaround overlap")
    assert isinstance(made, ProcessGroup)
    return made


def _words(bits: int, count: int) -> list[int]:
    """So many bits at least, in numbers that a signed integer of 64 bits holds."""
    return [bits >> at & (1 << _BITS) - 1 for at in range(0, count, _BITS)]


def _pack(exchange: Exchange, block: Block, mine: Sequence[bool]) -> tuple[Bucket, list[Tensor]]:
    """The mean of the local branches that take part, from the common start where the wire asks for it, in a bucket."""
    first = block[0]
    bucket = exchange.bucket(sum(map(Tensor.numel, first)), wide_dtype(first[0].dtype), first[0].device)
    views = _views(bucket.values, first)
    members = [block[j] for j, takes_part in enumerate(mine) if takes_part]
    if not members:
        bucket.values.zero_()
    for j, branch in enumerate(members, start=1):
        if j == 1:
            torch._foreach_copy_(views, branch)
        else:
            torch._foreach_lerp_(views, [t.to(views[0].dtype) for t in branch], 1 / j)
    if bucket.lost is not None:
        torch._foreach_copy_(_views(bucket.lost, first), block[-1])
        if members:
            torch._foreach_sub_(views, block[-2])
    return bucket, views


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a flat bucket with the shapes of a list of tensors, one after the other."""
    sizes = [*map(Tensor.numel, like)]
    parts = flat.view(-1)[: sum(sizes)].split(sizes)
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]
