# ruff: noqa: N818 - the names are rclpy's
"""The errors that rclpy raises."""


class NotInitializedException(Exception):
    """A context is used that is not initialized."""

    def __init__(self, *args: object) -> None:
        super().__init__('rclpy.init() has not been called', *args)


class NoTypeSupportImportedException(Exception):
    """A type support that was not imported."""


class TypeSupportNotFound(Exception):
    """A class is given that is no message or service."""

    def __init__(self, *args: object) -> None:
        super().__init__('Failed to find type support for a message or service', *args)


class NameValidationException(Exception):
    """A name of a node, topic or service is not valid."""

    def __init__(self, name_type: str, name: str, error_msg: str, invalid_index: int) -> None:
        self.name_type, self.name = name_type, name
        self.error_msg, self.invalid_index = error_msg, invalid_index
        super().__init__(f"Invalid {name_type}: {error_msg}:\n  '{name}'\n   "
                         f'{" " * invalid_index}^')


class InvalidNamespaceException(NameValidationException):
    """A namespace is not valid."""

    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__('namespace', name, error_msg, invalid_index)


class InvalidNodeNameException(NameValidationException):
    """A node's name is not valid."""

    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__('node name', name, error_msg, invalid_index)


class InvalidTopicNameException(NameValidationException):
    """A topic's name is not valid."""

    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__('topic name', name, error_msg, invalid_index)


class InvalidServiceNameException(NameValidationException):
    """A service's name is not valid."""

    def __init__(self, name: str, error_msg: str, invalid_index: int) -> None:
        super().__init__('service name', name, error_msg, invalid_index)


class ParameterException(Exception):
    """What all errors about parameters share."""

    def __init__(self, error_msg: str, parameters: object, *args: object) -> None:
        self._error_msg = error_msg
        super().__init__(error_msg, parameters, *args)

    def __str__(self) -> str:
        return f'{self._error_msg}: {self.args[1]!r}'


class ParameterNotDeclaredException(ParameterException):
    """A parameter is used that is not declared."""

    def __init__(self, parameters: object, *args: object) -> None:
        super().__init__('Invalid access to undeclared parameter(s)', parameters, *args)


class ParameterAlreadyDeclaredException(ParameterException):
    """A parameter is declared twice."""

    def __init__(self, parameters: object, *args: object) -> None:
        super().__init__('Parameter(s) already declared', parameters, *args)


class InvalidParameterException(ParameterException):
    """A parameter's name is not valid."""

    def __init__(self, parameter: object, *args: object) -> None:
        super().__init__('Invalid parameter name', parameter, *args)


class InvalidParameterTypeException(ParameterException):
    """A parameter's value has another type than was declared."""

    def __init__(self, desired: object, expected_type: str, *args: object) -> None:
        super().__init__(
            f"Trying to set parameter '{desired.name}' to '{desired.value}' of type "
            f"'{desired.type_.name}', expecting type '{expected_type}'", desired.name, *args)

    def __str__(self) -> str:
        return self._error_msg


class InvalidParameterValueException(ParameterException):
    """A parameter's value is refused."""

    def __init__(self, parameter: object, value: object, reason: str, *args: object) -> None:
        super().__init__(f"Invalid parameter value ({value}) for parameter '{parameter}'. "
                         f'Reason: {reason}', parameter, *args)

    def __str__(self) -> str:
        return self._error_msg


class ParameterImmutableException(ParameterException):
    """A read-only parameter is changed."""

    def __init__(self, parameter: object, *args: object) -> None:
        super().__init__('Attempted to modify read-only parameter', parameter, *args)


class ParameterUninitializedException(ParameterException):
    """A parameter is read that has no value."""

    def __init__(self, parameter: object, *args: object) -> None:
        super().__init__('The parameter is not initialized', parameter, *args)


class ROSInterruptException(Exception):
    """A sleep is cut short by the end of the context."""

    def __init__(self, *args: object) -> None:
        super().__init__('rclpy.shutdown() has been called', *args)


class InvalidHandle(Exception):
    """An entity is used after it was destroyed."""
