"""When a value may be given to a parameter: its descriptor's type, ranges and read-only flag."""

import math

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult

from rclpy.parameter import Parameter

RANGE_TOLERANCE = 1e-9  # relative: how far from a floating-point limit or step counts as on it


def refused(reason: str) -> SetParametersResult:
    """Return the result of a change that is not made."""
    return SetParametersResult(successful=False, reason=reason)


ACCEPTED = SetParametersResult(successful=True)


def check_descriptor(parameter: Parameter, descriptor: ParameterDescriptor, *,
                     changing: bool) -> SetParametersResult:
    """Say whether a value fits its descriptor.

    `changing`: the parameter has a value already, so that read-only ones must not be set.
    """
    if changing and descriptor.read_only:
        return refused('Trying to set a read-only parameter: '
                       f'{parameter.name}.')
    if not descriptor.dynamic_typing and parameter.type_ is not Parameter.Type.NOT_SET \
            and descriptor.type != parameter.type_.value:
        return refused(
            f"Wrong parameter type, expected '{Parameter.Type(descriptor.type)}' "
            f"got '{parameter.type_}'")
    if parameter.type_ is Parameter.Type.INTEGER and descriptor.integer_range:
        return _check_integer(parameter, descriptor.integer_range[0])
    if parameter.type_ is Parameter.Type.DOUBLE and descriptor.floating_point_range:
        return _check_double(parameter, descriptor.floating_point_range[0])
    return ACCEPTED


def _check_integer(parameter: Parameter, limits: object) -> SetParametersResult:
    low, high = sorted((limits.from_value, limits.to_value))
    value = parameter.value
    if not low <= value <= high:
        return refused(f'Parameter {parameter.name} out of range. Min: {low}, Max: {high}, '
                       f'value: {value}')
    if limits.step and value != high and (value - low) % limits.step:
        return refused(f'The parameter value for {parameter.name} is not a valid step. '
                       f'Min: {low}, max: {high}, value: {value}, step: {limits.step}')
    return ACCEPTED


def _check_double(parameter: Parameter, limits: object) -> SetParametersResult:
    low, high = sorted((limits.from_value, limits.to_value))
    value = parameter.value

    def near(one: float, other: float) -> bool:
        return math.isclose(one, other, rel_tol=RANGE_TOLERANCE)

    if near(value, low) or near(value, high):
        return ACCEPTED
    if not low <= value <= high:  # false for NaN
        return refused(f'Parameter {parameter.name} out of range. Min: {low}, Max: {high}, '
                       f'value: {value}')
    if limits.step:
        nearest = low + round((value - low) / limits.step) * limits.step
        if not near(value, nearest):
            return refused(f'The parameter value for {parameter.name} is not close enough to a '
                           f'valid step. Min: {low}, max: {high}, value: {value}, '
                           f'step: {limits.step}')
    return ACCEPTED
