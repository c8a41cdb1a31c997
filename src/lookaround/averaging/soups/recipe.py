"""What a soup is made of, and what it says of that: its recipe, and a warning where its ingredients have nothing in common."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lookaround.averaging.soups.hashing import unknown
from lookaround.averaging.soups.sources import FileSource, Source

METADATA_KEY = "lookaround.soup"
"""Where a soup lists its ingredients: JSON with a list of objects with file, weight and hashes."""
RATIOS_KEY = "lookaround.soup.ratios"
"""Where a Model Stock lists the share of the fine-tuned models in each tensor: a JSON object."""

# Where networks say what they were trained from: a digest of the initial weights, or at least the seed they were drawn with.
_START, _SEED = "lookaround.start", "lookaround.seed"


@dataclass(frozen=True)
class RecipeLine:
    """One line of a soup's recipe.

    Attributes:
        file: The file or folder, as it was given.
        weight: Its part of the soup; all of them add up to one. Where it differs from tensor to tensor, the mean over elements.
        hashes: For each file read, by its name, its hash: ``"blake3:…"`` or ``"sha256:…"``; none if they were not asked for.
    """

    file: str
    weight: float
    hashes: Mapping[str, str] = field(default_factory=dict)


def as_json(recipe: Sequence[RecipeLine]) -> str:
    """The recipe as it stands in a file.

    >>> from lookaround.averaging.soups.recipe import RecipeLine, as_json
    >>> as_json([RecipeLine("a.pt", 0.5, {"a.pt": "sha256:00"})])
    '[{"file": "a.pt", "weight": 0.5, "hashes": {"a.pt": "sha256:00"}}]'
    """
    return json.dumps([vars(line) for line in recipe])


def without_hashes(sources: Sequence[FileSource], weights: Sequence[float], *, room: bool) -> list[RecipeLine]:
    """The recipe before anything is read; with ``room``, with something as long as the hashes in their places."""
    names = [[_name(file.path) for file in source.files] if room else [] for source in sources]
    return [
        RecipeLine(source.name, weight, dict.fromkeys(files, unknown()))
        for source, weight, files in zip(sources, weights, names, strict=True)
    ]


def with_hashes(sources: Sequence[FileSource], recipe: Sequence[RecipeLine]) -> list[RecipeLine]:
    """The recipe with the hashes of all files, of which what has not been hashed on the way is read now."""
    hashes = [{_name(file.path): file.digest() for file in source.files} for source in sources]
    return [RecipeLine(line.file, line.weight, found) for line, found in zip(recipe, hashes, strict=True)]


def _name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def common_metadata(sources: Sequence[Source]) -> dict[str, str]:
    """What all ingredients' metadata agree on, but for what is no longer true of their mean."""
    common = set.intersection(*(set(source.metadata.items()) for source in sources))
    return {key: text for key, text in sorted(common) if key not in (METADATA_KEY, RATIOS_KEY, "format")}


def warn_of_strangers(sources: Sequence[Source]) -> None:
    """Warn if the ingredients' metadata say that they were trained from different initial weights."""
    starts = [_start(source.metadata) for source in sources]
    known = {start: source.name for start, source in zip(starts, sources, strict=True) if start is not None}
    if len(known) > 1:
        listed = ", ".join(f"{name} ({start})" for start, name in list(known.items())[:3])
        listed += f" and {len(known) - 3} more" if len(known) > 3 else ""
        warnings.warn(
            f"these models did not start from common weights: {listed}; the mean of models of different initial weights is "
            f"mostly worth nothing: average runs that part from one start, such as fine-tuned ones",
            stacklevel=4,
        )


def _start(metadata: Mapping[str, Any]) -> str | None:
    if _START in metadata:
        return f"start {metadata[_START]}"
    return f"seed {metadata[_SEED]}" if _SEED in metadata else None
