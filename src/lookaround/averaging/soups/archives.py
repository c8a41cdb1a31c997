"""The uncompressed zip archive that ``torch.save`` writes: where the bytes of each record stand, with everything said twice compared.

A record's name, place and length stand in the archive's directory, in a header right before its bytes, and partly right after them.
Damage to one of these would have other bytes taken for a tensor's.
"""

import struct
import zipfile
import zlib
from itertools import pairwise
from typing import BinaryIO

ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30
_UTF8, _ENCRYPTED, _DESCRIBED = 0x800, 1, 8
_MARK = b"PK\x07\x08"


class Archive:
    """The records of an archive.

    Raises:
        ValueError: The directory is damaged, or names two records alike.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError, EOFError) as error:
            raise ValueError(f"its zip archive is damaged ({error})") from error
        listed = archive.infolist()
        self._records = {info.filename: info for info in listed}
        if len(self._records) < len(listed):
            raise ValueError("its zip archive is damaged (two of its records have one name)")
        begins = sorted({info.header_offset for info in listed} | {archive.start_dir})
        self._next = dict(pairwise(begins))

    @property
    def names(self) -> list[str]:
        """Of all records, in the order of the directory."""
        return list(self._records)

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def size(self, name: str) -> int:
        """How many bytes a record has."""
        return self._found(name).file_size

    def _found(self, name: str) -> zipfile.ZipInfo:
        if name not in self._records:
            raise ValueError(f"its record {name} is missing")
        return self._records[name]

    def start(self, name: str) -> int:
        """Where a record's bytes begin: its own header, right before them, says how long it is.

        Raises:
            ValueError: The record is missing, compressed or encrypted, or what stands around it is damaged.
        """
        info = self._found(name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise ValueError(f"its record {name} is compressed or encrypted, which torch.save does not do")
        following = self._next.get(info.header_offset, -1)  # none after the directory
        header = self._read(info.header_offset, _LOCAL_HEADER) if 0 <= info.header_offset < following else b""
        if len(header) < _LOCAL_HEADER or not header.startswith(ZIP):
            raise ValueError(f"its record {name} has no header")
        named, extra = struct.unpack("<HH", header[26:30])
        start = info.header_offset + _LOCAL_HEADER + named + extra
        own = self._read(info.header_offset + _LOCAL_HEADER, named)
        if own != info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437"):
            raise ValueError(f"its record {name} is called otherwise in its own header: one of the two is damaged")
        if not self._ends(info, start + info.file_size, following):
            raise ValueError(
                f"its record {name} does not end where the next one begins: it is cut short, or what stands around it is damaged"
            )
        return int(start)

    def _ends(self, info: zipfile.ZipInfo, end: int, following: int) -> bool:
        """Whether nothing stands between the end of a record and the next one, but its checksum and sizes once more."""
        if not info.flag_bits & _DESCRIBED:
            return end == following
        after = self._read(end, following - end) if 0 < following - end <= 24 else b""
        sizes = [struct.pack(f"<L{kind}{kind}", info.CRC, *[info.file_size] * 2) for kind in _kinds(info.file_size)]
        # The mark before them may be missing; it is not if it stands among what would be the record's last bytes.
        return after.removeprefix(_MARK) in sizes and (after.startswith(_MARK) or self._read(end - 4, 4) != _MARK)

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        return self._file.read(count)

    def read(self, name: str) -> bytes:
        """A whole record.

        Raises:
            ValueError: As from `start`, or its checksum is another one.
        """
        content = self._read(self.start(name), self.size(name))
        if self._records[name].CRC not in (0, zlib.crc32(content)):  # 0: torch was told not to compute any
            raise ValueError(f"its record {name} is damaged: its checksum is another one")
        return content


def _kinds(size: int) -> str:
    """How sizes may be written: in four bytes where they fit, or in eight."""
    return "LQ" if size < 2**32 else "Q"
