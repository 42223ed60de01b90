"""All parameters of the policy node, declared in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from ros_pi0_fast.engine.choice import MALFORMED
from ros_pi0_fast.engine.variant import Variant, parameter_of
from ros_pi0_fast.node.gate import ACTION_LIMITS
from ros_pi0_fast.share import share_folder

LATE_CHUNKS = ('publish', 'drop')


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One parameter."""

    name: str
    default: Any
    description: str
    read_only: bool = False
    """Read when the node starts; it cannot be changed."""
    at_configure: bool = False
    """Read when the node is configured; it can be changed while the node is unconfigured."""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows."""
        constraints = [f'one of {", ".join(self.choices)}'] if self.choices else []
        if self.at_configure:
            constraints.append('changes only while the node is unconfigured')
        descriptor = ParameterDescriptor(
            description=self.description, read_only=self.read_only,
            additional_constraints='; '.join(constraints))
        if self.low is not None:
            if isinstance(self.default, int):
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=self.low, to_value=self.high, step=0.0)]
        return descriptor


def _of_variant(each: Field) -> Declaration:
    """Declare the parameter of a field of Variant."""
    low, high = each.metadata.get('bounds') or (None, None)
    kind = 'lossless' if each.metadata['lossless'] else 'lossy'
    return Declaration(name=parameter_of(each.name), default=each.default, low=low, high=high,
                       choices=each.metadata.get('choices', ()),
                       description=f'{kind}: {each.metadata["help"]}')


DECLARATIONS = (
    Declaration(name='checkpoint', default='', at_configure=True,
                description='folder of the checkpoint; empty: the tabletop policy of this '
                            'package'),
    Declaration(name='robot_profile', default='', at_configure=True,
                description='YAML file of the robot; empty: the tabletop of this package'),
    Declaration(name='text_tokenizer', default='', at_configure=True,
                description='sentencepiece model; empty: the one in the checkpoint'),
    Declaration(name='fast_tokenizer', default='', at_configure=True,
                description='folder of the FAST tokenizer; empty: the one in the checkpoint'),
    Declaration(name='max_decode_tokens', default=0, at_configure=True, low=0, high=4096,
                description='ids decoded at most for a chunk; 0: as many as it may need'),
    Declaration(name='autostart', default=True, read_only=True,
                description='configure and activate without being asked to'),
    Declaration(name='memory_limit_mb', default=0.0, at_configure=True, low=0.0, high=1e7,
                description='MiB that the weights of all variants in use may take; a change that '
                            'needs more is refused; 0: no limit'),
    Declaration(name='compilation_cache', default='~/.cache/ros_pi0_fast', read_only=True,
                description='folder for compiled code, so that the next start is faster; empty: '
                            'none'),
    Declaration(name='profile_folder', default='~/.ros/pi0_fast_profile',
                description='where ~/profile writes traces to'),
    Declaration(name='profile_chunks', default=5, low=1, high=1000,
                description='chunks in a trace'),
    *(_of_variant(each) for each in fields(Variant)),
    Declaration(name='pruning.overlay', default=False,
                description='publish ~/kept_tokens: the pictures, and which parts of them pruning '
                            'kept'),
    Declaration(name='malformed', default='constrain', choices=MALFORMED,
                description='constrain: decode only ids from which a whole chunk comes; reject: '
                            'decode freely and publish what is no chunk as not valid'),
    Declaration(name='rate_hz', default=5.0, low=0.1, high=100.0,
                description='how often a chunk is asked for'),
    Declaration(name='max_observation_age_s', default=0.5, low=0.001, high=60.0,
                description='older pictures and joint states are refused'),
    Declaration(name='max_camera_skew_s', default=0.2, low=0.0, high=60.0,
                description='pictures whose stamps are further apart are refused'),
    Declaration(name='deadline_ms', default=0.0, low=0.0, high=60_000.0,
                description='a chunk that is ready later than this after the stamp of its '
                            'observation is late; 0: no deadline'),
    Declaration(name='late_chunks', default='publish', choices=LATE_CHUNKS,
                description='publish: flagged as late; drop: not published, and told on ~/stats'),
    Declaration(name='latency_budget_ms', default=0.0, low=0.0, high=60_000.0,
                description='milliseconds that an inference may take: the least lossy variant '
                            'runs whose measured latency fits, beginning with what the switches '
                            'ask for; 0: what they ask for runs'),
    Declaration(name='action_limits', default='clamp', choices=ACTION_LIMITS,
                description='clamp: actions beyond the limits of the profile are set to these, '
                            'and the chunk is flagged; refuse: the chunk is published as not '
                            'valid, without actions'),
    Declaration(name='joint_trajectory.enabled', default=False,
                description='publish valid chunks on joint_trajectory, too; for robots whose '
                            'actions are positions of joints'),
    Declaration(name='dry_run', default=False,
                description='make and count chunks, and publish statistics only'))
_BY_NAME = {declaration.name: declaration for declaration in DECLARATIONS}


def variant_of(settings: Mapping[str, Any]) -> Variant:
    """Return the variant that values of the parameters ask for.

    Raises:
        VariantError: they contradict each other.
    """
    return Variant(**{each.name: settings[parameter_of(each.name)] for each in fields(Variant)})


def declare_parameters(node: Node) -> dict[str, Any]:
    """Declare all of them; return their values by name."""
    return {declaration.name: node.declare_parameter(
        declaration.name, declaration.default, declaration.descriptor).value
        for declaration in DECLARATIONS}


def find_problem(parameters: Sequence[Parameter], *, configured: bool) -> str:
    """Return why a change cannot be made, or ''. rclpy checks types, ranges and read-only.

    Args:
        parameters: To be set.
        configured: The node is configured, or on its way to it.
    """
    for parameter in parameters:
        declaration = _BY_NAME.get(parameter.name)
        if declaration is None:
            continue
        if declaration.at_configure and configured:
            return (f'{parameter.name}: read when the node is configured; clean the node up '
                    'before changing it')
        if declaration.choices and parameter.value not in declaration.choices:
            return (f'{parameter.name}: found {parameter.value!r}, expected one of '
                    f'{", ".join(declaration.choices)}')
        if isinstance(parameter.value, float) and not math.isfinite(parameter.value):
            return f'{parameter.name}: found {parameter.value}, expected a finite number'
    return ''


def resolve_path(value: str, default: str | None = None) -> Path | None:
    """Return a parameter's value as a path; if empty, the default below the share folder."""
    if value:
        return Path(value).expanduser()
    return None if default is None else share_folder() / default
