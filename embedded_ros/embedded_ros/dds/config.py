"""Which DDS domain, and how participants find each other."""

import os

from cyclonedds.domain import Domain

from embedded_ros import SettingError

MAX_DOMAIN_ID = 232  # above it the ports of RTPS pass 65535
# Without multicast, which containers and many networks lack: participants on this machine look for
# each other on the ports that up to a hundred of them take. Large datagrams keep images whole.
LOOPBACK = """<CycloneDDS><Domain Id="any">
<General>
  <Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>
  <AllowMulticast>false</AllowMulticast>
  <MaxMessageSize>65500B</MaxMessageSize>
  <FragmentSize>64000B</FragmentSize>
</General>
<Discovery>
  <ParticipantIndex>auto</ParticipantIndex>
  <MaxAutoParticipantIndex>99</MaxAutoParticipantIndex>
  <Peers><Peer address="127.0.0.1"/></Peers>
</Discovery>
<Internal><SocketReceiveBufferSize max="4MB"/></Internal>
</Domain></CycloneDDS>"""

_domains: dict[int, Domain] = {}


def domain_id_from_environment() -> int:
    """Return $ROS_DOMAIN_ID, 0 when unset; raises SettingError when it is no domain's number."""
    text = os.environ.get('ROS_DOMAIN_ID', '') or '0'
    if not text.isdecimal() or int(text) > MAX_DOMAIN_ID:
        raise SettingError(
            f'ROS_DOMAIN_ID is {text!r}; expected a whole number from 0 to {MAX_DOMAIN_ID}')
    return int(text)


def ensure_domain(domain_id: int) -> None:
    """Configure a domain, once a process, unless the user does it by $CYCLONEDDS_URI."""
    if not os.environ.get('CYCLONEDDS_URI') and domain_id not in _domains:
        _domains[domain_id] = Domain(domain_id, LOOPBACK)


def forget_domains() -> None:
    """Delete the domains; their participants are gone."""
    _domains.clear()
