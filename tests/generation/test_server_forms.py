"""Tests of the forms in which servers answer, refuse and fail, as their public documentation has them.

- vLLM: docs.vllm.ai/en/latest/features/reasoning_outputs.html; github.com/vllm-project/vllm/pull/2976
- SGLang: docs.sglang.ai/basic_usage/openai_api_completions.html, advanced_features/separate_reasoning.html
- llama.cpp: github.com/ggml-org/llama.cpp/pull/15780, issues/19774 (context errors under 500, and under 200)
- Ollama: github.com/ollama/ollama/blob/main/docs/openai.md (finish_reason, reasoning)
- TGI: huggingface.co/docs/text-generation-inference (eos_token, stop_sequence, length)
- LM Studio: lmstudio.ai/docs/developer (eosFound, maxPredictedTokensReached)
- OpenAI: platform.openai.com/docs/api-reference/chat/object, docs/guides/error-codes
- Anthropic: platform.claude.com/docs/en/build-with-claude/handling-stop-reasons
- Gemini: ai.google.dev/api/generate-content#FinishReason, ai.google.dev/gemini-api/docs/openai
- OpenRouter: openrouter.ai/docs/api/reference/errors-and-debugging, docs/use-cases/reasoning-tokens
- DeepSeek: api-docs.deepseek.com/api/create-chat-completion (insufficient_system_resource)
- Mistral: docs.mistral.ai/capabilities/reasoning (content as parts, model_length)
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from chat_stub import Stub, completion
from test_generate import run
from test_server import ask, words

from distill.errors import UserError
from distill.generation.chat_answers import Choice, ServerFault, UnknownForm, read_choice
from distill.generation.chat_client import ChatClient
from distill.generation.chat_faults import asked_to_wait, error_within, is_permanent, sentence
from distill.generation.sampling import Sampling
from distill.io.secrets import without_secrets

DONE, THOUGHT = Choice("#3", "", True), Choice("#3", "1+2=3;", True)


def choice(message: Any, reason: Any = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason, **more}]}


def chat(stub: Stub) -> list[Choice | None]:
    """What is read of the stub's answer to one request."""
    client = ChatClient(stub.url, "big", wait=0.0)
    body = client.body([{"role": "user", "content": "1+2="}], Sampling(max_new_tokens=50), 0)
    return [found for _, found in client.ask([body], lambda _, answer: read_choice(answer))]


