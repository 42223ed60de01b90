# ruff: noqa: N818 - the names are rclpy's
"""Quality of service profiles and their policies."""

from enum import IntEnum
from typing import ClassVar

from rclpy.duration import Duration


class QoSPolicyEnum(IntEnum):
    """A policy's values, with the short names that commands use."""

    @classmethod
    def short_keys(cls) -> list[str]:
        """Return the names of all values, as in `best_effort`."""
        return [value.name.lower() for value in cls]

    @classmethod
    def get_from_short_key(cls, name: str) -> 'QoSPolicyEnum':
        """Return a value by its short name."""
        return cls[name.upper()]

    @property
    def short_key(self) -> str:
        """The short name of this value."""
        return self.name.lower()


class HistoryPolicy(QoSPolicyEnum):
    """How many samples are kept."""

    SYSTEM_DEFAULT = 0
    KEEP_LAST = 1
    KEEP_ALL = 2
    UNKNOWN = 3


class ReliabilityPolicy(QoSPolicyEnum):
    """Whether lost samples are sent again."""

    SYSTEM_DEFAULT = 0
    RELIABLE = 1
    BEST_EFFORT = 2
    UNKNOWN = 3


class DurabilityPolicy(QoSPolicyEnum):
    """Whether late subscriptions get earlier samples."""

    SYSTEM_DEFAULT = 0
    TRANSIENT_LOCAL = 1
    VOLATILE = 2
    UNKNOWN = 3


class LivelinessPolicy(QoSPolicyEnum):
    """How a publisher shows that it is alive."""

    SYSTEM_DEFAULT = 0
    AUTOMATIC = 1
    MANUAL_BY_TOPIC = 3
    UNKNOWN = 4


QoSHistoryPolicy = HistoryPolicy
QoSReliabilityPolicy = ReliabilityPolicy
QoSDurabilityPolicy = DurabilityPolicy
QoSLivelinessPolicy = LivelinessPolicy


class InvalidQoSProfileException(Exception):
    """A profile lacks what it must have."""

    def __init__(self, *args: object) -> None:
        super().__init__('Invalid QoSProfile', *args)


class QoSProfile:
    """Quality of service of a publisher, subscription, client or service."""

    __slots__ = ('_avoid_ros_namespace_conventions', '_deadline', '_depth', '_durability',
                 '_history', '_lifespan', '_liveliness', '_liveliness_lease_duration',
                 '_reliability')
    _DEFAULTS: ClassVar[dict[str, object]] = {
        'history': HistoryPolicy.KEEP_LAST,
        'depth': 0,
        'reliability': ReliabilityPolicy.RELIABLE,
        'durability': DurabilityPolicy.VOLATILE,
        'lifespan': Duration(),
        'deadline': Duration(),
        'liveliness': LivelinessPolicy.SYSTEM_DEFAULT,
        'liveliness_lease_duration': Duration(),
        'avoid_ros_namespace_conventions': False,
    }
    _ENUMS: ClassVar[dict[str, type]] = {
        'history': HistoryPolicy, 'reliability': ReliabilityPolicy,
        'durability': DurabilityPolicy, 'liveliness': LivelinessPolicy}

    def __init__(self, **policies: object) -> None:
        unknown = policies.keys() - self._DEFAULTS.keys()
        assert not unknown, f'Invalid arguments passed to constructor: {sorted(unknown)!r}'
        if 'history' not in policies and 'depth' not in policies:
            raise InvalidQoSProfileException('History and/or depth settings are required.')
        if policies.get('history') == HistoryPolicy.KEEP_LAST and 'depth' not in policies:
            raise InvalidQoSProfileException('History set to KEEP_LAST without a depth setting.')
        for name, default in self._DEFAULTS.items():
            setattr(self, name, policies.get(name, default))

    @classmethod
    def get_from_short_key(cls, name: str) -> 'QoSProfile':
        """Return a preset by the name that commands use, as `sensor_data`."""
        return QoSPresetProfiles[name.upper()].value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QoSProfile):
            return False
        return all(getattr(self, slot) == getattr(other, slot) for slot in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, slot) for slot in self.__slots__))

    def __repr__(self) -> str:
        return f'QoSProfile({", ".join(f"{n}={getattr(self, n)!r}" for n in self._DEFAULTS)})'


def _policy(name: str) -> property:
    """Return the checked property of one policy."""
    slot, kind = f'_{name}', QoSProfile._ENUMS.get(name)

    def assign(self: QoSProfile, value: object) -> None:
        if kind is not None:
            value = kind(value)
        elif name == 'depth':
            assert isinstance(value, int) and value >= 0, f'depth must be >= 0, not {value!r}'
        elif name == 'avoid_ros_namespace_conventions':
            assert isinstance(value, bool), f'{name} must be a bool, not {value!r}'
        else:
            assert isinstance(value, Duration), f'{name} must be a Duration, not {value!r}'
        setattr(self, slot, value)

    return property(lambda self: getattr(self, slot), assign)


for _name in QoSProfile._DEFAULTS:
    setattr(QoSProfile, _name, _policy(_name))

qos_profile_default = QoSProfile(depth=10)
qos_profile_system_default = QoSProfile(
    history=HistoryPolicy.SYSTEM_DEFAULT, depth=0, reliability=ReliabilityPolicy.SYSTEM_DEFAULT,
    durability=DurabilityPolicy.SYSTEM_DEFAULT)
qos_profile_sensor_data = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
qos_profile_services_default = QoSProfile(depth=10)
qos_profile_parameters = QoSProfile(depth=1000)
qos_profile_parameter_events = QoSProfile(depth=1000)
qos_profile_rosout_default = QoSProfile(
    depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL, lifespan=Duration(seconds=10))


class _Preset:
    """A profile with a name, as rclpy's enum of presets has them."""

    def __init__(self, name: str, value: QoSProfile) -> None:
        self.name = name
        self.value = value


class _PresetMap(type):
    def __getitem__(cls, name: str) -> _Preset:
        return vars(cls)[name]


class QoSPresetProfiles(metaclass=_PresetMap):
    """The presets, each with its profile in `.value`."""

    UNKNOWN = _Preset('UNKNOWN', qos_profile_default)
    DEFAULT = _Preset('DEFAULT', qos_profile_default)
    SYSTEM_DEFAULT = _Preset('SYSTEM_DEFAULT', qos_profile_system_default)
    SENSOR_DATA = _Preset('SENSOR_DATA', qos_profile_sensor_data)
    SERVICES_DEFAULT = _Preset('SERVICES_DEFAULT', qos_profile_services_default)
    PARAMETERS = _Preset('PARAMETERS', qos_profile_parameters)
    PARAMETER_EVENTS = _Preset('PARAMETER_EVENTS', qos_profile_parameter_events)

    @classmethod
    def short_keys(cls) -> list[str]:
        """Return the names of all presets, as commands use them."""
        return [name.lower() for name, value in vars(cls).items() if isinstance(value, _Preset)]

    @classmethod
    def get_from_short_key(cls, name: str) -> QoSProfile:
        """Return a preset's profile by its short name."""
        return cls[name.upper()].value
