"""Everything that is particular to a robot, read from config/robots/*.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ros_pi0_fast.codec.strict_yaml import ProfileError, Section, is_number, read_yaml

__all__ = ['ActionSpec', 'CameraSource', 'Limits', 'ProfileError', 'RobotProfile', 'StateSpec']

NORMALIZATIONS = ('quantile', 'z-score')
MODES = ('delta', 'absolute')
TRANSPORTS = ('raw', 'compressed')

_TOPIC = re.compile(r'(?:~/|/)?[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*', re.ASCII)
_KEY = re.compile(r'[A-Za-z]\w*', re.ASCII)
# Two path segments at most are in use (physical-intelligence/libero); none may climb out.
_ASSET_ID = re.compile(r'[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*', re.ASCII)


@dataclass(frozen=True, kw_only=True)
class CameraSource:
    """Where the picture of one model image key comes from."""

    topic: str
    transport: str
    """'raw' (sensor_msgs/Image) or 'compressed' (sensor_msgs/CompressedImage)."""


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """What the state vector is made of."""

    joints: tuple[str, ...]
    """Names in joint_states, in the model's order."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of each action dimension, in its unit."""

    lower: tuple[float, ...]
    upper: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ActionSpec:
    """What the action vector means."""

    names: tuple[str, ...]
    mode: str
    """'delta' or 'absolute': what the model predicts. A decoded chunk is absolute where delta."""
    delta_mask: tuple[bool, ...]
    """Per action dimension: the model predicts action minus state at the chunk's start."""
    gripper: tuple[int, ...]
    """Dimensions that are grippers."""
    horizon: int
    """Actions in a chunk."""
    units: tuple[str, ...]
    limits: Limits | None
    """None where the profile gives none."""


@dataclass(frozen=True, kw_only=True)
class RobotProfile:
    """One robot, as its YAML file describes it."""

    name: str
    asset_id: str
    """Folder of the normalization statistics below a checkpoint's assets/."""
    cameras: Mapping[str, CameraSource]
    """Model image key -> source, for the cameras that the robot has."""
    absent_cameras: tuple[str, ...]
    """Model image keys that the checkpoint knows and this robot lacks: black images."""
    state: StateSpec
    actions: ActionSpec
    normalization: str
    """'quantile' or 'z-score'."""
    control_rate_hz: float
    max_token_len: int
    image_size: tuple[int, int]
    """(height, width) of the model's images."""
    first_token_offset: int | None
    """Position of the first generated token minus the prompt's length: 1 is openpi's inference,
    0 its training; None leaves it to the checkpoint."""
    source: Path
    """File that it was read from."""

    @property
    def state_dim(self) -> int:
        """Length of the state vector."""
        return len(self.state.joints)

    @property
    def action_dim(self) -> int:
        """Length of one action."""
        return len(self.actions.names)

    @property
    def horizon(self) -> int:
        """Actions in a chunk."""
        return self.actions.horizon

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """All model image keys, absent ones included, sorted: the model's order."""
        return tuple(sorted((*self.cameras, *self.absent_cameras)))

    @classmethod
    def load(cls, path: str | Path) -> RobotProfile:
        """Read and check a profile.

        Raises:
            ProfileError: naming the file, the key, the value found and the value expected.
        """
        root = read_yaml(path)
        root.refuse_unknown((
            'name', 'asset_id', 'cameras', 'absent_cameras', 'state', 'actions', 'normalization',
            'control_rate_hz', 'max_token_len', 'image_size', 'first_token_offset'))
        asset_id = root.text('asset_id')
        if not _ASSET_ID.fullmatch(asset_id):
            raise root.error('asset_id', asset_id, 'a relative folder such as a/b')
        state = root.section('state')
        state.refuse_unknown(('joints',))
        joints = state.names('joints')
        if not joints:
            raise state.error('joints', [], 'at least one name')
        cameras = _cameras(root)
        height, width = root.items(
            'image_size', 'sizes from 1 to 4096, height then width',
            lambda x: type(x) is int and 1 <= x <= 4096, int, length=2)
        return cls(
            name=root.text('name'),
            asset_id=asset_id,
            cameras=cameras,
            absent_cameras=_absent_cameras(root, cameras),
            state=StateSpec(joints=joints),
            actions=_actions(root.section('actions'), state_dim=len(joints)),
            normalization=root.text('normalization', among=NORMALIZATIONS),
            control_rate_hz=root.positive('control_rate_hz'),
            max_token_len=root.integer('max_token_len', at_least=1, at_most=65536),
            image_size=(height, width),
            first_token_offset=root.integer(
                'first_token_offset', at_least=0, at_most=1, default=None),
            source=root.file,
        )


