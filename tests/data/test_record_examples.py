"""Tests of reading records as people have them: usual fields without a field map, conversations, thoughts."""

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.benchmarks.fields import identity
from distill.data.conversations import check_rendered
from distill.data.prompt import Prompt
from distill.data.readers import read_examples
from distill.data.recorded import recorded_tokens
from distill.data.trace import Example
from distill.errors import UserError
from distill.tiny.build import make_tokenizer

ASKED, ANSWER, THOUGHT = "What is 2+3?", "It is 5.", "2+3=5."
THINKING = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
USER = {"role": "user", "content": ASKED}
SYSTEM = {"role": "system", "content": "Be brief."}
REPLY = {"role": "assistant", "content": ANSWER}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(tmp_path: Path, *rows: Any, **options: Any) -> list[Example]:
    return read_examples(path=write(tmp_path / "data.jsonl", *rows), **options)


def said_by(example: Example) -> tuple[Any, ...]:
    turns = [(turn["role"], turn["content"]) for turn in example.messages or ()]
    return example.problem, example.completion, example.system, turns


TEXTS = [
    {"problem": ASKED, "completion": ANSWER},
    {"problem": ASKED, "solution": ANSWER, "answer": "5"},
    {"question": ASKED, "answer": ANSWER},
    {"Question": ASKED, "Response": ANSWER},
    {"instruction": ASKED, "input": "", "output": ANSWER},
    {"instruction": ASKED, "output": ANSWER},
    {"prompt": ASKED, "completion": ANSWER},
    {"prompt": ASKED, "response": ANSWER},
    {"query": ASKED, "response": ANSWER},
    {"input": ASKED, "output": ANSWER},
    {"inputs": ASKED, "targets": ANSWER},
    {"problem": ASKED, "completion": ANSWER, "messages": [USER, {"role": "assistant", "content": "Other."}]},
    {"messages": None, "problem": ASKED, "completion": ANSWER},
]


