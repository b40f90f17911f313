"""Format settings as command-line overrides, with quoting."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*")
_OTHERWISE_READ = {"true", "false", "null", "nan", "inf"}


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """One override per setting: `{"out": Path("a b")}` becomes `out="a b"`."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def quoted(value: str) -> str:
    """Quote a text as a value on Hydra's command line."""
    # A backslash needs escaping only before a quote, the closing quote included: double it there.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    closing = len(escaped) - len(escaped.rstrip("\\"))
    return '"' + escaped + "\\" * closing + '"'


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        text = str(value)
        plain = _PLAIN.fullmatch(text) and text.lower() not in _OTHERWISE_READ
        return text if plain else quoted(text)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_value(own)}" for key, own in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_value, value)) + "]"
    return repr(value)
