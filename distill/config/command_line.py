"""Check a command line before it is composed: options, blanks around `=`, several values without `-m`."""

import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override

from distill.errors import UserError

TOGETHER = ("benchmark", "curation", "logger")  # groups of which several options are taken at once


def check_words(arguments: Sequence[str], groups: Iterable[str]) -> None:
    """Reject options that Hydra does not have, and words that are no override.

    Args:
        arguments: the command line.
        groups: configuration groups, whose names are taken for `--loss dcod`.

    Raises:
        UserError: says how the word is written, or names close matches.
    """
    parser = get_args_parser()

    def fail(message: str) -> NoReturn:
        raise UserError(f"the command line does not parse: {message}")

    parser.error = fail  # instead of printing the usage and exiting
    known, unknown = parser.parse_known_args(list(arguments))
    for option in unknown:
        _refuse_option(option, arguments, parser._option_string_actions, set(groups))
    words: list[str] = known.overrides
    for place, word in enumerate(words):
        if "=" in word[1:-1] or word[:1] == "~":
            continue
        before, after = "".join(words[:place][-1:]), "".join(words[place + 1 :][:1])
        if word == "=" and before and after:
            raise UserError(f"no blanks around =: say {before}={after}")
        if word[-1:] == "=" and after and "=" not in after:
            raise UserError(f"no blanks around =: say {word}{after}")
        if after[:1] == "=" and "=" not in word:
            raise UserError(
                f"no blanks around =: say {word}={after.strip('=') or ''.join(words[place + 2 :][:1])}"
            )
        if "=" not in word:
            said = f"say {word}={after if after and '=' not in after else 'VALUE'}" if word in groups else ""
            raise UserError(f"{word}: a setting is written key=value{f': {said}' if said else ''}")


def _refuse_option(option: str, arguments: Sequence[str], known: Iterable[str], groups: set[str]) -> NoReturn:
    if not option.startswith("-"):
        raise UserError(f"{option}: settings stand next to each other, behind options such as -m")
    name, equals, value = option.lstrip("-").partition("=")
    place = list(arguments).index(option)
    if not equals:
        value = next((word for word in arguments[place + 1 : place + 2] if word[:1] != "-"), "")
    dotted = name.replace("-", "_")
    near = difflib.get_close_matches(option, known, n=1, cutoff=0.75)
    if near and dotted not in groups:
        raise UserError(f"{option}: there is no such option; did you mean {near[0]}?")
    if not value and dotted not in groups:
        raise UserError(f"{option}: there is no such option; --help and --hydra-help list them")
    raise UserError(
        f"{option}: there is no such option; settings have no dashes: say {dotted}={value or 'VALUE'}"
    )


def check_one_value(overrides: Iterable[Override], groups: Iterable[str], command: str) -> None:
    """Reject overrides with several values in a command without `-m`.

    Raises:
        UserError: says how to run each value, and how to take them together.
    """
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key, line = override.key_or_group, override.input_line
        values = str(line).partition("=")[2]
        instead = f"; a list is written {key}=[{values}], and a text with a comma in quotes inside quotes"
        if key in groups:
            instead = f"; to take them together, say {key}=[{values}]" if key in TOGETHER else ""
        raise UserError(
            f"{line} has several values: to run each of them, add -m ({command} -m {line}){instead}"
        )
