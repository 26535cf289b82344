"""tyro's parser with its errors as one line for a person. tyro says what was wrong only in a module of its own; else it
prints it in a box of several lines.

tests/unit/project/test_borrowed.py names each thing that a new version of tyro no longer has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
from tyro import _errors as tyro_errors

from infra.errors import UserError

_PYTHONS_WORDS = {
    r"invalid literal for int\(\) with base 10: ('.*?')": "whole number",
    r"could not convert string to float: ('.*?')": "number",
}
Parsed = TypeVar("Parsed")


def parse_known(default: Parsed, arguments: Sequence[str], *, prog: str, description: str) -> tuple[Parsed, list[str]]:
    """`default`, a dataclass, with what the arguments say; and the arguments that it does not know.

    Raises:
        UserError: an argument is missing, or its value is none.
    """
    with tyro_errors.on_parse_error(_refuse):
        parsed, unknown = tyro.cli(
            type(default),
            args=list(arguments),
            default=default,
            prog=prog,
            description=description,
            return_unknown_args=True,
            config=(tyro.conf.AvoidSubcommands,),
        )
    return parsed, unknown


def _refuse(event: tyro_errors.ParseErrorEvent) -> None:
    """Say in one line what tyro would say in a box of several."""
    if isinstance(event, tyro_errors.BadValue):
        value = f" {event.offending_value!r}" if event.offending_value else ""
        reason = "needs a value" if event.reason == "too_few_values" else "takes no value"
        raise UserError(f"{_name(event.argument)}{value}: {reason}")
    if isinstance(event, tyro_errors.MissingArgs):
        arguments = [missing.arg for missing in event.missing_arguments]
        needs = [f"{_name(argument)} ({argument.field.helptext().rstrip('.')})" for argument in arguments]
        raise UserError(f"{event.prog} needs {', '.join(needs)}")
    if isinstance(event, tyro_errors.InvalidChoice):
        choices = ", ".join(event.choices)
        raise UserError(f"{_name(event.argument)} {event.value!r}: choose from {choices}")
    if isinstance(event, tyro_errors.InstantiationFailure):
        name = "" if event.argument is None else f"{_name(event.argument)}: "
        raise UserError(name + _in_plain_words(" ".join(event.message.split())))


def _name(argument: Any) -> str:
    return argument.lowered.name_or_flags[0]


def _in_plain_words(message: str) -> str:
    """What was expected, where Python's own words say what it tried."""
    for pattern, words in _PYTHONS_WORDS.items():
        if match := re.search(pattern, message):
            return f"{match[1]} is no {words}"
    return message
