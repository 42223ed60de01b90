"""Bags for tests: recorded from the simulation, and written anew in every form."""

from pathlib import Path

from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ros_pi0_fast.codec.bag_types import bag_types
from ros_pi0_fast.share import share_folder

CHUNK = 'ros_pi0_fast/msg/ActionChunk'


def store_of(distribution):
    """Return a distribution's types, and this package's chunk."""
    store = get_typestore(Stores(f'ros2_{distribution}'))
    store.register(get_types_from_msg(
        (share_folder() / 'msg' / 'ActionChunk.msg').read_text('utf-8'), CHUNK))
    return store


def rewrite(source: Path, target: Path, *, change=None, keep=None, distribution='jazzy',
            storage=StoragePlugin.MCAP, compression=CompressionMode.NONE, version=9,
            kinds=None) -> Path:
    """Write a bag anew, by rosbags' writer.

    change: from topic, time and message to a list of the same; keep: topics; kinds: topic -> type
    of topics that the source does not have.
    """
    store, types = store_of(distribution), bag_types()
    writer = Writer(target, version=version, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with Reader(source) as reader, writer:
        names = {each.topic: each.msgtype for each in reader.connections
                 if keep is None or each.topic in keep} | (kinds or {})
        connections = {topic: writer.add_connection(topic, kind, typestore=store)
                       for topic, kind in names.items()}
        for connection, time_ns, raw in reader.messages():
            message = types.deserialize_cdr(raw, connection.msgtype)
            found = [(connection.topic, time_ns, message)]
            for topic, time, each in found if change is None else change(*found[0]):
                if topic in connections:
                    writer.write(connections[topic], time,
                                 store.serialize_cdr(each, names[topic]))
    return target


def stamp(time_ns):
    return bag_types().types['builtin_interfaces/msg/Time'](sec=time_ns // 10**9,
                                                             nanosec=time_ns % 10**9)
