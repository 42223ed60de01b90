"""Logging: levels, format, filters and /rosout."""

import os
import re
import time
from collections.abc import Iterator

import pytest
import rclpy
from rcl_interfaces.msg import Log
from rclpy.logging import LoggingSeverity, get_logger, set_logger_level
from rclpy.node import Node
from rclpy.qos import qos_profile_rosout_default

DOMAIN = 1 + os.getpid() % 100


@pytest.fixture(autouse=True)
def levels(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr('rclpy.logging._levels', {'': LoggingSeverity.INFO})
    monkeypatch.setenv('RCUTILS_COLORIZED_OUTPUT', '0')
    yield


def test_format_and_level(capfd):
    logger = get_logger('arm.left')
    assert logger.info('hello') and not logger.debug('quiet')
    err = capfd.readouterr().err
    assert re.fullmatch(r'\[INFO\] \[\d{10}\.\d{9}\] \[arm\.left\]: hello\n', err)
    logger.set_level(LoggingSeverity.DEBUG)
    assert logger.debug('loud')
    assert get_logger('arm.left.hand').get_effective_level() is LoggingSeverity.DEBUG
    assert get_logger('arm').get_effective_level() is LoggingSeverity.INFO
    set_logger_level('', LoggingSeverity.ERROR)
    assert not get_logger('other').warning('no') and get_logger('other').fatal('yes')
    assert logger.get_child('hand').name == 'arm.left.hand'


def test_custom_format_and_color(capfd, monkeypatch):
    monkeypatch.setenv('RCUTILS_CONSOLE_OUTPUT_FORMAT',
                       '{name}|{severity}|{message}|{line_number}')
    monkeypatch.setenv('RCUTILS_COLORIZED_OUTPUT', '1')
    get_logger('x').error('red')
    assert re.fullmatch('\033\\[31mx\\|ERROR\\|red\\|\\d+\033\\[0m\n', capfd.readouterr().err)


def test_filters_count_for_each_line(capfd):
    logger = get_logger('filters')
    for number in range(4):
        logger.info(f'once {number}', once=True)
        logger.info(f'skipped {number}', skip_first=True)
        logger.info(f'rare {number}', throttle_duration_sec=60.0)
    err = capfd.readouterr().err
    assert re.findall(r': (\w+ \d)', err) == [
        'once 0', 'rare 0', 'skipped 1', 'skipped 2', 'skipped 3']
    with pytest.raises(TypeError, match='sometimes'):
        logger.info('x', sometimes=True)


def test_rosout():
    rclpy.init(args=['--ros-args', '--log-level', 'talker:=debug'], domain_id=DOMAIN)
    try:
        talker, listener = Node('talker'), Node('listener', enable_rosout=False)
        logs: list[Log] = []
        talker.get_logger().debug('before')  # kept for late subscriptions
        listener.create_subscription(Log, '/rosout', logs.append, qos_profile_rosout_default)
        talker.get_logger().get_child('part').error('after')
        listener.get_logger().error('not published')
        end = time.monotonic() + 10
        while len(logs) < 2 and time.monotonic() < end:
            rclpy.spin_once(listener, timeout_sec=0.1)
        assert [(log.name, log.level, log.msg) for log in logs] == [
            ('talker', 10, 'before'), ('talker.part', 40, 'after')]
        assert logs[1].file == __file__ and logs[1].function == 'test_rosout'
        talker.destroy_node()
        talker.get_logger().error('after its end')
        listener.destroy_node()
    finally:
        rclpy.shutdown()
