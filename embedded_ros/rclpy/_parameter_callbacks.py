"""The callbacks around the setting of a node's parameters."""

from collections.abc import Callable

from rcl_interfaces.msg import SetParametersResult

from rclpy._parameter_rules import ACCEPTED, refused
from rclpy.parameter import Parameter

Adjust = Callable[[list[Parameter]], list[Parameter]]
Check = Callable[[list[Parameter]], SetParametersResult]
Notice = Callable[[list[Parameter]], None]


class ParameterCallbacks:
    """The part of Node that asks and tells others about changes of parameters."""

    def _init_callbacks(self) -> None:
        self._pre_set_callbacks: list[Adjust] = []
        self._on_set_callbacks: list[Check] = []
        self._post_set_callbacks: list[Notice] = []

    def add_pre_set_parameters_callback(self, callback: Adjust) -> None:
        """Call before values are checked; it returns the parameters to set."""
        self._pre_set_callbacks.insert(0, callback)

    def add_on_set_parameters_callback(self, callback: Check) -> None:
        """Ask before values are set; a result that is not successful refuses them all."""
        self._on_set_callbacks.insert(0, callback)

    def add_post_set_parameters_callback(self, callback: Notice) -> None:
        """Call after values were set."""
        self._post_set_callbacks.insert(0, callback)

    def remove_pre_set_parameters_callback(self, callback: Notice) -> None:
        """Call no more; raises ValueError for a callback that was not added."""
        self._pre_set_callbacks.remove(callback)

    def remove_on_set_parameters_callback(self, callback: Check) -> None:
        """Ask no more; raises ValueError for a callback that was not added."""
        self._on_set_callbacks.remove(callback)

    def remove_post_set_parameters_callback(self, callback: Notice) -> None:
        """Call no more; raises ValueError for a callback that was not added."""
        self._post_set_callbacks.remove(callback)

    def _ask_callbacks(self, parameters: list[Parameter]) -> SetParametersResult:
        for check in list(self._on_set_callbacks):
            result = check(parameters)
            if not isinstance(result, SetParametersResult):
                return refused('The on-set callback returned no SetParametersResult but '
                               f'{result!r}')
            if not result.successful:
                return result
        return ACCEPTED