FORMS: dict[str, tuple[Mapping[str, Any], Choice]] = {
    "vllm": (
        choice(
            {"role": "assistant", "content": "#3", "reasoning": "1+2=3;", "tool_calls": [], "refusal": None},
            stop_reason=None,
            token_ids=[5, 6],
        )
        | {"prompt_token_ids": [1], "kv_transfer_params": None},
        Choice("#3", "1+2=3;", True, [5, 6]),
    ),
    "vllm_stop_token": (choice({"content": "#3"}, "stop", stop_reason=128009), DONE),
    "vllm_old": (
        choice({"content": "\n\n#3", "reasoning_content": "1+2=3;"}),
        Choice("\n\n#3", "1+2=3;", True),
    ),
    "sglang": (
        choice(
            {"content": "#3", "reasoning_content": "1+2=3;", "tool_calls": None}, "stop", matched_stop=151645
        ),
        THOUGHT,
    ),
    "sglang_native_reason": (
        choice({"content": "#3"}, {"type": "length", "length": 16}),
        Choice("#3", "", False),
    ),
    "llama_cpp": (
        choice({"content": "#3", "reasoning_content": "1+2=3;"}) | {"timings": {"cache_n": 0}},
        THOUGHT,
    ),
    "ollama": (choice({"content": "#3", "reasoning": "1+2=3;"}), THOUGHT),
    "ollama_thinking": (choice({"content": "#3", "thinking": "1+2=3;"}), THOUGHT),
    "tgi": (choice({"content": "#3"}, "eos_token"), DONE),
    "tgi_stop": (choice({"content": "#3"}, "stop_sequence"), DONE),
    "lm_studio": (choice({"content": "#3", "reasoning_content": ""}, "eosFound"), DONE),
    "lm_studio_cut": (choice({"content": "#3"}, "maxPredictedTokensReached"), Choice("#3", "", False)),
    "openai": (choice({"content": "#3", "refusal": None, "annotations": []}, logprobs=None), DONE),
    "openai_parts": (
        choice({"content": [{"type": "text", "text": "#"}, {"type": "text", "text": "3"}]}),
        DONE,
    ),
    "output_text": (choice({"content": [{"type": "output_text", "text": "#3", "annotations": []}]}), DONE),
    "text_value": (choice({"content": [{"type": "text", "text": {"value": "#3"}}]}), DONE),
    "strings": (choice({"content": ["#", "3"]}), DONE),
    "one_part": (choice({"content": {"type": "text", "text": "#3"}}), DONE),
    "anthropic": (choice({"content": "#3"}, "end_turn"), DONE),
    "anthropic_blocks": (
        choice(
            {
                "content": [
                    {"type": "thinking", "thinking": "1+2=3;", "signature": "x"},
                    {"type": "redacted_thinking", "data": "secret"},
                    {"type": "text", "text": "#3"},
                ]
            },
            "end_turn",
        ),
        THOUGHT,
    ),
    "litellm": (
        choice(
            {
                "content": "#3",
                "reasoning_content": "1+2=3;",
                "thinking_blocks": [{"type": "thinking", "thinking": "1+2=3;", "signature": "x"}],
            }
        ),
        THOUGHT,
    ),
    "gemini": (choice({"content": "#3"}, "STOP"), DONE),
    "gemini_cut": (choice({"content": "#3"}, "FINISH_REASON_MAX_TOKENS"), Choice("#3", "", False)),
    "gemini_parts": (
        choice({"content": {"parts": [{"text": "1+2=3;", "thought": True}, {"text": "#3"}]}}, "STOP"),
        THOUGHT,
    ),
    "openrouter": (
        choice(
            {
                "content": "#3",
                "reasoning": "1+2=3;",
                "reasoning_details": [{"type": "reasoning.text", "text": "1+2=3;", "index": 0}],
            },
            native_finish_reason="STOP",
        ),
        THOUGHT,
    ),
    "openrouter_details": (
        choice(
            {
                "content": "#3",
                "reasoning": None,
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "1+2=3;"},
                    {"type": "reasoning.encrypted", "data": "secret"},
                ],
            },
            None,
            native_finish_reason="completed",
        ),
        THOUGHT,
    ),
    "deepseek": (choice({"content": "#3", "reasoning_content": "1+2=3;"}), THOUGHT),
    "mistral": (
        choice(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "1+2=3;"}], "closed": True},
                    {"type": "text", "text": "#3"},
                ]
            }
        ),
        THOUGHT,
    ),
    "reasoning_null": (choice({"content": "#3", "reasoning_content": None, "reasoning": "1+2=3;"}), THOUGHT),
    "reasoning_list": (choice({"content": "#3", "reasoning": ["1+2", "=3;"]}), THOUGHT),
    "several_choices": (
        {
            "choices": [
                {"index": 1, "message": {"content": "#4"}, "finish_reason": "stop"},
                {"index": 0, "message": {"content": "#3"}, "finish_reason": "stop"},
                {"index": 0, "message": {"content": "#3"}, "finish_reason": "stop"},
            ]
        },
        DONE,
    ),
    "no_index": ({"choices": [{"message": {"content": "#3"}, "finish_reason": "stop"}]}, DONE),
    "no_reason": ({"choices": [{"message": {"content": "#3"}}]}, DONE),
    "refusal": (choice({"content": None, "refusal": "I can't."}), Choice("", "", False)),
    "null_after_a_thought": (choice({"content": None, "reasoning": "1+2=3;"}), Choice("", "1+2=3;", True)),
    "null": (choice({"content": None}), Choice("", "", True)),
    "no_parts": (choice({"content": []}), Choice("", "", True)),
}


