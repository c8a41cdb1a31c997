"""Seeds of independent random streams, each named by what it is for."""

from __future__ import annotations

import hashlib


def stream_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all of ``parts`` and on their order.

    Example:
        >>> from lookaround.tasks.streams import stream_seed
        >>> stream_seed(0, "order", 1) == stream_seed(0, "order", 2)
        False
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
