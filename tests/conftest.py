"""Makes `reference` and `conformance` importable (pytest puts this folder on the path), and what the whole tree shares."""

import weakref
from collections.abc import Callable

import hypothesis
import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reference.tiny_experiment import digits, display, start  # noqa: F401  # fixtures

# Seeds are fixed everywhere, hypothesis's own too; machines differ in speed, so an example has no deadline.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")


class Allocations(TorchDispatchMode):
    """Counts the bytes of every new storage that operations make while it is active, and of those alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.largest = self.live = self.live_at_most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known:
                known.add(tensor.untyped_storage()._cdata)
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        self.total, self.largest = self.total + size, max(self.largest, size)
        self.live += size
        self.live_at_most = max(self.live_at_most, self.live)
        weakref.finalize(tensor, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live -= size


@pytest.fixture
def allocations() -> Callable[[], Allocations]:
    return Allocations
