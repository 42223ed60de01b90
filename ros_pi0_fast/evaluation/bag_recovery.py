"""What is whole of an MCAP file whose end is missing, as a file that can be read.

A recorder that was killed leaves a file without index and footer (MCAP specification, mcap.dev).
Its records are copied up to the last whole one; a reader then finds no index and scans.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

MAGIC = b'\x89MCAP0\r\n'
_HEAD = 9
"""Bytes of an opcode and a length."""
_FOOTER, _DATA_END = 0x02, 0x0f
_SUMMARY = {_FOOTER, _DATA_END}
_BLOCK = 2**20


def is_cut_off(path: Path) -> bool:
    """Tell whether an MCAP file lacks its end."""
    size = path.stat().st_size
    with path.open('rb') as file:
        if size < 2 * len(MAGIC) or file.read(len(MAGIC)) != MAGIC:
            return False
        file.seek(-len(MAGIC), 2)
        return file.read() != MAGIC


def recover(path: Path, target: Path) -> int:
    """Write the whole records of a file that is cut off to another; return the bytes left out.

    Raises:
        ValueError: there is no whole record in it.
    """
    size = path.stat().st_size
    with path.open('rb') as source, target.open('wb') as out:
        out.write(source.read(len(MAGIC)))
        end = len(MAGIC)
        while (length := _record(source, end, size)) is not None:
            source.seek(end)
            _copy(source, out, length)
            end += length
        if end == len(MAGIC):
            raise ValueError('found no whole record')
        out.write(bytes([_DATA_END]) + (4).to_bytes(8, 'little') + bytes(4))
        out.write(bytes([_FOOTER]) + (20).to_bytes(8, 'little') + bytes(20) + MAGIC)
    return size - end


def _record(source: BinaryIO, start: int, size: int) -> int | None:
    """Return the length of the record of the data at an offset; None where there is none."""
    source.seek(start)
    head = source.read(_HEAD)
    if len(head) < _HEAD or head[0] in _SUMMARY:
        return None
    length = _HEAD + int.from_bytes(head[1:], 'little')
    return length if start + length <= size else None


def _copy(source: BinaryIO, out: BinaryIO, length: int) -> None:
    while length:
        block = source.read(min(length, _BLOCK))
        out.write(block)
        length -= len(block)
