"""Whether an answer is right: a number, one of given choices, or a small program. Nothing of an answer is executed."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from loramixer.data.schema import Example

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_INPUTS = range(-20, 101)
_LONGEST = 4000
"""Characters of an answer that are read; programs of the generated sets have about 100."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def _rounded(value: float) -> int:
    """``round`` of one argument: rounding an integer to minus a billion places would compute ten to that power."""
    return round(value)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "abs": abs,
    "int": int,
    "round": _rounded,
}
_LARGEST = 1e15
"""Beyond it a value is no answer to any generated task; numbers that grow without end are stopped here."""


def check_answer(example: Example, text: str) -> bool:
    """Whether a written answer is the gold answer of a row.

    With choices, the choice that the text begins with is compared. A gold answer that defines a Python function is
    compared by what the functions return for 121 inputs: only arithmetic, comparisons, conditions, assignments and
    ``max``, ``min``, ``abs``, ``int``, ``round`` are understood, and the text is interpreted, never executed. Else
    the final number is compared, see :func:`answer_number`.
    """
    if example.choices is not None and example.label is not None:
        return _begins_with(text, example.choices) == example.label
    gold = _function(example.target)
    if gold is not None:
        answer = _function(text)
        return answer is not None and _same_results(gold, answer)
    number = answer_number(example.target)
    return number is not None and answer_number(text) == number


def answer_number(text: str) -> Decimal | None:
    """The final number of an answer: the one after the last ``####``, as GSM8K marks it, else the last one."""
    marked = text.rpartition("####")
    found = _NUMBER.findall(marked[2])
    if not found:
        return None
    number = found[0] if marked[1] else found[-1]
    return Decimal(number.replace(",", ""))


def _begins_with(text: str, choices: tuple[str, ...]) -> int | None:
    said = " ".join(re.findall(r"\w+", text.casefold())) + " "
    # The longest first, so that "not acceptable" is not read as "not".
    for index in sorted(range(len(choices)), key=lambda index: -len(choices[index])):
        if said.startswith(" ".join(re.findall(r"\w+", choices[index].casefold())) + " "):
            return index
    return None


def _function(text: str) -> ast.FunctionDef | None:
    """The first function that a text defines, inside a fence of Markdown or not."""
    fenced = re.search(r"```(?:python)?\n(.*?)(?:```|$)", text[:_LONGEST], flags=re.DOTALL)
    lines = (fenced[1] if fenced else text[:_LONGEST]).splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("def ")), None)
    if start is None:
        return None
    body = [lines[start]]
    for line in lines[start + 1 :]:
        if line.strip() and not line[0].isspace():
            break
        body.append(line)
    try:
        (statement,) = ast.parse("\n".join(body)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None


def _same_results(gold: ast.FunctionDef, answer: ast.FunctionDef) -> bool:
    try:
        return all(_call(gold, value) == _call(answer, value) for value in _INPUTS)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return False


def _call(function: ast.FunctionDef, value: int) -> Any:
    """What a function of one argument returns."""
    (argument,) = function.args.args
    returned = _run(function.body, {argument.arg: value})
    if returned is None:
        raise ValueError("the function returns nothing")
    return returned[0]


def _run(statements: list[ast.stmt], variables: dict[str, Any]) -> tuple[Any] | None:
    """Run statements; the returned value as a tuple of one, or None where nothing is returned."""
    for statement in statements:
        match statement:
            case ast.Return(value=ast.expr() as value):
                return (_value(value, variables),)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                variables[name] = _value(value, variables)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                variables[name] = _bounded(_operator(op)(_variable(name, variables), _value(value, variables)))
            case ast.If(test=test, body=body, orelse=otherwise):
                returned = _run(body if _value(test, variables) else otherwise, variables)
                if returned is not None:
                    return returned
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case _:
                raise ValueError(f"{type(statement).__name__} is not understood")
    return None


def _value(node: ast.expr, variables: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return _bounded(value)
        case ast.Name(id=name):
            return _variable(name, variables)
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_operator(op)(_value(left, variables), _value(right, variables)))
        case ast.UnaryOp(op=op, operand=operand):
            return _operator(op)(_value(operand, variables))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _operator(op)(_value(left, variables), _value(right, variables))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, variables) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, variables) for value in values)
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return _value(body if _value(test, variables) else otherwise, variables)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, variables) for argument in arguments))
    raise ValueError(f"{type(node).__name__} is not understood")


def _operator(op: ast.AST) -> Callable[..., Any]:
    if type(op) not in _OPERATORS:
        raise ValueError(f"{type(op).__name__} is not understood")
    return _OPERATORS[type(op)]


def _variable(name: str, variables: dict[str, Any]) -> Any:
    if name not in variables:
        raise ValueError(f"{name} has no value")
    return variables[name]


def _bounded(value: Any) -> Any:
    if not abs(value) <= _LARGEST:
        raise ValueError("the value is too large")
    return value
