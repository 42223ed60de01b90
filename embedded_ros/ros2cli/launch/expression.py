"""The restricted Python expressions of `$(eval …)`: values in, one value out, nothing called
that could reach outside.

launch's own `eval` runs any Python. Here an expression is walked as a syntax tree that knows
literals, arithmetic, comparisons, logic, `a if c else b`, and a few conversions.
"""

import ast
import operator
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 2000

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b, ast.Is: operator.is_, ast.IsNot: operator.is_not}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    'int': int, 'float': float, 'str': str, 'bool': bool, 'len': len, 'min': min, 'max': max,
    'abs': abs, 'round': round}
NAMES = {'true': True, 'false': False}


def evaluate(expression: str) -> str:
    """Return the text of the expression's value, as `str` gives it (`True`, `1.5`, …).

    Raises ValueError for a syntax error and for everything outside the restricted form.
    """
    if len(expression) > MAX_LENGTH:
        raise ValueError(f'expression of {len(expression)} characters; at most {MAX_LENGTH}')
    try:
        return str(_value(ast.parse(expression.strip(), mode='eval').body))
    except SyntaxError as error:
        raise ValueError(f'syntax error: {error.msg}') from error
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.BoolOp(op=logic, values=values):
            return _logic(isinstance(logic, ast.And), values)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            return UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
            return _binary(op, _value(left), _value(right))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(left), *(_value(other) for other in comparators)]
            return all(COMPARE[type(op)](values[i], values[i + 1]) for i, op in enumerate(ops))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _value(body if _value(test) else orelse)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(argument) for argument in arguments))
    raise ValueError(f'{ast.unparse(node)!r} is outside the restricted form: literals, '
                     f'arithmetic, comparisons, and/or/not, if/else, {", ".join(FUNCTIONS)}')


def _logic(conjunction: bool, operands: list[ast.expr]) -> Any:
    """Python's `and`/`or`: the first operand that decides, else the last."""
    value: Any = conjunction
    for operand in operands:
        value = _value(operand)
        if bool(value) != conjunction:
            break
    return value


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    """Apply an operator; text may only be added, since `'a' * n` and `'…' % x` grow at will."""
    plain = (int, float)
    if not isinstance(op, ast.Add) and not (isinstance(left, plain) and isinstance(right, plain)):
        raise ValueError(f'operator on {left!r} and {right!r}: numbers expected')
    return BINARY[type(op)](left, right)
