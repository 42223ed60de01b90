"""The services by which other nodes read and set a node's parameters."""

from typing import TYPE_CHECKING

from rcl_interfaces.msg import ListParametersResult, ParameterValue
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    GetParameterTypes,
    ListParameters,
    SetParameters,
    SetParametersAtomically,
)

from rclpy._parameter_rules import refused
from rclpy.exceptions import ParameterNotDeclaredException
from rclpy.parameter import PARAMETER_SEPARATOR_STRING, Parameter
from rclpy.qos import qos_profile_parameters

if TYPE_CHECKING:
    from rclpy.node import Node


class ParameterService:
    """Serves a node's parameters."""

    def __init__(self, node: 'Node') -> None:
        self._node = node
        for srv_type, name, callback in (
                (DescribeParameters, 'describe_parameters', self._describe),
                (GetParameters, 'get_parameters', self._get),
                (GetParameterTypes, 'get_parameter_types', self._get_types),
                (ListParameters, 'list_parameters', self._list),
                (SetParameters, 'set_parameters', self._set),
                (SetParametersAtomically, 'set_parameters_atomically', self._set_atomically)):
            node.create_service(srv_type, f'~/{name}', callback,
                                qos_profile=qos_profile_parameters)

    def _describe(self, request: object, response: object) -> object:
        try:
            response.descriptors = self._node.describe_parameters(request.names)
        except ParameterNotDeclaredException:
            response.descriptors = []  # as rclpy: all or nothing
        return response

    def _get(self, request: object, response: object) -> object:
        values = []
        for name in request.names:
            if not self._node.has_parameter(name):
                response.values = []
                return response
            values.append(self._node._parameters[name].get_parameter_value())
        response.values = values
        return response

    def _get_types(self, request: object, response: object) -> object:
        try:
            response.types = [kind.value for kind in
                              self._node.get_parameter_types(request.names)]
        except ParameterNotDeclaredException:
            response.types = []
        return response

    def _list(self, request: object, response: object) -> object:
        names = set()
        for name in list(self._node._parameters):
            if not request.prefixes:
                if self._deep_enough(name, request.depth):
                    names.add(name)
                continue
            for prefix in request.prefixes:
                start = prefix + PARAMETER_SEPARATOR_STRING
                if name == prefix or (name.startswith(start) and self._deep_enough(
                        name.removeprefix(start), request.depth)):
                    names.add(name)
        prefixes = {name.rpartition(PARAMETER_SEPARATOR_STRING)[0] for name in names} - {''}
        response.result = ListParametersResult(names=sorted(names), prefixes=sorted(prefixes))
        return response

    @staticmethod
    def _deep_enough(name: str, depth: int) -> bool:
        return (depth == ListParameters.Request.DEPTH_RECURSIVE
                or name.count(PARAMETER_SEPARATOR_STRING) < depth)

    def _set(self, request: object, response: object) -> object:
        results = []
        for message in request.parameters:
            try:
                results += self._node.set_parameters([Parameter.from_parameter_msg(message)])
            except ParameterNotDeclaredException as error:
                results.append(refused(str(error)))
            except (RuntimeError, ValueError) as error:
                results.append(refused(f'{message.name}: {error}'))
        response.results = results
        return response

    def _set_atomically(self, request: object, response: object) -> object:
        try:
            response.result = self._node.set_parameters_atomically(
                [Parameter.from_parameter_msg(message) for message in request.parameters])
        except (ParameterNotDeclaredException, RuntimeError, ValueError) as error:
            response.result = refused(str(error))
        return response


__all__ = ['ParameterService', 'ParameterValue']