@pytest.mark.parametrize("row", TEXTS, ids=[", ".join(row) for row in TEXTS])
def test_texts_are_recognised_by_usual_names(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read(tmp_path, row)
    assert said_by(example) == (ASKED, ANSWER, None, [])


CONVERSATIONS: list[dict[str, Any]] = [
    {"messages": [USER, REPLY]},
    {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": ANSWER}]},
    {"conversations": [{"from": "user", "value": ASKED}, {"from": "assistant", "value": ANSWER}]},
    {"conversation": [{"role": "Human", "value": ASKED}, {"role": "model", "content": ANSWER}]},
    {"messages": [{"role": "prompter", "text": ASKED}, {"role": "bot", "parts": [{"text": ANSWER}]}]},
    {"messages": [{**USER, "content": [{"type": "text", "text": ASKED}]}, REPLY]},
    {"messages": json.dumps([USER, REPLY])},  # as a CSV file has it
    {"prompt": [USER], "completion": [REPLY]},  # TRL's
    {"prompt": [USER], "completion": ANSWER},
    {"prompt": ASKED, "completion": [USER, REPLY]},
    *(
        {"prompt": ASKED, "completion": [{"from": role, "value": ASKED}, REPLY]}
        for role in ("User", "HUMAN", "prompter", " human ")
    ),
    {"messages": [USER, REPLY], "problem": "?", "answer": "5"},
]


@pytest.mark.parametrize("row", CONVERSATIONS, ids=[json.dumps(row)[:60] for row in CONVERSATIONS])
def test_conversations_are_recognised_by_usual_names(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read(tmp_path, row)
    assert said_by(example) == (ASKED, ANSWER, None, [("user", ASKED)])


def test_a_context_and_a_history_belong_to_an_instruction(tmp_path: Path) -> None:
    row = {"instruction": "Add.", "input": "2, 3", "output": "5"}
    (plain, told, earlier) = read(
        tmp_path, row, row | {"system": "Be brief."}, row | {"history": [["Hi", "Ho"]], "system": "Be brief."}
    )
    assert said_by(plain) == ("Add.\n\n2, 3", "5", None, [])
    assert said_by(told) == ("Add.\n\n2, 3", "5", "Be brief.", [])
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("user", "Add.\n\n2, 3")]
    assert said_by(earlier) == ("Add.\n\n2, 3", "5", None, turns)


def test_a_system_column_opens_a_conversation_without_one(tmp_path: Path) -> None:
    developer = {"role": "developer", "content": "Own."}
    without, own = read(
        tmp_path,
        {"system": "Column.", "messages": [USER, REPLY]},
        {"system": "Column.", "messages": [developer, USER, REPLY]},
    )
    assert said_by(without)[3] == [("system", "Column."), ("user", ASKED)]
    assert said_by(own)[3] == [("system", "Own."), ("user", ASKED)]


def test_a_records_system_message_replaces_the_prompts_unless_the_prompt_rewrites() -> None:
    example = Example("0", "1+1", system="Own.")
    own, user = {"role": "system", "content": "Own."}, {"role": "user", "content": "1+1!"}
    prompts = {"role": "system", "content": "Prompt's."}
    assert Prompt("{problem}!").messages(example) == (own, user)
    assert Prompt("{problem}!", "Prompt's.").messages(example) == (own, user)
    assert Prompt("{problem}!", "Prompt's.", rewrites=True).messages(example) == (prompts, user)


THOUGHTS: list[dict[str, Any]] = [
    {"messages": [USER, REPLY | {"reasoning_content": THOUGHT}]},
    {"messages": [USER, REPLY | {"reasoning": THOUGHT}]},
    {"messages": [USER, REPLY | {"thinking": f"\n{THOUGHT}\n"}]},
    {"messages": [USER, REPLY | {"reasoning_content": "", "reasoning": THOUGHT}]},
    {"messages": [USER, REPLY | {"reasoning_content": THOUGHT, "content": f"\n\n{ANSWER}"}]},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": THOUGHT},
                                                          {"type": "text", "text": ANSWER}]}]},
    {"messages": [USER, {"role": "assistant", "content": [{"type": "reasoning", "text": THOUGHT},
                                                          {"type": "output_text", "text": ANSWER}]}]},
    {"messages": [USER, {"role": "assistant", "content": THINKING, "reasoning_content": THOUGHT}]},
    {"messages": [USER, {"role": "assistant", "content": THINKING}]},
    {"prompt": [USER], "completion": [REPLY | {"reasoning_content": THOUGHT}]},
    {"question": ASKED, "reasoning": THOUGHT, "answer": ANSWER},
    {"problem": ASKED, "thinking": THOUGHT, "completion": ANSWER},
    {"prompt": [USER], "reasoning_content": THOUGHT, "completion": ANSWER},
    {"prompt": [USER], "reasoning": THOUGHT, "completion": [REPLY]},
]  # fmt: skip


@pytest.mark.parametrize("row", THOUGHTS, ids=[json.dumps(row)[:90] for row in THOUGHTS])
def test_a_thought_apart_stands_in_front_of_the_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read(tmp_path, row)
    assert example.completion == THINKING
    assert example.problem == ASKED


def test_a_thought_may_be_named_and_an_element_of_a_list(tmp_path: Path) -> None:
    row = {"q": ASKED, "thoughts": [THOUGHT], "tries": ["No.", ANSWER]}
    fields = {"problem": "q", "completion": "tries.1", "thought": "thoughts"}
    assert read(tmp_path, row, fields=fields)[0].completion == THINKING
    with pytest.raises(UserError, match=r"line 1: the completion is a list of 2 texts: name one .*\.0"):
        read(tmp_path, row, fields=fields | {"completion": "tries"})


def test_a_null_thought_is_none(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    rows = [
        {"messages": [USER | {"reasoning_content": None}, REPLY | {"reasoning_content": one}]}
        for one in (None, THOUGHT)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert [example.completion for example in read_examples(path=str(path))] == [ANSWER, THINKING]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "1+1?", "output": "2", "input": math.nan, "history": math.nan, "system": math.nan},
        {
            "messages": [USER, REPLY | {"reasoning_content": math.nan, "tool_calls": math.nan}],
            "tools": math.nan,
        },
    ],
)
def test_a_nan_of_an_optional_field_holds_nothing(tmp_path: Path, row: dict[str, Any]) -> None:
    bare = {key: value for key, value in row.items() if value == value}
    if "messages" in bare:
        bare["messages"] = [USER, REPLY]
    assert read(tmp_path, row) == read(tmp_path, bare)


