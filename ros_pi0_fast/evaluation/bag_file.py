"""A rosbag2 as a stream of messages, whichever distribution and storage wrote it.

Messages are read one after another by `rosbags`, so that a long bag takes no more memory than a
short one. Types are those that the bag defines; where it defines none, Jazzy's and this package's.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.evaluation.bag_recovery import is_cut_off, recover

STORAGES = ('.mcap', '.db3')
METADATA = 'metadata.yaml'
_IDL_RULE = '=' * 80 + '\n'
Deserialize = Callable[[bytes], Any]


class BagError(ValueError):
    """A bag cannot be used; the message names it, what was found and what was expected."""


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic of a bag."""

    name: str
    kind: str
    """Type, such as sensor_msgs/msg/Image."""
    count: int


class BagFile:
    """One bag, open; a context manager.

    Args:
        path: Folder of a rosbag2, or one of its files.
        salvage: Read what is whole of a damaged bag and say in `damage` what is not; else that is
            an error.

    Raises:
        BagError: it is no rosbag, or is damaged.
    """

    def __init__(self, path: Path, *, salvage: bool = False):
        self.path = Path(path)
        self.damage: list[str] = []
        """What could not be read, in words."""
        self._salvage = salvage
        self._stack = ExitStack()
        if not self.path.exists():
            raise BagError(f'{self.path}: is not there, expected a rosbag2')
        try:
            self._readers = self._open()
        except Exception as error:  # Whatever a parser raises on bytes that are no bag.
            self.close()
            raise BagError(f'{self.path}: cannot be read as a rosbag2: {_words(error)}') from error
        connections = [each for reader in self._readers for each in reader.connections]
        self._decoders: dict[str, Deserialize | None] = {}
        self.topics = {name: Topic(
            name=name, kind=next(each.msgtype for each in connections if each.topic == name),
            count=sum(each.msgcount for each in connections if each.topic == name))
            for name in sorted({each.topic for each in connections})}
        full = [reader for reader in self._readers if reader.message_count]
        self.start_ns = min((reader.start_time for reader in full), default=0)
        self.end_ns = max((reader.end_time - 1 for reader in full), default=0)

    def __enter__(self) -> BagFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and remove what was recovered."""
        self._stack.close()

    # --- opening -------------------------------------------------------------------------

    def _open(self) -> list[Reader]:
        if not self.path.is_dir():
            return [self._open_file(self.path)]
        files = sorted(path for path in self.path.iterdir() if path.suffix in STORAGES)
        if (self.path / METADATA).is_file():
            try:
                return [self._enter(Reader(self.path))]
            except Exception:
                if not self._salvage or not any(map(_is_cut_off_mcap, files)):
                    raise
        elif not files:
            raise ValueError(f'found neither {METADATA} nor *.mcap or *.db3')
        elif not self._salvage:
            raise ValueError(f'found no {METADATA}')
        else:
            self.damage.append(f'{METADATA} is missing: the recorder did not end properly')
        return [self._open_file(path) for path in files]

    def _open_file(self, path: Path) -> Reader:
        if self._salvage and _is_cut_off_mcap(path):
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            lost = recover(path, folder / path.name)
            self.damage.append(f'{path.name} is cut off: its last {lost} bytes were left out')
            path = folder / path.name
        return self._enter(Reader(path))

    def _enter(self, reader: Reader) -> Reader:
        return self._stack.enter_context(reader)

    # --- messages ------------------------------------------------------------------------

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Yield topic, time of recording (ns) and message, in the order of that time.

        Topics whose type is not known are left out, and named in `damage`.

        Raises:
            BagError: the bag is damaged, and nothing is to be salvaged.
        """
        streams = []
        for reader in self._readers:
            chosen = [each for each in reader.connections
                      if each.topic in topics and self._decoder(each) is not None]
            if chosen:
                streams.append(reader.messages(chosen))
        merged = heapq.merge(*streams, key=lambda found: found[1])
        while True:
            try:
                connection, time_ns, raw = next(merged)
                message = self._decoder(connection)(raw)
            except StopIteration:
                return
            except Exception as error:  # As above.
                text = f'is damaged: {_words(error)}'
                if not self._salvage:
                    raise BagError(f'{self.path}: {text}') from error
                self.damage.append(f'{text}; what comes after that was not read')
                return
            yield connection.topic, time_ns, message

    def _decoder(self, connection: Connection) -> Deserialize | None:
        kind = connection.msgtype
        if kind not in self._decoders:
            self._decoders[kind] = _decoder(connection)
            if self._decoders[kind] is None:
                self.damage.append(f'{connection.topic}: type {kind} is neither known nor defined '
                                   'in the bag')
        return self._decoders[kind]


def _decoder(connection: Connection) -> Deserialize | None:
    """Return what reads the messages of a connection; None where its type is unknown."""
    kind = connection.msgtype
    store = get_typestore(Stores.EMPTY)
    try:
        store.register(_definitions(connection))
        store.get_msgdef(kind)
    except Exception:  # A definition that cannot be parsed is as good as none.
        store = bag_types()
    if kind not in store.fielddefs:
        store = bag_types()
    if kind not in store.fielddefs:
        return None
    return lambda raw: store.deserialize_cdr(raw, kind)


def _definitions(connection: Connection) -> Any:
    definition = connection.msgdef
    if definition.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(definition.data, connection.msgtype)
    if definition.format == MessageDefinitionFormat.NONE:
        return {}
    types = {}
    for part in definition.data.split(_IDL_RULE):
        text = part.split('\n', 1)[1] if part.startswith('IDL: ') else part
        types |= get_types_from_idl(text) if text.strip() else {}
    return types


def _is_cut_off_mcap(path: Path) -> bool:
    return path.suffix == '.mcap' and is_cut_off(path)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ReaderError | ValueError) else (
        f'{type(error).__name__}: {error}')