@pytest.mark.parametrize("server", FORMS)
def test_every_servers_completion_is_read(server: str) -> None:
    answer, expected = FORMS[server]
    assert read_choice(json.loads(json.dumps(answer))) == expected


ENDED = (
    *(
        "stop",
        "STOP",
        "Stop",
        " stop ",
        "eos",
        "eos_token",
        "EOS_TOKEN",
        "end_turn",
        "endTurn",
        "end_of_turn",
    ),
    *("stop_sequence", "StopSequence", "complete", "COMPLETE", "completed", "done", "finished", "eosFound"),
    *(
        "stopStringFound",
        "eog_token",
        "end",
        "success",
        "FINISH_REASON_STOP",
        "tool_calls",
        "word",
    ),
)
CUT = (
    *(
        "length",
        "LENGTH",
        "max_tokens",
        "MAX_TOKENS",
        "maxTokens",
        "max-tokens",
        "max_length",
        "max_new_tokens",
    ),
    *(
        "model_length",
        "token_limit",
        "max_output_tokens",
        "FINISH_REASON_MAX_TOKENS",
        "out_of_tokens",
        "limit",
    ),
    *("model_context_window_exceeded", "contextLengthReached", "maxPredictedTokensReached", "contextFull"),
    *(
        "incomplete",
        "truncated",
        "ERROR_LIMIT",
        "pause_turn",
        "OTHER",
        "content_filter",
        "SAFETY",
        "RECITATION",
    ),
    *(
        "PROHIBITED_CONTENT",
        "BLOCKLIST",
        "SPII",
        "LANGUAGE",
        "MODEL_ARMOR",
        "refusal",
        "guardrail_intervened",
    ),
    *("timeout", "TIMED_OUT", "requestTimeout", "deadline_exceeded", "budget", "thinkingBudgetReached"),
    *("repetition", "REPETITION_DETECTED", "loop_detected", "early_stop", "unfinished", "not_stopped"),
)
FAILED = (
    *("error", "ERROR", "abort", "aborted", "cancelled", "insufficient_system_resource", "load", "unload"),
    *("engine_overloaded", "EngineOverloaded", "preempted", "server_shutdown", "out_of_memory"),
)


def test_a_completion_is_finished_by_the_words_of_an_end_and_not_by_those_of_a_limit_or_a_fault() -> None:
    for word in ENDED:
        assert read_choice(choice({"content": "#3"}, word)).finished, word
    for word in CUT:
        assert not read_choice(choice({"content": "#3"}, word)).finished, word
    for word in FAILED:
        with pytest.raises(ServerFault, match=word):
            read_choice(choice({"content": "#"}, word))


def test_an_unknown_word_counts_as_cut_off_and_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        assert not read_choice(choice({"content": "#3"}, "unheard_of")).finished
    assert capsys.readouterr().err.splitlines() == [
        "the server ends completions for a reason that is not known, finish_reason='unheard_of': they count "
        "as cut off"
    ]


@pytest.mark.parametrize("token", [128009, 0])
def test_the_token_that_ended_a_completion_is_a_reason_of_its_own(token: int) -> None:
    answer = choice({"content": "#3"}, None, stop_reason=token) | {"usage": {"completion_tokens": 8}}
    assert read_choice(answer, limit=8).finished
    assert not read_choice(choice({"content": "#3"}, "length", stop_reason=token)).finished


def test_what_the_server_marks_as_truncated_is_not_finished() -> None:
    whole = choice({"content": "#3"})
    assert read_choice(whole | {"truncated": False}).finished
    assert not read_choice(whole | {"truncated": True}).finished
    assert not read_choice(choice({"content": "#3"}, truncated=True)).finished
    assert not read_choice(choice({"content": "#3", "truncated": True})).finished


