"""QoS of a command's endpoints: what the user says, else what fits the publishers."""

import argparse

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_parameter_events,
    qos_profile_parameters,
    qos_profile_sensor_data,
    qos_profile_services_default,
    qos_profile_system_default,
)

from ros2cli.graph import SETTLE_TIME, spin_until

PROFILES = {
    'default': QoSProfile(depth=10),
    'sensor_data': qos_profile_sensor_data,
    'system_default': qos_profile_system_default,
    'services_default': qos_profile_services_default,
    'parameters': qos_profile_parameters,
    'parameter_events': qos_profile_parameter_events,
}
RELIABILITY = {'reliable': ReliabilityPolicy.RELIABLE,
               'best_effort': ReliabilityPolicy.BEST_EFFORT}
DURABILITY = {'volatile': DurabilityPolicy.VOLATILE,
              'transient_local': DurabilityPolicy.TRANSIENT_LOCAL}
HISTORY = {'keep_last': HistoryPolicy.KEEP_LAST, 'keep_all': HistoryPolicy.KEEP_ALL}


def add_qos_arguments(parser: argparse.ArgumentParser, default_profile: str) -> None:
    """Add --qos-profile and the options that change single policies of it."""
    parser.add_argument('--qos-profile', choices=PROFILES,
                        help=f'QoS preset (default: {default_profile})')
    parser.add_argument('--qos-depth', type=int, metavar='N', help='Queue size of the history')
    parser.add_argument('--qos-history', choices=HISTORY, help='History of samples to keep')
    parser.add_argument('--qos-reliability', choices=RELIABILITY, help='Reliability')
    parser.add_argument('--qos-durability', choices=DURABILITY, help='Durability')


def given_qos(args: argparse.Namespace, default_profile: str) -> QoSProfile | None:
    """Return the profile of the user's options, or None when there are none."""
    options = (args.qos_profile, args.qos_depth, args.qos_history, args.qos_reliability,
               args.qos_durability)
    if all(option is None for option in options):
        return None
    preset = PROFILES[args.qos_profile or default_profile]
    return QoSProfile(
        depth=preset.depth if args.qos_depth is None else args.qos_depth,
        history=HISTORY.get(args.qos_history, preset.history),
        reliability=RELIABILITY.get(args.qos_reliability, preset.reliability),
        durability=DURABILITY.get(args.qos_durability, preset.durability))


def matching_qos(node: Node, topic: str, *, depth: int | None = None) -> QoSProfile:
    """Return a subscription's QoS that connects to every publisher which the topic has now.

    Reliable only where all are, transient local only where all are, as `ros2 topic` chooses. A
    topic may be known by its subscriptions first: its publishers are given a moment to appear.
    """
    spin_until(node, lambda: node.count_publishers(topic) > 0, SETTLE_TIME)
    offered = [info.qos_profile for info in node.get_publishers_info_by_topic(topic)]
    reliable = [qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered]
    latched = [qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered]
    for policy, fallback, flags in (
            ('QoSReliabilityPolicy.RELIABLE', 'QoSReliabilityPolicy.BEST_EFFORT', reliable),
            ('QoSDurabilityPolicy.TRANSIENT_LOCAL', 'QoSDurabilityPolicy.VOLATILE', latched)):
        if any(flags) and not all(flags):
            print(f'Some, but not all, publishers are offering {policy}. Falling back to '
                  f'{fallback} as it will connect to all publishers')
    return QoSProfile(
        depth=depth or qos_profile_sensor_data.depth,
        reliability=(ReliabilityPolicy.RELIABLE if offered and all(reliable)
                     else ReliabilityPolicy.BEST_EFFORT),
        durability=(DurabilityPolicy.TRANSIENT_LOCAL if offered and all(latched)
                    else DurabilityPolicy.VOLATILE))


def describe_qos(qos: QoSProfile) -> str:
    """Return the lines that `ros2 topic info --verbose` shows for a profile."""
    history = qos.history.name
    if qos.history == HistoryPolicy.KEEP_LAST:
        history += f' ({qos.depth})'
    return '\n'.join((
        'QoS profile:',
        f'  Reliability: {qos.reliability.name}',
        f'  History (Depth): {history}',
        f'  Durability: {qos.durability.name}',
        f'  Lifespan: {_duration(qos.lifespan)}',
        f'  Deadline: {_duration(qos.deadline)}',
        f'  Liveliness: {qos.liveliness.name}',
        f'  Liveliness lease duration: {_duration(qos.liveliness_lease_duration)}'))


def _duration(duration: object) -> str:
    """Return nanoseconds as text; rclpy gives 0 or the largest duration for `no limit`."""
    nanoseconds = duration.nanoseconds
    return 'Infinite' if nanoseconds in (0, 2**63 - 1) else f'{nanoseconds} nanoseconds'
