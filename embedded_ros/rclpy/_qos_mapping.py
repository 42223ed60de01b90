"""QoS profiles as DDS policies and back, as `rmw_cyclonedds_cpp` maps them."""

from cyclonedds.core import Policy, Qos
from cyclonedds.internal import dds_infinity

from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

# How long a publisher waits for a reliable subscription that does not keep up. rmw_cyclonedds_cpp
# waits for ever; a robot's node had better say so and go on.
MAX_BLOCKING_NS = 1_000_000_000
UNLIMITED = -1


def policies(profile: QoSProfile, user_data: str, *, ignore_local: bool = False) -> list:
    """Return the DDS policies of an endpoint; what is left to the system is left out."""
    found: list = [Policy.Userdata(user_data.encode('ascii'))]
    history = _history(profile)
    if history is not None:
        found.append(history)
    if profile.reliability is ReliabilityPolicy.RELIABLE:
        found.append(Policy.Reliability.Reliable(MAX_BLOCKING_NS))
    elif profile.reliability is ReliabilityPolicy.BEST_EFFORT:
        found.append(Policy.Reliability.BestEffort)
    if profile.durability is DurabilityPolicy.TRANSIENT_LOCAL:
        found += [Policy.Durability.TransientLocal,
                  Policy.DurabilityService(0, history or Policy.History.KeepLast(1), UNLIMITED,
                                           UNLIMITED, UNLIMITED)]
    elif profile.durability is DurabilityPolicy.VOLATILE:
        found.append(Policy.Durability.Volatile)
    found += _durations(profile)
    if ignore_local:
        found.append(Policy.IgnoreLocal.Participant)
    return found


def _history(profile: QoSProfile) -> object | None:
    if profile.history is HistoryPolicy.KEEP_ALL:
        return Policy.History.KeepAll
    if profile.history is HistoryPolicy.KEEP_LAST:
        return Policy.History.KeepLast(max(1, profile.depth))
    return None


def _durations(profile: QoSProfile) -> list:
    found: list = []
    if _is_limit(profile.lifespan):
        found.append(Policy.Lifespan(profile.lifespan.nanoseconds))
    if _is_limit(profile.deadline):
        found.append(Policy.Deadline(profile.deadline.nanoseconds))
    lease = profile.liveliness_lease_duration
    lease_ns = lease.nanoseconds if _is_limit(lease) else dds_infinity
    if profile.liveliness is LivelinessPolicy.MANUAL_BY_TOPIC:
        found.append(Policy.Liveliness.ManualByTopic(lease_ns))
    elif profile.liveliness is LivelinessPolicy.AUTOMATIC or lease_ns != dds_infinity:
        found.append(Policy.Liveliness.Automatic(lease_ns))
    return found


def _is_limit(duration: Duration) -> bool:
    """Tell whether a duration limits anything: 0 and the longest one do not."""
    return 0 < duration.nanoseconds < dds_infinity


def profile_of(qos: Qos) -> QoSProfile:
    """Return the profile of a discovered endpoint; discovery does not tell the history."""
    durability, reliability = qos[Policy.Durability], qos[Policy.Reliability]
    history = qos[Policy.History]
    profile = QoSProfile(history=HistoryPolicy.UNKNOWN, depth=0)
    if isinstance(history, Policy.History.KeepLast):
        profile.history, profile.depth = HistoryPolicy.KEEP_LAST, history.depth
    elif history is not None:
        profile.history = HistoryPolicy.KEEP_ALL
    profile.durability = (DurabilityPolicy.VOLATILE if durability is Policy.Durability.Volatile
                          else DurabilityPolicy.TRANSIENT_LOCAL)
    profile.reliability = (ReliabilityPolicy.BEST_EFFORT
                           if reliability is Policy.Reliability.BestEffort
                           else ReliabilityPolicy.RELIABLE)
    profile.lifespan = _duration(qos[Policy.Lifespan], 'lifespan')
    profile.deadline = _duration(qos[Policy.Deadline], 'deadline')
    liveliness = qos[Policy.Liveliness]
    profile.liveliness = (LivelinessPolicy.MANUAL_BY_TOPIC
                          if isinstance(liveliness, Policy.Liveliness.ManualByTopic)
                          else LivelinessPolicy.AUTOMATIC)
    profile.liveliness_lease_duration = _duration(liveliness, 'lease_duration')
    return profile


def _duration(policy: object, attribute: str) -> Duration:
    return Duration(nanoseconds=getattr(policy, attribute, dds_infinity))