@pytest.mark.parametrize("unstated", [None, "", "null", "unknown", "FINISH_REASON_UNSPECIFIED"])
def test_without_a_word_the_number_of_tokens_decides(unstated: str | None) -> None:
    answer = choice({"content": "#3"}, unstated)
    assert read_choice(answer).finished
    assert read_choice(answer, limit=8).finished
    for written, finished in ((7, True), (8, False)):
        assert read_choice(answer | {"usage": {"completion_tokens": written}}, limit=8).finished is finished
    assert read_choice(answer | {"usage": None}, limit=8).finished
    assert read_choice(choice({"content": "#3"}) | {"usage": {"completion_tokens": 8}}, limit=8).finished


UNKNOWN: dict[str, tuple[Any, str]] = {
    "a message of Anthropic's own API": (
        {"type": "message", "content": []},
        "no list of choices .it has type",
    ),
    "Ollama's own API": ({"message": {"content": "#3"}, "done": True}, "no list of choices"),
    "an empty object": ({}, "no list of choices .it is empty"),
    "a text completion": (
        {"choices": [{"text": "#3", "index": 0}]},
        "its choice has no message, but text, index",
    ),
    "a streamed delta": ({"choices": [{"delta": {"content": "#3"}}]}, "has no message, but delta"),
    "no message": ({"choices": [{"message": None}]}, "has no message, but nothing"),
    "a choice that is text": ({"choices": ["#3"]}, "its choice is str"),
    "a number": (choice({"content": 3}), "its content is int"),
    "a list of numbers": (choice({"content": [3]}), "its content is int"),
    "an image": (
        choice({"content": [{"type": "image_url", "image_url": {}}]}),
        "a part without text .it has type",
    ),
    "a tool call": (choice({"content": None, "tool_calls": [{"id": "a"}]}, "tool_calls"), "calls a tool"),
    "a numeric reason": (choice({"content": "#3"}, 2), "its finish_reason is int"),
    "odd token ids": (choice({"content": "#3"}, token_ids=[1, "2"]), "token_ids is no list"),
    "token ids that are no int32": (choice({"content": "#3"}, token_ids=[1 << 40]), "token_ids is no list"),
    "odd reasoning": (choice({"content": "#3", "reasoning": 5}), "its reasoning is int"),
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_a_form_that_cannot_be_read_is_refused_at_once_and_named(form: str, stub: Stub) -> None:
    stub.answer, why = UNKNOWN[form]
    with pytest.raises(UnknownForm, match=why):
        read_choice(stub.answer)
    with pytest.raises(UserError, match=rf"in a form that is no chat completion: .*{why}.*are stored"):
        chat(stub)
    assert len(stub.seen) == 1  # and was paid for once


REFUSALS: dict[str, tuple[int, Any, str]] = {
    "openai_key": (
        401,
        {"error": {"message": "Incorrect API key provided: sesame.", "code": "invalid_api_key"}},
        r"'Incorrect API key provided: \*\*\*\.'",
    ),
    "openai_quota": (
        429,
        {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}},
        "'You exceeded your current quota.'",
    ),
    "vllm_model": (
        404,
        {
            "object": "error",
            "message": "The model `big` does not exist.",
            "type": "NotFoundError",
            "code": 404,
        },
        "'The model `big` does not exist.'",
    ),
    "vllm_context": (
        400,
        {"error": {"message": "This model's maximum context length is 16 tokens.", "code": 400}},
        'maximum context length is 16 tokens.".*or leave such problems empty',
    ),
    "sglang": (400, {"object": "error", "message": "Requested token count exceeds 16."}, "exceeds 16."),
    "llama_cpp_context": (
        500,
        {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}},
        "'Context size has been exceeded.'.*or leave such problems empty",
    ),
    "llama_cpp_context_under_200": (
        200,
        {"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}},
        "status 400, 'too long'",
    ),
    "ollama_model": (404, {"error": {"message": 'model "big" not found', "type": "api_error"}}, "not found"),
    "tgi": (
        422,
        {"error": "Input validation error: too long", "error_type": "validation"},
        "'Input validation",
    ),
    "lm_studio": (400, {"error": "No models loaded."}, "'No models loaded.'"),
    "anthropic": (
        403,
        {"type": "error", "error": {"type": "permission_error", "message": "not allowed"}},
        "'not allowed'",
    ),
    "gemini": (
        400,
        [{"error": {"code": 400, "message": "API key not valid.", "status": "X"}}],
        "'API key not v",
    ),
    "openrouter_credits": (
        402,
        {"error": {"code": 402, "message": "Insufficient credits"}},
        "'Insufficient c",
    ),
    "openrouter_under_200": (200, {"error": {"code": 403, "message": "flagged"}}, "status 403, 'flagged'"),
    "deepseek": (402, {"error": {"message": "Insufficient Balance"}}, "'Insufficient Balance'"),
    "fastapi": (422, {"detail": [{"loc": ["body", "top_p"], "msg": "bad"}]}, "'body.top_p: bad'"),
    "fastapi_missing": (404, {"detail": "Not Found"}, "status 404, 'Not Found'"),
    "gateway_model": (503, {"error": {"message": "no such model: big"}}, "'no such model: big'"),
    "page": (403, "<html><head><title>Access &amp; more</title></head></html>", "'Access & more'"),
    "not_implemented": (501, {"error": {"message": "no chat here"}}, "'no chat here'"),
}