def test_earlier_answers_are_context_and_their_thoughts_go_to_the_template(tmp_path: Path) -> None:
    turns = [USER, REPLY | {"thinking": THOUGHT}, {"role": "user", "content": "Sure?"}, REPLY]
    (example,) = read(tmp_path, {"messages": turns})
    assert example.problem == "Sure?"
    assert example.completion == ANSWER
    assert list(example.messages or ())[1] == REPLY | {"reasoning_content": THOUGHT}


NOT_LEARNED = [
    {"messages": [USER, REPLY, USER]},
    {"messages": [USER]},
    {"messages": []},
    {"messages": None},
    {"messages": [USER, {"role": "assistant", "content": None}]},
    {"messages": [USER, {"role": "assistant", "content": " "}]},
    {"messages": [USER, {"role": "assistant", "reasoning_content": THOUGHT, "content": ""}]},
    {"problem": ASKED, "completion": None},
    {"problem": ASKED, "completion": float("nan")},
    {"problem": None, "completion": ANSWER},
]


@pytest.mark.parametrize("row", NOT_LEARNED, ids=[json.dumps(row)[:70] for row in NOT_LEARNED])
def test_a_record_without_an_answer_ends_reading_or_is_left_out_and_counted(
    tmp_path: Path, row: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"messages": [USER, REPLY]} if "messages" in row else {"problem": ASKED, "completion": ANSWER}
    with pytest.raises(UserError, match=r"line 2: .*; data\.missing=drop leaves such records out"):
        read(tmp_path, good, row, good)
    assert len(read(tmp_path, good, row, good, missing="drop", report=True)) == 2
    assert "; 1 of 3 records left out (line 2: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"none of the 2 records has what is to be learned: .*line 1: "):
        read(tmp_path, row, row, missing="drop")


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_completion_is_left_out_too(tmp_path: Path, blank: str) -> None:
    rows = [{"problem": ASKED, "completion": text} for text in (ANSWER, blank)]
    assert len(read(tmp_path, *rows, missing="drop")) == 1
    csv = tmp_path / "data.csv"
    csv.write_text(f"problem,completion\n1+1,2\n1+2,{blank}\n")
    assert len(read_examples(path=str(csv), missing="drop")) == 1


def test_what_was_recognised_and_what_was_not_read_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = REPLY | {"reasoning_content": THOUGHT, "refusal": None, "audio": "x", "annotations": []}
    row = {"source": "me", "tags": [], "none": None, "messages": [USER | {"name": "Ann"}, REPLY, USER, turn]}
    read(tmp_path, row, row | {"level": 3}, report=True)
    name = tmp_path / "data.jsonl"
    assert capsys.readouterr().out == (
        f"{name}: 2 examples: conversation from messages; 2 with a thought, which stands in front of the "
        f"answer; of 2 conversations only the last answer is learned; not read: source, level, audio of "
        f"messages, name of messages\n"
    )
    read(tmp_path, {"question": ASKED, "answer": ANSWER}, {"messages": [USER, REPLY]}, report=True)
    said = capsys.readouterr().out
    assert said == f"{name}: 2 examples: problem from question, completion from answer (1); conversation from messages (1)\n"  # fmt: skip  # noqa: E501
    read(tmp_path, {"question": ASKED, "answer": ANSWER})
    assert capsys.readouterr().out == ""


