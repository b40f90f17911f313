"""Tests of the sampling fields that a server would otherwise take from the model's generation_config.json."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from chat_stub import Stub
from test_server import ask

from distill.errors import UserError
from distill.generation.neutral import NEUTRAL

PROBLEMS = ["1+2=", "3+4=", "5+6=", "2+2="]
# How servers refuse a field that they do not know, in their own words; given those that they do not know.
REFUSALS: dict[str, Callable[[list[str]], tuple[int, Any]]] = {
    "openai": lambda names: (400, {"error": {"message": f"Unknown parameter: '{names[0]}'."}}),
    "azure": lambda names: (400, {"error": {"message": f"Unrecognized request argument: {names[0]}"}}),
    "groq": lambda names: (400, {"error": {"message": f"property '{names[0]}' is unsupported"}}),
    "gemini": lambda names: (
        400,
        [
            {
                "error": {
                    "message": "\n".join(f'Invalid JSON payload received. Unknown name "{n}"' for n in names)
                }
            }
        ],
    ),
    "mistral": lambda names: (
        422,
        {"detail": [{"loc": ["body", n], "msg": "Extra inputs are not permitted"} for n in names]},
    ),
    "transformers": lambda names: (422, {"detail": f"Unexpected fields in the request: {set(names)}"}),
    "xai": lambda names: (400, {"error": f"Model does not support parameter {camel(names[0])}."}),
}


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


def refusing(stub: Stub, refusal: Callable[[list[str]], tuple[int, Any]], *unknown: str) -> None:
    """Let the stub refuse requests with unknown fields."""

    def fault(number: int) -> tuple[int, dict[str, str], str] | None:
        if not (names := [name for name in unknown if name in stub.seen[number]]):
            return None
        status, body = refusal(names)
        return status, {}, json.dumps(body)

    stub.fault = fault


@pytest.mark.parametrize("server", REFUSALS)
def test_fields_that_a_server_does_not_know_are_left_out_with_a_word(
    server: str, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = ("top_k", "min_p", "repetition_penalty", "presence_penalty")
    refusing(stub, REFUSALS[server], *unknown)
    written = ask(stub, *PROBLEMS, concurrency=1)
    assert all(one.finished for one in written)
    answered = stub.seen[-len(PROBLEMS) :]
    assert {name for body in answered for name in NEUTRAL if name in body} == {"frequency_penalty"}
    # Only the first request is sent several times, once a refusal.
    assert len(stub.seen) <= len(PROBLEMS) + len(unknown)
    said = capsys.readouterr().err
    assert said.count("does not take") == 1
    assert f"does not take {', '.join(unknown)}, so that it samples" in said


def test_requests_under_way_at_the_same_time_find_the_same_fields(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing(stub, REFUSALS["openai"], "top_k", "min_p")
    assert all(one.finished for one in ask(stub, *PROBLEMS, concurrency=4))
    assert capsys.readouterr().err.count("does not take") == 1


def test_top_k_is_off_in_the_way_that_the_server_knows(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(number: int) -> tuple[int, dict[str, str], str] | None:
        if stub.seen[number]["top_k"] >= 0:
            return None
        return 400, {}, json.dumps({"error": {"message": "top_k must be a non-negative integer"}})

    stub.fault = fault
    assert all(one.finished for one in ask(stub, *PROBLEMS, concurrency=1))
    assert [body["top_k"] for body in stub.seen] == [-1, 0, 0, 0, 0]
    assert not capsys.readouterr().err


def test_a_refusal_for_another_reason_is_not_sent_again(stub: Stub) -> None:
    stub.fault = lambda number: (400, {}, '{"error": {"message": "the prompt is too long"}}')
    with pytest.raises(UserError, match="the prompt is too long"):
        ask(stub, PROBLEMS[0])
    assert len(stub.seen) == 1


def test_a_field_that_the_user_sets_is_the_users(stub: Stub) -> None:
    refusing(stub, REFUSALS["groq"], "min_p")
    with pytest.raises(UserError, match=r"min_p.*is unsupported"):
        ask(stub, PROBLEMS[0], extra={"min_p": 0.1})
    stub.seen.clear()
    ask(stub, PROBLEMS[0], extra={"min_p": None, "repetition_penalty": 1.2})
    (body,) = stub.seen
    assert "min_p" not in body
    assert body["repetition_penalty"] == 1.2
    assert body["top_k"] == -1


def test_once_answered_the_fields_stay(stub: Stub) -> None:
    stub.fault = lambda number: (400, {}, '{"error": "top_k and min_p: no"}') if number > 1 else None
    with pytest.raises(UserError, match="no"):
        ask(stub, *PROBLEMS, concurrency=1)
    assert len(stub.seen) == 3