def _cameras(root: Section) -> dict[str, CameraSource]:
    section = root.section('cameras')
    cameras = {}
    for key in section.keys():  # noqa: SIM118  Section is no mapping
        if not _KEY.fullmatch(key):
            raise section.error(key, key, 'a model image key such as base_0_rgb')
        entry = section.section(key)
        entry.refuse_unknown(('topic', 'transport'))
        topic = entry.text('topic')
        if not _TOPIC.fullmatch(topic):
            raise entry.error('topic', topic, 'a ROS topic name')
        cameras[key] = CameraSource(
            topic=topic, transport=entry.text('transport', among=TRANSPORTS))
    if not cameras:
        raise root.error('cameras', {}, 'at least one camera')
    return cameras


def _absent_cameras(root: Section, cameras: Mapping[str, CameraSource]) -> tuple[str, ...]:
    absent = root.names('absent_cameras', default=())
    for key in absent:
        if not _KEY.fullmatch(key):
            raise root.error('absent_cameras', key, 'a model image key such as base_0_rgb')
        if key in cameras:
            raise root.error('absent_cameras', key, "a key that is not under 'cameras'")
    return absent


def _actions(section: Section, *, state_dim: int) -> ActionSpec:
    section.refuse_unknown(
        ('names', 'mode', 'delta_mask', 'gripper', 'horizon', 'units', 'limits'))
    names = section.names('names')
    dim = len(names)
    if not names:
        raise section.error('names', [], 'at least one name')
    mode = section.text('mode', among=MODES)
    gripper = section.items('gripper', f'dimensions from 0 to {dim - 1}',
                            lambda x: type(x) is int and 0 <= x < dim, int, default=())
    if len(set(gripper)) != len(gripper):
        raise section.error('gripper', list(gripper), 'dimensions that all differ')
    return ActionSpec(
        names=names,
        mode=mode,
        delta_mask=_delta_mask(section, mode=mode, dim=dim, state_dim=state_dim),
        gripper=gripper,
        horizon=section.integer('horizon', at_least=1, at_most=1024),
        units=section.items('units', 'units (text, or 1 for none)',
                            lambda x: (isinstance(x, str) and bool(x.strip()))
                            or (type(x) is int and x == 1), str, length=dim),
        limits=_limits(section, dim) if section.has('limits') else None,
    )


def _delta_mask(section: Section, *, mode: str, dim: int, state_dim: int) -> tuple[bool, ...]:
    default = (False,) * dim if mode == 'absolute' else Section.REQUIRED
    mask = section.items('delta_mask', 'true or false', lambda x: isinstance(x, bool), bool,
                         length=dim, default=default)
    if mode == 'absolute' and any(mask):
        raise section.error('delta_mask', list(mask), 'all false where mode is absolute')
    if mode == 'delta' and not any(mask):
        raise section.error('delta_mask', list(mask), 'a true where mode is delta')
    if any(mask[state_dim:]):
        raise section.error('delta_mask', list(mask),
                            f'true only in the first {state_dim} (state.joints) dimensions')
    return mask


def _limits(section: Section, dim: int) -> Limits:
    limits = section.section('limits')
    limits.refuse_unknown(('lower', 'upper'))
    lower = limits.items('lower', 'numbers', is_number, float, length=dim)
    upper = limits.items('upper', 'numbers', is_number, float, length=dim)
    for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if low >= high:
            raise limits.error(f'upper[{index}]', high, f'more than lower[{index}], {low}')
    return Limits(lower=lower, upper=upper)
