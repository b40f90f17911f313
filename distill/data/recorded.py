"""Check and read the token ids, log-probs, weights and conversations that a record of a trace set holds."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.data.conversations import check_unicode, from_json, read_tools, read_turns
from distill.data.trace import Example, Recorded
from distill.errors import UserError

_REQUIRED = ("completion_ids", "prompt_ids", "tokenizer", "finished")
_LARGEST = 2**31 - 1  # of an int32
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)  # a whole number may be larger than any float
# Log-softmax in low precision may round to slightly above 0.
_ROUNDING = 1e-2


def recorded_tokens(record: Mapping[str, Any], where: str) -> Recorded | None:
    """The tokens of a record of a trace set; None for any other record.

    Args:
        record: of a trace set or any data file.
        where: place of the record, for error messages.

    Raises:
        UserError: a value cannot be right, such as a negative weight or a positive log-prob.
    """
    if any(record.get(name) is None for name in _REQUIRED):
        return None
    completion_ids = _ids(record, "completion_ids", where)
    learn_from = _value(record, "learn_from", 0)
    if not isinstance(learn_from, int) or isinstance(learn_from, bool) or learn_from < 0:
        raise _wrong(where, "learn_from", learn_from, "must be a whole number, at least 0")
    if learn_from and learn_from >= len(completion_ids):
        raise _wrong(
            where, "learn_from", learn_from, f"leaves none of the {len(completion_ids)} tokens to learn"
        )
    weight = _value(record, "weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight <= _LARGEST_WEIGHT:
        raise _wrong(where, "weight", weight, "must be a number, at least 0")
    for name in ("finished", "correct"):
        if not isinstance(record.get(name), bool | None):
            raise _wrong(where, name, record[name], "must be true or false")
    for name in ("tokenizer", "teacher", "teacher_revision", "teacher_dtype"):
        if not isinstance(record.get(name), str | None):
            raise _wrong(where, name, record[name], "must be text")
    by = record.get("teacher_revision"), record.get("teacher_dtype")
    return Recorded(
        record["tokenizer"],
        _ids(record, "prompt_ids", where),
        completion_ids,
        record["finished"],
        record.get("correct"),
        None if None in by else (str(by[0]), str(by[1])),
        _logprobs(record, where, len(completion_ids)),
        record.get("teacher"),
        float(weight),
        learn_from,
    )


def conversation_text(example: Example) -> str | None:
    """The column `conversation`: JSON of what an example has beside its problem; None: it has nothing."""
    has = {"messages": example.messages, "system": example.system, "tools": example.tools}
    has = {name: value for name, value in has.items() if value}
    return json.dumps(has, ensure_ascii=False, sort_keys=True) if has else None


def recorded_conversation(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `messages`, `system` and `tools` of an example, of `conversation_text`; {} without the column.

    Raises:
        UserError: the column holds something else.
    """
    if record.get("conversation") is None:
        return {}
    has = from_json(record["conversation"])
    if not isinstance(has, Mapping) or not has.keys() <= {"messages", "system", "tools"}:
        raise _wrong(where, "conversation", record["conversation"], "must be JSON with messages")
    system = has.get("system")
    if not isinstance(system, str | None):
        raise _wrong(where, "conversation", system, "has a system message that is no text")
    return {
        "messages": tuple(read_turns(has["messages"], where)[0]) if "messages" in has else None,
        "system": system and check_unicode(system, where),
        "tools": read_tools(has.get("tools"), where),
    }


def _value(record: Mapping[str, Any], name: str, default: Any) -> Any:
    """A column's value; a file of an earlier version lacks the column, or has null in it."""
    return default if record.get(name) is None else record[name]


def _ids(record: Mapping[str, Any], name: str, where: str) -> np.ndarray:
    ids = _array(record[name], name, where)
    if ids.size and ids.dtype.kind not in "iu":
        raise _wrong(where, name, record[name], "must be a list of token ids")
    if ids.size and not 0 <= ids.min() <= ids.max() <= _LARGEST:
        raise _wrong(where, name, int(ids.min() if ids.min() < 0 else ids.max()), "is no token id")
    return ids.astype(np.int32)


def _logprobs(record: Mapping[str, Any], where: str, count: int) -> np.ndarray | None:
    if record.get("teacher_logprobs") is None:
        return None
    values = _array(record["teacher_logprobs"], "teacher_logprobs", where)
    if values.size and values.dtype.kind not in "iuf":
        raise _wrong(where, "teacher_logprobs", record["teacher_logprobs"], "must be a list of numbers")
    if len(values) != count:
        raise UserError(f"{where}: teacher_logprobs has {len(values)} values for {count} completion tokens")
    if bad := [float(value) for value in values[~(np.isfinite(values) & (values <= _ROUNDING))]][:1]:
        raise _wrong(where, "teacher_logprobs", bad[0], "is no log-prob: it must be finite and at most 0")
    return values.astype(np.float32)


def _array(value: Any, name: str, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:  # lists of several lengths
        raise _wrong(where, name, value, "must be a list of numbers") from error
    if array.ndim != 1:
        raise _wrong(where, name, value, "must be a list of numbers")
    return array


def _wrong(where: str, name: str, value: object, why: str) -> UserError:
    return UserError(f"{where}: {name} {value!r:.60} {why}; the record is damaged, write it again")