@pytest.mark.parametrize("server", REFUSALS)
def test_a_refusal_is_not_repeated_and_told_in_the_servers_own_sentence(
    server: str, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    status, body, said = REFUSALS[server]
    stub.fault = lambda number: (status, {}, body if isinstance(body, str) else json.dumps(body))
    with pytest.raises(UserError, match=rf"refuses: .*{said}") as caught:
        chat(stub)
    assert len(stub.seen) == 1
    assert "sesame" not in str(caught.value)


FAULTS: dict[str, tuple[int, Any, float]] = {
    "openai_rate": (
        429,
        {
            "error": {
                "message": "Rate limit reached. Please try again in 20ms. Visit .../billing",
                "code": "x",
            }
        },
        0.02,
    ),
    "gemini_rate": (
        429,
        [
            {
                "error": {
                    "code": 429,
                    "message": "You exceeded your current quota",
                    "details": [{"retryDelay": "27s"}],
                }
            }
        ],
        27.0,
    ),
    "openrouter": (200, {"error": {"code": 502, "message": "the provider is down"}}, 0.0),
    "openrouter_choice": (200, choice({"content": ""}, "error", error={"code": 502, "message": "down"}), 0.0),
    "no_code": (200, {"error": {"message": "out of memory"}}, 0.0),
    "cloudflare": (524, "<html><title>A timeout occurred</title></html>", 0.0),
    "llama_cpp_loading": (503, {"error": {"message": "Loading model", "code": 503}}, 0.0),
    "anthropic_busy": (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        0.0,
    ),
}


@pytest.mark.slow
def test_what_passes_is_asked_again(stub: Stub) -> None:
    for status, body, _ in [*list(FAULTS.values())[2:], (200, choice({"content": ""}, "abort"), 0.0)]:
        text = body if isinstance(body, str) else json.dumps(body)
        stub.seen.clear()
        stub.fault = lambda number, status=status, text=text: (status, {}, text) if number < 2 else None
        assert chat(stub) == [Choice("1+2=3;#3", "", True)]
        assert len(stub.seen) == 3


@pytest.mark.slow
def test_the_wait_that_a_server_asks_for_is_kept(stub: Stub) -> None:
    for status, body, seconds in FAULTS.values():
        text = body if isinstance(body, str) else json.dumps(body)
        assert not is_permanent(*(error_within(body) or (status, text)))
        assert asked_to_wait({}, text) == pytest.approx(seconds)
    soon = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True)
    for headers, least, most in (
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5, 1.5),
        ({"retry-after": soon}, 80, 90),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"retry-after": "100000"}, 600, 600),
        *(({"retry-after": odd}, 0, 0) for odd in ("soon", "-3", "nan", "inf", "")),
    ):
        assert least <= asked_to_wait(headers, "") <= most
    stub.fault = lambda number: (429, {"Retry-After": "0.3"}, "busy") if number == 0 else None
    assert chat(stub) == [Choice("1+2=3;#3", "", True)]