def test_fields_that_are_named_or_null_are_not_guessed(tmp_path: Path) -> None:
    row = {"problem": "p", "question": "q", "completion": "c", "answer": "a", "messages": [USER, REPLY]}
    auto = dict.fromkeys(("problem", "completion", "messages"), "auto")
    assert said_by(read(tmp_path, row, fields=auto)[0])[:2] == ("p", "c")
    assert said_by(read(tmp_path, row, fields=auto | {"problem": "question"})[0])[:2] == ("q", "c")
    assert said_by(read(tmp_path, row, fields=auto | {"completion": "answer"})[0])[:2] == ("p", "a")
    assert said_by(read(tmp_path, row, fields=auto | {"completion": None})[0])[:2] == ("p", None)
    assert said_by(read(tmp_path, row, fields=auto | {"messages": "messages"})[0])[:2] == (ASKED, ANSWER)
    assert read(tmp_path, {"problem": "p", "answer": "5"})[0].completion is None  # the right answer


@pytest.mark.parametrize(("value", "text"), [(24.0, "24"), (24, "24"), (0.5, "0.5"), ("24.0", "24.0")])
def test_a_float_columns_whole_number_is_kept_as_one(tmp_path: Path, value: Any, text: str) -> None:
    fields = {"problem": "problem", "completion": "completion", "gold": "gold", "id": "id"}
    (example,) = read(
        tmp_path, {"problem": "p", "completion": "c", "gold": value, "id": value}, fields=fields
    )
    assert (example.gold, example.id) == (text, text)
    assert identity({"id": value}, ("id",), 0) == text


UNREADABLE: dict[str, tuple[Any, str]] = {
    "no problem": ({"text": "a"}, r"no problem is recognised among the record's fields \(text\)"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, REPLY]},
        "message 1: part 1 of its content is of the type 'image_url': only text is read",
    ),
    "a number as content": ({"messages": [USER | {"content": 5}, REPLY]}, "message 1: its content is int"),
    "no role": ({"messages": [USER, {"content": "a"}]}, "message 2 has no role"),
    "no content": ({"messages": [{"role": "user"}, REPLY]}, r"message 1 \(user\) has no content"),
    "a turn that is text": ({"messages": ["hi", "ho"]}, "message 1 is str, not a {role, content} record"),
    "an answer alone": ({"messages": [REPLY]}, "at least two"),
    "a thought of a list": ({"messages": [USER, REPLY | {"reasoning": [1]}]}, "reasoning is list, not text"),
    "a call at the end": (
        {"messages": [USER, REPLY | {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        "the last message calls a tool",
    ),
    "a call without a name": (
        {"messages": [USER, REPLY | {"tool_calls": [{"arguments": {}}]}, REPLY]},
        "message 2: its tool call is .* not {name, arguments}",
    ),
    "arguments that are no JSON": (
        {"messages": [USER, REPLY | {"tool_calls": [{"name": "f", "arguments": "x="}]}, REPLY]},
        "message 2: the arguments of its call of f are 'x=', not JSON",
    ),
    "ShareGPT's call": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]},
        "message 2: its tool call is {}",
    ),
    "tools that are text": ({"tools": "calc", "messages": [USER, REPLY]}, "tools is str, not a list"),
    "two problems": ({"prompt": "Else?", "completion": [USER, REPLY]}, "the problem is not in it"),
    "half a character": ({"problem": "a\ud83d", "completion": "b"}, "character 2 of a text is half"),
    "a gold of two": ({"problem": "a", "completion": "b", "gold": {"a": 1}}, "the gold is dict"),
    "an id that is a list": ({"problem": "a", "completion": "b", "id": [1]}, "the id is list"),
    "a history of texts": (
        {"instruction": "a", "output": "b", "history": ["c"]},
        r"the history is \['c'\], not a list of \[question, answer\] pairs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_named_precisely(tmp_path: Path, case: str) -> None:
    row, message = UNREADABLE[case]
    fields = dict.fromkeys(("problem", "completion", "messages", "context"), "auto") | {
        name: name for name in ("gold", "id") if name in row
    }
    with pytest.raises(UserError, match=rf"data\.jsonl, line 1: .*{message}"):
        read(tmp_path, row, fields=fields)


CALL = {"id": "1", "type": "function", "function": {"name": "calc", "arguments": '{"e": "2+3"}'}}
TOOLS = [{"type": "function", "function": {"name": "calc", "parameters": {"type": "object"}}}]
TOOL_TURNS: list[dict[str, Any]] = [
    {"tools": TOOLS, "messages": [
        USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "5"}, REPLY]},
    {"tools": json.dumps(TOOLS), "conversations": [
        {"from": "human", "value": ASKED},
        {"from": "function_call", "value": '{"name": "calc", "arguments": {"e": "2+3"}}'},
        {"from": "observation", "value": "5"}, {"from": "gpt", "value": ANSWER}]},
    {"tools": TOOLS, "messages": [
        USER, {"role": "assistant", "content": "", "function_call": CALL["function"]},
        {"role": "function", "name": "calc", "content": "5"}, REPLY]},
]  # fmt: skip
SIMPLE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
KNOWS_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("row", TOOL_TURNS, ids=["OpenAI", "ShareGPT", "functions"])
def test_tool_turns_are_read_in_one_form(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read(tmp_path, row)
    user, call, result = list(example.messages or ())
    assert (example.problem, example.completion, user) == (ASKED, ANSWER, USER)
    assert call["tool_calls"][0]["function"] == {"name": "calc", "arguments": {"e": "2+3"}}
    assert (call["content"], result["role"], result["content"]) == ("", "tool", "5")
    assert example.tools == tuple(TOOLS)


HALF = "a\ud800"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER | {"role": HALF}, REPLY]},
        {"messages": [USER, REPLY | {"reasoning": HALF}]},
        {"messages": [USER, REPLY | {"tool_calls": [{"name": "f", "arguments": {HALF: 1}}]}, REPLY]},
        {"messages": [USER, {"role": "tool", "content": "5", "name": HALF}, REPLY]},
        {"messages": [USER, REPLY], "tools": [{"name": "f", "description": HALF}]},
    ],
    ids=str,
)
def test_half_a_character_anywhere_in_a_conversation_is_refused_with_its_place(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"data.jsonl, line 1: .*: character 2 of a text is half a character"):
        read(tmp_path, row)


