"""What is wrong with data."""

from __future__ import annotations

from lookaround.errors import UsageError


class DataError(UsageError):
    """Images that cannot be loaded; the message is one line that names the path or the value at fault."""
