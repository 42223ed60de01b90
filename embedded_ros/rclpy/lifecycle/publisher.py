"""Publishers that are silent unless their node is active."""

from rclpy.lifecycle.managed_entity import SimpleManagedEntity
from rclpy.publisher import Publisher


class LifecyclePublisher(SimpleManagedEntity, Publisher):
    """Drops messages while the node is not active."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        SimpleManagedEntity.__init__(self)
        Publisher.__init__(self, *args, **kwargs)

    @SimpleManagedEntity.when_enabled
    def publish(self, msg: object) -> None:
        """Publish while active; see Publisher.publish."""
        Publisher.publish(self, msg)