def test_tools_that_a_template_leaves_out_are_refused() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turns = ({"role": "user", "content": "1"}, call, {"role": "tool", "content": 'a "b"'})
    prompts = {
        "message 2, a tool call": ('1a \\"b\\"', None),
        r"message 3 \(tool\)": ("1 f", None),
        "a tool's description": ('1 f a "b"', [{"name": "calc"}]),
    }
    for what, (text, tools) in prompts.items():
        with pytest.raises(UserError, match=rf"leaves {what} of the conversation of p1 out"):
            check_rendered(text, turns, tools, "p1")
    check_rendered('calc 1 f a "b"', turns, [{"name": "calc"}], "p1")
    tokenizer = make_tokenizer()
    with pytest.raises(UserError, match="leaves a tool's description"):
        Prompt().encode(tokenizer, Example("0", "1", messages=turns, tools=({"name": "g"},)))
    tokenizer.chat_template = SIMPLE
    with pytest.raises(UserError, match="leaves a tool's description"):
        Prompt().encode(tokenizer, Example("0", "1", messages=turns[:1], tools=({"name": "g"},)))


def test_a_template_is_given_the_tools() -> None:
    tokenizer = make_tokenizer()
    seen: list[Any] = []
    tokenizer.apply_chat_template = lambda turns, tools=None, **options: seen.append(tools) or "f1"  # type: ignore[method-assign]
    tokenizer.chat_template = KNOWS_TOOLS
    with pytest.raises(UserError, match="cannot spell"):  # it knows no letters
        Prompt().encode(tokenizer, Example("0", "1", tools=({"name": "f"},)))
    assert seen == [[{"name": "f"}]]


