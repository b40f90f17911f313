"""Settings of several teachers (`model.teachers`), read from the configuration without importing torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import UserError

EQUAL = "equal"
_KEYS = ("model", "dtype", "revision")
_IN_MEMORY = ("all", "one")


@dataclass(frozen=True)
class TeacherSettings:
    """Several teachers, as configured.

    Attributes:
        models: for each name, the keys of `model` that name one teacher: `teacher`, `teacher_dtype`,
            `teacher_revision`.
        weights: of their mixture, by name, with the sum 1; None: each trace learns from one of them.
        one_at_a_time: whether at most one is in the device's memory.
    """

    models: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, float] | None = None
    one_at_a_time: bool = False


def read_teachers(model: Mapping[str, Any], words: Iterable[str] = ()) -> TeacherSettings | None:
    """Validate `model.teachers` and the keys beside it; None if there are not several teachers.

    Args:
        model: `model` of the configuration.
        words: the command line.

    Raises:
        UserError: a value is invalid, or `model.teacher` is named on the command line as well.
    """
    named, weights, held = (model.get(key) for key in ("teachers", "teacher_weights", "teachers_in_memory"))
    if held is not None and held not in _IN_MEMORY:
        raise UserError(f"model.teachers_in_memory={held!r} is not one of {', '.join(_IN_MEMORY)}")
    if not named:
        if weights is not None:
            raise UserError(
                f"model.teacher_weights={weights} mixes several teachers, and model.teachers names none: "
                f"name them, 'model.teachers={{math: <model>, code: <model>}}'"
            )
        return None
    if not isinstance(named, Mapping):
        raise UserError(
            f"model.teachers={named!r} must give each teacher a name: "
            f"'model.teachers={{math: <model>, code: <model>}}'; a single one is model.teacher="
        )
    given = [word.lstrip("+") for word in words]
    if single := [word for word in given if word.startswith("model.teacher=") and word[14:] != "null"]:
        raise UserError(
            f"{single[0]}: model.teachers ({', '.join(map(str, named))}) stands in its place: give this one "
            f"a name in model.teachers too, or leave one of the two out"
        )
    models = {str(name): _read_one(str(name), entry, model) for name, entry in named.items()}
    return TeacherSettings(models, _read_weights(weights, list(models)), held == "one")


def _read_one(name: str, entry: Any, model: Mapping[str, Any]) -> dict[str, Any]:
    usual = {"dtype": model.get("teacher_dtype"), "revision": model.get("teacher_revision")}
    entry = dict(entry) if isinstance(entry, Mapping) else {"model": entry}
    key = f"model.teachers.{name}"
    for unknown in (one for one in entry if one not in _KEYS):
        raise UserError(f"{key}.{unknown}: a teacher has no such key (keys: {', '.join(_KEYS)})")
    spec = entry.get("model")
    listed = spec if isinstance(spec, list) else [spec]
    if not listed or not all(isinstance(one, str) and one for one in listed):
        raise UserError(f"{key}={spec!r} is no model: give a hub id, a folder or a GGUF file")
    found = usual | {one: value for one, value in entry.items() if value is not None}
    return {"teacher": spec, "teacher_dtype": found["dtype"], "teacher_revision": found["revision"]}


def _read_weights(weights: Any, names: list[str]) -> dict[str, float] | None:
    if weights is None:
        return None
    if weights == EQUAL:
        return dict.fromkeys(names, 1 / len(names))
    if not isinstance(weights, Mapping):
        raise UserError(
            f"model.teacher_weights={weights!r} must be {EQUAL}, or a weight for each of {', '.join(names)}"
        )
    found = {str(name): value for name, value in weights.items()}
    if set(found) != set(names):
        raise UserError(
            f"model.teacher_weights names {', '.join(found) or 'none'}, and model.teachers "
            f"{', '.join(names)}: give each of these a weight, or take model.teacher_weights={EQUAL}"
        )
    for name, value in found.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise UserError(
                f"model.teacher_weights.{name}={value!r} must be a positive number; a teacher without a "
                f"share is left out of model.teachers"
            )
    total = math.fsum(found.values())
    return {name: float(found[name]) / total for name in names}
