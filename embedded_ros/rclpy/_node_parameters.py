"""The parameters of a node."""

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rcl_interfaces.msg import ParameterDescriptor, ParameterEvent, SetParametersResult

from rclpy._parameter_callbacks import ParameterCallbacks
from rclpy._parameter_rules import check_descriptor, refused
from rclpy.exceptions import (
    InvalidParameterException,
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterAlreadyDeclaredException,
    ParameterImmutableException,
    ParameterNotDeclaredException,
    ParameterUninitializedException,
)
from rclpy.parameter import PARAMETER_SEPARATOR_STRING, Parameter

if TYPE_CHECKING:
    from rclpy.clock import Clock
    from rclpy.publisher import Publisher

class NodeParameters(ParameterCallbacks):
    """The part of Node that holds parameters."""

    _clock: 'Clock'
    _parameter_event_publisher: 'Publisher | None' = None

    def _init_parameters(self, overrides: dict[str, Parameter], allow_undeclared: bool) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._descriptors: dict[str, ParameterDescriptor] = {}
        self._parameter_overrides = overrides
        self._allow_undeclared_parameters = allow_undeclared
        self._init_callbacks()
        self._parameters_lock = threading.RLock()

    # -- declaring

    def declare_parameter(self, name: str, value: Any = None,
                          descriptor: ParameterDescriptor | None = None,
                          ignore_override: bool = False) -> Parameter:
        """Declare a parameter and return it with its value: the override's, else the default.

        `value` is a default, or a Parameter.Type when there is none. Raises
        ParameterAlreadyDeclaredException, InvalidParameterException (name),
        InvalidParameterTypeException and InvalidParameterValueException (refused by its descriptor
        or a callback).
        """
        return self.declare_parameters(
            '', [(name, value, descriptor or ParameterDescriptor())], ignore_override)[0]

    def declare_parameters(self, namespace: str, parameters: Iterable[tuple],
                           ignore_override: bool = False) -> list[Parameter]:
        """Declare `(name[, value[, descriptor]])` tuples below a namespace."""
        declared = []
        with self._parameters_lock:
            for name, *rest in parameters:
                value = rest[0] if rest else None
                given = rest[1] if len(rest) > 1 else None
                full = (f'{namespace}{PARAMETER_SEPARATOR_STRING}{name}' if namespace else name)
                declared.append(self._declare(full, value, given or ParameterDescriptor(),
                                              ignore_override))
        return declared

    def _declare(self, name: str, value: Any, descriptor: ParameterDescriptor,
                 ignore_override: bool) -> Parameter:
        if not isinstance(name, str) or not name:
            raise InvalidParameterException(name)
        if name in self._parameters:
            raise ParameterAlreadyDeclaredException(name)
        only_type = isinstance(value, Parameter.Type)
        kind = value if only_type else Parameter.Type.from_parameter_value(value)
        if kind is Parameter.Type.NOT_SET and not only_type:
            descriptor.dynamic_typing = True  # as rclpy does for a default of None
        if only_type and kind is Parameter.Type.NOT_SET:
            raise ValueError(f'Cannot declare parameter {name!r} as statically typed of type '
                             'NOT_SET')
        default = None if only_type else value
        overridden = not ignore_override and name in self._parameter_overrides
        parameter = self._parameter_overrides[name] if overridden else Parameter(
            name, Parameter.Type.NOT_SET if default is None else kind, default)
        if overridden and _is_empty_array(parameter, kind):
            parameter = Parameter(name, kind, parameter.value)
        descriptor.name = name
        if not descriptor.dynamic_typing:
            descriptor.type = kind.value
        result = check_descriptor(parameter, descriptor, changing=False)
        if not result.successful and result.reason.startswith('Wrong parameter type'):
            raise InvalidParameterTypeException(parameter, kind.name)
        if result.successful:
            result = self._ask_callbacks([parameter])
        if not result.successful:
            raise InvalidParameterValueException(name, parameter.value, result.reason)
        self._store([parameter], {name: descriptor})
        return parameter

    def undeclare_parameter(self, name: str) -> None:
        """Forget a parameter.

        Raises ParameterNotDeclaredException, ParameterImmutableException.
        """
        with self._parameters_lock:
            if name not in self._parameters:
                raise ParameterNotDeclaredException(name)
            if self._descriptors[name].read_only:
                raise ParameterImmutableException(name)
            removed = self._parameters.pop(name)
            del self._descriptors[name]
        self._publish_parameter_event(deleted=[removed])

    # -- reading

    def has_parameter(self, name: str) -> bool:
        """Tell whether a parameter is declared."""
        return name in self._parameters

    def get_parameter(self, name: str) -> Parameter:
        """Return a parameter.

        Raises ParameterNotDeclaredException, ParameterUninitializedException.
        """
        with self._parameters_lock:
            found = self._parameters.get(name)
            if found is None:
                if self._allow_undeclared_parameters:
                    return Parameter(name)
                raise ParameterNotDeclaredException(name)
            if found.type_ is Parameter.Type.NOT_SET \
                    and not self._descriptors[name].dynamic_typing:
                raise ParameterUninitializedException(name)
            return found

    def get_parameters(self, names: Iterable[str]) -> list[Parameter]:
        """Return parameters; see get_parameter."""
        return [self.get_parameter(name) for name in names]

    def get_parameter_or(self, name: str, alternative_value: Parameter | None = None) -> Parameter:
        """Return a parameter, or an alternative when it is not declared or has no value."""
        found = self._parameters.get(name)
        if found is None or found.type_ is Parameter.Type.NOT_SET:
            return Parameter(name) if alternative_value is None else alternative_value
        return found

    def get_parameters_by_prefix(self, prefix: str) -> dict[str, Parameter]:
        """Return the parameters `prefix.rest` by `rest`."""
        start = f'{prefix}{PARAMETER_SEPARATOR_STRING}' if prefix else ''
        return {name.removeprefix(start): parameter
                for name, parameter in self._parameters.items() if name.startswith(start)}

    def get_parameter_type(self, name: str) -> Parameter.Type:
        """Return a parameter's type; raises ParameterNotDeclaredException."""
        return self._parameter_of(name).type_

    def get_parameter_types(self, names: Iterable[str]) -> list[Parameter.Type]:
        """Return parameters' types; see get_parameter_type."""
        return [self.get_parameter_type(name) for name in names]

    def describe_parameter(self, name: str) -> ParameterDescriptor:
        """Return a parameter's descriptor; raises ParameterNotDeclaredException."""
        self._parameter_of(name)
        return self._descriptors.get(name, ParameterDescriptor())

    def describe_parameters(self, names: Iterable[str]) -> list[ParameterDescriptor]:
        """Return parameters' descriptors; see describe_parameter."""
        return [self.describe_parameter(name) for name in names]

    def set_descriptor(self, name: str, descriptor: ParameterDescriptor,
                       alternative_value: object = None) -> ParameterDescriptor:
        """Replace a descriptor; its value must fit (or `alternative_value` is set).

        Raises ParameterNotDeclaredException, ParameterImmutableException,
        InvalidParameterValueException.
        """
        with self._parameters_lock:
            parameter = self._parameter_of(name)
            if self.describe_parameter(name).read_only:
                raise ParameterImmutableException(name)
            if alternative_value is not None:
                parameter = Parameter(name, value=alternative_value)
            descriptor.name, descriptor.type = name, parameter.type_.value
            result = check_descriptor(parameter, descriptor, changing=False)
            if not result.successful:
                raise InvalidParameterValueException(name, parameter.value, result.reason)
            self._store([parameter], {name: descriptor})
        return descriptor

    def _parameter_of(self, name: str) -> Parameter:
        if name in self._parameters:
            return self._parameters[name]
        if self._allow_undeclared_parameters:
            return Parameter(name)
        raise ParameterNotDeclaredException(name)

    # -- setting

    def set_parameters(self, parameter_list: list[Parameter]) -> list[SetParametersResult]:
        """Set parameters one by one; a refusal is a result.

        Raises ParameterNotDeclaredException when one is not declared.
        """
        results = []
        for parameter in parameter_list:
            self._require_declared([parameter])
            results.append(self._set_atomically([parameter]))
        return results

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> SetParametersResult:
        """Set all parameters or none; see set_parameters."""
        self._require_declared(parameter_list)
        return self._set_atomically(parameter_list)

    def _require_declared(self, parameters: list[Parameter]) -> None:
        if not all(isinstance(parameter, Parameter) for parameter in parameters):
            raise TypeError(f'expected Parameters, got {parameters!r}')
        unknown = [p.name for p in parameters if p.name not in self._parameters]
        if unknown and not self._allow_undeclared_parameters:
            raise ParameterNotDeclaredException(unknown)

    def _set_atomically(self, parameters: list[Parameter]) -> SetParametersResult:
        with self._parameters_lock:
            for adjust in self._pre_set_callbacks:
                parameters = adjust(parameters)
            if not parameters:
                return refused('parameter list cannot be empty, this might be due to a '
                               'pre-set callback modifying the original parameters list')
            parameters = [self._with_declared_array_type(p) for p in parameters]
            for parameter in parameters:
                descriptor = self._descriptors.get(parameter.name)
                if descriptor is None:
                    continue
                if parameter.type_ is Parameter.Type.NOT_SET and not descriptor.dynamic_typing:
                    return refused('Static parameter cannot be undeclared')
                result = check_descriptor(parameter, descriptor, changing=True)
                if not result.successful:
                    return result
            result = self._ask_callbacks(parameters)
            if not result.successful:
                return result
            self._store(parameters, {})
        for notice in self._post_set_callbacks:
            notice(parameters)
        return result

    def _with_declared_array_type(self, parameter: Parameter) -> Parameter:
        """Return an empty array in the type that its parameter is declared with."""
        descriptor = self._descriptors.get(parameter.name)
        if descriptor is not None and _is_empty_array(parameter, Parameter.Type(descriptor.type)):
            return Parameter(parameter.name, Parameter.Type(descriptor.type), parameter.value)
        return parameter

    def _store(self, parameters: list[Parameter],
               descriptors: dict[str, ParameterDescriptor]) -> None:
        """Keep values that were accepted, and tell about them."""
        new, changed, deleted = [], [], []
        self._descriptors.update(descriptors)
        for parameter in parameters:
            before = self._parameters.get(parameter.name)
            if parameter.type_ is Parameter.Type.NOT_SET and before is not None \
                    and parameter.name not in descriptors:
                del self._parameters[parameter.name], self._descriptors[parameter.name]
                deleted.append(before)
                continue
            was_set = before is not None and before.type_ is not Parameter.Type.NOT_SET
            self._parameters[parameter.name] = parameter
            descriptor = self._descriptors.setdefault(
                parameter.name, ParameterDescriptor(name=parameter.name, dynamic_typing=True))
            if descriptor.dynamic_typing:
                descriptor.type = parameter.type_.value
            if parameter.type_ is not Parameter.Type.NOT_SET:
                (changed if was_set else new).append(parameter)
        self._publish_parameter_event(new=new, changed=changed, deleted=deleted)

    def _publish_parameter_event(self, *, new: Iterable[Parameter] = (),
                                 changed: Iterable[Parameter] = (),
                                 deleted: Iterable[Parameter] = ()) -> None:
        if self._parameter_event_publisher is None or not self.context.ok():
            return
        event = ParameterEvent(
            stamp=self._clock.now().to_msg(), node=self.get_fully_qualified_name(),
            new_parameters=[p.to_parameter_msg() for p in new],
            changed_parameters=[p.to_parameter_msg() for p in changed],
            deleted_parameters=[p.to_parameter_msg() for p in deleted])
        if event.new_parameters or event.changed_parameters or event.deleted_parameters:
            self._parameter_event_publisher.publish(event)


def _is_empty_array(parameter: Parameter, kind: Parameter.Type) -> bool:
    """Tell whether a value is [], which has no element type, for a parameter of an array type."""
    return (parameter.type_.name.endswith('_ARRAY') and kind.name.endswith('_ARRAY')
            and parameter.type_ is not kind and not len(parameter.value))
