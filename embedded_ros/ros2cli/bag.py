"""`ros2 bag record|play|info` over rosbags; lines as rosbag2 prints them."""

import argparse
import time
from pathlib import Path

from rosbags.rosbag2 import Reader, ReaderError

from ros2cli import bag_play, bag_record
from ros2cli.errors import CommandError
from ros2cli.main import add_verbs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of `ros2 bag`."""
    verbs = add_verbs(parser)
    bag_record.add_verb(verbs)
    bag_play.add_verb(verbs)
    info_parser = verbs.add_parser('info', help='Print information about a bag to the screen')
    info_parser.add_argument('bag_path', type=Path, help='Bag to open')
    info_parser.set_defaults(main=info)


def info(args: argparse.Namespace) -> None:
    """Print what a bag holds."""
    try:
        with Reader(args.bag_path) as reader:
            print(describe(args.bag_path, reader))
    except (OSError, ReaderError) as error:
        raise CommandError(f'cannot read bag {args.bag_path}: {error}') from error


def describe(path: Path, reader: Reader) -> str:
    """Return the text of `ros2 bag info` for an open bag."""
    files = sorted(f for f in path.iterdir() if f.suffix in ('.mcap', '.db3')
                   ) if path.is_dir() else [path]
    lines = [('Files', ', '.join(file.name for file in files)),
             ('Bag size', _size(sum(file.stat().st_size for file in files))),
             ('Storage id', 'mcap' if files and files[0].suffix == '.mcap' else 'sqlite3'),
             ('ROS Distro', reader.ros_distro or 'unknown')]
    if reader.message_count:
        lines += [('Duration', f'{_seconds(reader.end_time - reader.start_time)}s'),
                  ('Start', _stamp(reader.start_time)), ('End', _stamp(reader.end_time))]
    lines.append(('Messages', str(reader.message_count)))
    for number, connection in enumerate(sorted(reader.connections, key=lambda c: c.topic)):
        lines.append(('' if number else 'Topic information',
                      f'Topic: {connection.topic} | Type: {connection.msgtype} | '
                      f'Count: {connection.msgcount} | '
                      f'Serialization Format: {connection.ext.serialization_format}'))
    return '\n'.join(f'{title + ":" if title else "":<19}{text}' for title, text in lines)


def _seconds(nanoseconds: int) -> str:
    return f'{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}'


def _stamp(nanoseconds: int) -> str:
    local = time.localtime(nanoseconds // 10**9)
    clock = time.strftime('%b %e %Y %H:%M:%S', local)
    return f'{clock}.{nanoseconds % 10**9:09d} ({_seconds(nanoseconds)})'


def _size(size: float) -> str:
    """Return bytes with the largest binary unit that leaves at least one of it."""
    for unit in ('B', 'KiB', 'MiB', 'GiB'):
        if size < 1024 or unit == 'GiB':
            return f'{size:g} B' if unit == 'B' else f'{size:.1f} {unit}'
        size /= 1024
    raise AssertionError('unreachable')
