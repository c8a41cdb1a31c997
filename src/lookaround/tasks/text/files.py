"""Text files, one sentence or paragraph a line; whatever is wrong with one is said in a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PARTS = {"train": ("train",), "valid": ("valid", "val", "dev"), "test": ("test",)}
"""The names under which each part of a data set is looked for."""


class TextError(ValueError):
    """Text that cannot be used; the message is one line that names the file and what to do."""


@dataclass(frozen=True)
class Text:
    """The lines of one file, or of a part of one.

    Attributes:
        name: of the file or the part, for messages.
        lines: without their ends; empty lines inside the text are kept, as pairs of files need them.

    Example:
        >>> from lookaround.tasks.text import Text
        >>> Text("greeting", ("guten tag", "näher")).bytes
        17
    """

    name: str
    lines: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Its size in UTF-8, a byte for the end of each line: what bits per byte are divided by."""
        return sum(len(line.encode()) + 1 for line in self.lines)


def read_text(path: Path) -> Text:
    """The lines of a UTF-8 file. Only LF and CRLF end a line, so that files of a pair cannot get out of step.

    Raises:
        TextError: for no file, no regular file, one that is not UTF-8, holds no word, or holds a zero byte.

    Example:
        >>> from pathlib import Path
        >>> from lookaround.tasks.text import read_text
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "train.txt")
        ...     _ = path.write_bytes(b"one two\\r\\nthree\\n")
        ...     read_text(path).lines
        ('one two', 'three')
    """
    if not path.exists():
        raise TextError(f"there is no {path}")
    if not path.is_file():
        raise TextError(f"{path} is no regular file; it has to be a UTF-8 text file")
    return Text(str(path), _lines(path, _decoded(path)))


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise TextError(
            f"{path} is not UTF-8: byte 0x{byte:02x} in line {line}; convert it, for example with iconv -t UTF-8"
        ) from error


def _lines(path: Path, text: str) -> tuple[str, ...]:
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not any(line.strip() for line in lines):
        raise TextError(f"{path} is empty: there is not a word in it")
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise TextError(f"{path} is no text: there is a zero byte in line {number}")
    return tuple(lines)


def find_part(root: Path, part: str, ending: str) -> Path | None:
    """The file in ``root`` that holds a part: ``train.ENDING``, ``ptb.train.ENDING``, ``test_2016_flickr.ENDING`` …

    Args:
        root: the folder.
        part: train, valid (also found as val or dev) or test.
        ending: what comes after the last dot.

    Returns:
        The path, or None where there is none.

    Raises:
        TextError: for several that would do.
    """
    patterns = [f"{name}.{ending}" for name in PARTS[part]]
    patterns += [f"*.{name}.{ending}" for name in PARTS[part]] + [f"{name}_*.{ending}" for name in PARTS[part]]
    for pattern in patterns:
        found = sorted(root.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise TextError(f"{root} holds several files for {part}: {names}; keep one of them in the folder")
        if found:
            return found[0]
    return None