RECORDED = {
    "problem": "1+1=",
    "completion": "2",
    "tokenizer": "t",
    "finished": True,
    "prompt_ids": [1, 2],
    "completion_ids": [3, 4],
    "teacher_logprobs": [-0.5, 0.0],
    "correct": None,
    "weight": 0.5,
    "learn_from": 1,
}
NONSENSE: list[dict[str, Any]] = [
    *({"weight": value} for value in (-100, -1, float("nan"), float("inf"), "1", True, 10**400, 1e39)),
    *({"learn_from": value} for value in (-3, 2, 9, 1.5, "1", True, 10**400)),
    *({"teacher_logprobs": value} for value in ([-1, 5], [-1], [], [-1, None], [-1, float("nan")], "ab", 3)),
    {"teacher_logprobs": [-(10**400), 0]},
    *({"completion_ids": value} for value in ([3, -1], [1.5, 2], ["a", "b"], [2**31, 1], [[1], [2, 3]])),
    *({"completion_ids": value} for value in ("ab", [])),
    *({"prompt_ids": value} for value in ([-1], [None], [True], {"a": 1}, 2**70, [2**70], [10**400])),
    *({"finished": value} for value in (1, "yes")),
    *({"correct": value} for value in (1, "no")),
    *({"tokenizer": value} for value in (1, ["t"])),
    {"teacher": 5},
]  # fmt: skip


@pytest.mark.parametrize("wrong", NONSENSE, ids=str)
def test_a_trace_sets_values_that_cannot_be_right_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"set, row 1: ({next(iter(wrong))}|learn_from)"):
        recorded_tokens(RECORDED | wrong, "set, row 1")


def test_a_trace_sets_null_weight_and_start_are_the_usual_ones() -> None:
    found = recorded_tokens(RECORDED | {"weight": None, "learn_from": None}, "")
    assert found is not None
    assert (found.weight, found.learn_from) == (1.0, 0)
    assert recorded_tokens(RECORDED | {"finished": None}, "") is None


JUNK: list[Any] = [
    *(None, True, False, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", " ", "\x00", "\ud800", "[", "{}"),
    *('[{"role": 1}]', "[]", [], {}, [[]], [{}], [None], {"a": None}, ["a"], [1, "a"], {"role": "user"}),
    *([USER, USER], [REPLY], [USER | {"content": {}}], [USER, REPLY | {"tool_calls": 5}, REPLY]),
    *([USER, REPLY | {"tool_calls": [{"function": {"name": "f", "arguments": "[" * 9000}}]}, REPLY],),
    *([{"from": 5, "value": 5}], [[["a", "b"], ["c"]]], "x" * 5000, -(10**400), {"": {"": {"": ""}}}),
]
WHOLE: list[dict[str, Any]] = [
    {"problem": ASKED, "completion": ANSWER, "thinking": THOUGHT, "system": "s", "gold": 5, "id": "a"},
    {"instruction": ASKED, "input": "i", "output": ANSWER, "history": [["a", "b"]]},
    *TOOL_TURNS,
    *CONVERSATIONS,
    *THOUGHTS,
    RECORDED,
]


def broken(row: Any, rng: random.Random) -> Any:
    """A copy with one value, at any depth, that is taken out or replaced by junk."""
    row = copy.deepcopy(row)
    node = row
    while True:
        key = rng.choice([*node]) if isinstance(node, dict) else rng.randrange(len(node))
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            node = node[key]
            continue
        if rng.random() < 0.15:
            del node[key]
        else:
            node[key] = copy.deepcopy(rng.choice(JUNK))
        return row


@pytest.mark.slow
def test_no_malformed_record_gives_anything_but_an_example_or_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    fields = dict.fromkeys(("problem", "completion", "messages", "context", "system", "thought"), "auto")
    tried, refused = 400, list[str]()
    for _ in range(tried):
        row = broken(rng.choice(WHOLE), rng)
        named = fields | {name: name for name in ("gold", "id") if name in row}
        missing: Any = rng.choice(["error", "drop"])
        try:
            (example,) = read(tmp_path, row, fields=named, missing=missing, report=True)
        except UserError as error:
            refused.append(str(error))
            continue
        assert isinstance(example.problem, str), row
        assert isinstance(example.completion, str | None), row
        for turn in example.messages or ():
            assert isinstance(turn["content"], str), row
            assert isinstance(turn["role"], str), row
        json.dumps([dict(turn) for turn in example.messages or ()]).encode()
    assert [text for text in refused if "data.jsonl, line 1: " not in text or "\n" in text] == []
    assert tried / 4 < len(refused) < tried
    capsys.readouterr()
