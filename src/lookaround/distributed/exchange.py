"""The mean over rows: one all-reduce in buckets, with the order of every sum fixed.

A bucket is cut into as many slices as there are rows. Every row sends slice r of its own to row r, which takes the mean of what it
gets, in the order of the rows, and sends it to all. That is the two halves of an all-reduce, with its
2 (R - 1) / R numbers sent by each of R rows for every number of the model, and three things that an all-reduce does not promise:

- the order of the additions is that of the rows, on every backend, and so is each bit of the result, the same on all rows;
- rows may weigh differently, and a number on which all rows agree stays as it is (the mean is the running one);
- what travels may be packed in fewer bits than what is added, as no link has to add.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from lookaround.distributed.wire import Wire

# Buckets whose slices are on their way to be averaged, and whose means are on their way back: links are busy while arithmetic is done.
_UNDER_WAY = 2
# Of our messages, beside those that a program sends in the same group.
_TAG = 0x6C6F6F6B
# The least limit that is one: none at all is zero.
_SOON = timedelta(milliseconds=1)


@dataclass
class Bucket:
    """Some consecutive numbers of the model.

    Attributes:
        values: ``(rows, numbers)`` in a floating dtype: this row's, padded and cut into slices; in the end the mean.
        lost: with a wire that is not exact, what this row's earlier sendings have lost, of the same shape, to be sent now; in the
            end what is lost now.
    """

    values: Tensor
    lost: Tensor | None = None

    @property
    def numbers(self) -> Tensor:
        """``values`` in a row, with the padding."""
        return self.values.view(-1)


class _Messages:
    """What is on its way to and from other rows, waited for as one."""

    def __init__(self, works: Sequence[Any]) -> None:
        self._works = works

    def wait(self, limit: timedelta) -> None:
        """Until all is done; or RuntimeError when it is too late, or another process is gone."""
        end = time.monotonic() + limit.total_seconds()
        for work in self._works:
            work.wait(max(timedelta(seconds=end - time.monotonic()), _SOON))


@dataclass
class _Sent:
    bucket: Bucket
    packed: Tensor
    work: Any


class Exchange:
    """Means over the rows of a process group.

    Args:
        group: one process of each row.
        wire: how numbers travel.
        limit: how long one bucket may take.

    Attributes:
        sent: bytes that this process has sent to others so far, of the numbers themselves (a link adds some percent of its own).
    """

    def __init__(self, group: ProcessGroup, wire: Wire, limit: timedelta) -> None:
        self._group, self._wire, self._limit = group, wire, limit
        self.rows, self.row = group.size(), dist.get_group_rank(group, dist.get_rank())
        self._gloo = group.name() == "gloo"
        self.sent = 0

    def bucket(self, numbers: int, dtype: torch.dtype, device: torch.device) -> Bucket:
        """An empty bucket with room for some numbers; the padding is zero."""
        in_slice = -(-numbers // (self.rows * self._wire.multiple)) * self._wire.multiple
        values = torch.empty(self.rows, in_slice, dtype=dtype, device=device)
        values.view(-1)[numbers:] = 0
        return Bucket(values, None if self._wire.exact else torch.zeros_like(values))

    @torch.no_grad()
    def means(self, buckets: Iterable[Bucket], weights: Sequence[float]) -> Iterator[Bucket]:
        """Σ weights[r] · values of row r / Σ weights, for one bucket after the other; a few of them are under way at a time.

        Args:
            buckets: as many, of the same sizes, on every row. They are used up.
            weights: of the rows, not negative and not all zero; what a row of weight zero holds is not used, not even where it is NaN.

        Raises:
            RuntimeError: from torch.distributed, where another process is gone or slower than the limit.
        """
        if self.rows == 1:
            yield from buckets
            return
        scattered: deque[_Sent] = deque()
        gathered: deque[_Sent] = deque()
        for bucket in buckets:
            scattered.append(self._scatter(bucket, taking_part=weights[self.row] > 0))
            if len(scattered) == _UNDER_WAY:
                gathered.append(self._gather(scattered.popleft(), weights))
            if len(gathered) == _UNDER_WAY:
                yield self._finish(gathered.popleft())
        gathered.extend(self._gather(sent, weights) for sent in scattered)
        while gathered:
            yield self._finish(gathered.popleft(), last=not gathered)

    def _scatter(self, bucket: Bucket, taking_part: bool) -> _Sent:
        """Send every row its slice."""
        data = self._encode(bucket, taking_part)
        received = torch.empty_like(data)
        self.sent += data.nbytes // self.rows * (self.rows - 1)
        return _Sent(bucket, received, self._to_each(data, received))

    def _to_each(self, data: Tensor, received: Tensor) -> Any:
        """Send slice r to row r. What comes from row r will be slice r; this row's own need not be there."""
        if self._gloo and data.device.type == "cpu":
            return self._messages(list(data), received)
        return dist.all_to_all_single(received.view(-1), data.view(-1), group=self._group, async_op=True)

    def _to_all(self, part: Tensor, received: Tensor) -> Any:
        """Send all rows the same. What comes from row r will be slice r."""
        if self._gloo and part.device.type == "cpu":
            received[self.row].copy_(part)
            return self._messages([part] * self.rows, received)
        return dist.all_gather_into_tensor(received.view(-1), part.view(-1), group=self._group, async_op=True)

    def _messages(self, parts: Sequence[Tensor], received: Tensor) -> "_Messages":
        """Send part r to row r, by gloo.

        Gloo sends what the other side has said that it is ready for, and that word waits behind all that goes the same way before it. Its
        own all-to-all begins to send first, so one direction of a link stands still until the other one is done (and its
        all-gather copies what comes twice more). Whoever is ready to receive first, and sends then, uses both at once.
        """
        others = [(self.row + i) % self.rows for i in range(1, self.rows)] if received.numel() else []
        works = [dist.irecv(received[r], group=self._group, group_src=r, tag=_TAG) for r in reversed(others)]
        works += [dist.isend(parts[r], group=self._group, group_dst=r, tag=_TAG) for r in others]
        return _Messages(works)

    def _encode(self, bucket: Bucket, taking_part: bool) -> Tensor:
        """What goes over the wire, with what was lost before; noting what is lost now. This row's own slice does not travel."""
        if bucket.lost is None or not taking_part:
            return self._wire.encode(bucket.values)
        bucket.values += bucket.lost
        data = self._wire.encode(bucket.values)
        torch.sub(bucket.values, self._wire.decode(data, bucket.values.dtype), out=bucket.lost)
        bucket.lost[self.row] = 0
        return data

    def _gather(self, sent: _Sent, weights: Sequence[float]) -> _Sent:
        """Take the mean of the slices that have come, and send it to all rows."""
        self._wait(sent.work)
        values, lost = sent.bucket.values, sent.bucket.lost
        slices = [*self._wire.decode(sent.packed, values.dtype)]
        slices[self.row] = values[self.row]
        mean = _running_mean(slices, weights)
        data = self._wire.encode(mean.unsqueeze(0))[0]
        if lost is not None and weights[self.row]:
            # What the mean loses is owed by the row that took it: as its own share of the next mean, it comes back whole.
            owed = mean - self._wire.decode(data.unsqueeze(0), values.dtype)[0]
            lost[self.row] = owed * (sum(weights) / weights[self.row])
        out = sent.packed if lost is not None else self._wire.encode(values)
        self.sent += data.nbytes * (self.rows - 1)
        return _Sent(sent.bucket, out, self._to_all(data, out))

    def _finish(self, sent: _Sent, last: bool = False) -> Bucket:
        self._wait(sent.work, last)
        if sent.bucket.lost is not None:
            sent.bucket.values.copy_(self._wire.decode(sent.packed, sent.bucket.values.dtype))
        return sent.bucket

    def _wait(self, work: Any, last: bool = False) -> None:
        """Until it is done, or too late. On an accelerator its stream waits; the process itself for the last one, which ends them all."""
        if last or self._gloo:
            work.wait(self._limit)
        else:
            work.wait()


def _running_mean(slices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """m ← m + w_r / (w_0 + … + w_r) (slice_r - m) over the rows with a weight: exact where they agree, and for one of them alone."""
    total, mean = 0.0, slices[0]
    for values, weight in zip(slices, weights, strict=True):
        if weight:
            total += weight
            mean = values if weight == total else torch.lerp(mean, values, weight / total)
    return mean