def test_a_servers_sentence_is_one_short_line() -> None:
    assert sentence('{"message": "a\\n  b"}') == "a b"
    assert sentence("plain\ntext") == "plain text"
    assert sentence('{"error": {}}') == '{"error": {}}'
    assert len(sentence("x" * 10_000)) == 303
    assert sentence("[" * 100_000).startswith("[[")


@pytest.mark.slow
def test_other_words_and_parts_end_up_in_the_trace_set(stub: Stub, tmp_path: Path) -> None:
    def answer(number: int) -> tuple[int, dict[str, str], str]:
        text = stub.reply(stub.seen[number])
        message = {"content": [{"type": "text", "text": text}]}
        return 200, {}, json.dumps(choice(message, ["STOP", "eos_token", "", None, "end_turn"][number % 5]))

    stub.fault = answer
    records = run(words(stub), tmp_path / "set")
    assert len(records) == len(stub.seen) == 24
    assert all(record["correct"] and record["finished"] for record in records)


@pytest.mark.slow
def test_no_password_and_no_key_stands_in_a_message_or_a_file(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    address = stub.url.replace("http://", "http://anna:opensesame@")
    stub.fault = lambda number: (500, {}, "sesame is busy") if number == 0 else None
    run([*words(stub), f"engine.url={address}"], tmp_path / "set")
    assert set(stub.keys) == {"Basic YW5uYTpvcGVuc2VzYW1l"}
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert "url: http://***@127.0.0.1" in (tmp_path / "set" / "config.yaml").read_text()
    assert all(b"sesame" not in path.read_bytes() for path in files)
    stub.fault = lambda number: (401, {}, "no entry for sesame")
    with pytest.raises(
        UserError, match=r"the server at http://127.0.0.1:\d+/v1 refuses: status 401"
    ) as caught:
        run([*words(stub), f"engine.url={address}"], tmp_path / "other")
    output = capfd.readouterr()
    assert "trying again" in output.err
    assert not any("sesame" in text for text in (str(caught.value), output.out, output.err))


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://anna:opensesame@host:99999/v1"},
        {"url": "ftp://anna:opensesame@host/v1"},
        {"url": "http://anna:opensesame@host/v1/chat/completions"},
        {"url": "http://anna:open/sesame@host/v1?x=1"},
        {"key_from": "sk-opensesame1234567890"},
        {"key_from": "gsk_opensesame1234567890"},
        {"extra": {"api_key": "opensesame"}},
        {"extra": {"headers": {"Authorization": "Bearer opensesame"}}},
    ],
)
def test_a_mistake_that_holds_a_secret_is_named_without_it(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^engine\.(url|key_from|extra)") as caught:
        ChatClient(**{"url": "http://localhost/v1", "served_as": "big", **options})
    assert "sesame" not in str(caught.value)


def test_only_the_login_of_an_address_is_hidden() -> None:
    for text, expected in (
        ("http://a:b@host/v1 and https://token@host", "http://***@host/v1 and https://***@host"),
        ("engine.url=http://a:b@host/v1", "engine.url=http://***@host/v1"),
        ("http://host/v1", "http://host/v1"),
        ("me@host.org, http://host/a b@c", "me@host.org, http://host/a b@c"),
    ):
        assert without_secrets(text) == expected


def test_a_list_of_server_answers_reads_like_their_strings(stub: Stub) -> None:
    stub.answer = completion({"content": ["1+2", "=3;#3"]})
    assert ask(stub, "1+2=")[0].text == "1+2=3;#3"
