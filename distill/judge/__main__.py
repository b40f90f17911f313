"""`python -m distill.judge <evaluations or runs>`: let a judge model judge final answers, or grade traces.

It reads stored samples and generates none. Replies are kept, so that an interrupted judging goes on and a
second one asks nothing.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from distill.config.console import one_sentence_errors, say_loading
from distill.errors import UserError, first_line, whole_number


def main() -> None:
    arguments = _parser().parse_args()
    with one_sentence_errors():
        from distill.evaluation.comparison_sides import check_side

        for folder in arguments.folders:  # before the rest is imported
            check_side(folder)
        say_loading("judge")
        print(_judge(arguments))


def _judge(arguments: argparse.Namespace) -> str:
    from distill.generation.chat_client import ChatClient
    from distill.generation.sampling import Sampling
    from distill.judge.run import judge
    from distill.judge.selection import Selection

    if arguments.limit is not None:
        whole_number("--limit", arguments.limit, least=1)
    whole_number("--max-tokens", arguments.max_tokens, least=1)
    try:
        client = ChatClient(
            arguments.url,
            arguments.model,
            key_from=arguments.key_from,
            concurrency=arguments.concurrency,
            retries=arguments.retries,
            timeout=arguments.timeout,
            refused=arguments.refused,
            extra=arguments.extra,
            named=lambda name: "--model" if name == "served_as" else f"--{name}",
        )
        sampling = Sampling(arguments.temperature, max_new_tokens=arguments.max_tokens)
    except ValueError as error:
        raise UserError(first_line(error)) from error
    folder = re.sub(r"[^\w.-]+", "_", arguments.model).strip("_.") or "model"
    return judge(
        arguments.folders,
        client,
        sampling,
        Selection(arguments.benchmark, arguments.limit, arguments.solved, need_gold=not arguments.rubric),
        arguments.out or Path("outputs") / "judgements" / folder,
        rubric=arguments.rubric,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.judge",
        description="Let a judge model judge the final answers of stored evaluations, or grade their traces.",
    )
    add = parser.add_argument
    add("folders", nargs="+", help="evaluations or runs; run@before: before training; on common problems")
    add("--url", required=True, help="of a server with OpenAI's API: everything before /chat/completions")
    add("--model", required=True, help="the judge's name on the server")
    add("--key-from", default="OPENAI_API_KEY", metavar="VARIABLE", help="holds the key (OPENAI_API_KEY)")
    add("--rubric", action="store_true", help="grade whole traces on a rubric instead of final answers")
    add("--solved", action="store_true", help="only problems that all of them solve, by the grader")
    add("--benchmark", action="append", default=[], metavar="NAME", help="judge this one; repeatable (all)")
    add("--limit", type=int, metavar="N", help="only the first N problems of each benchmark")
    add("--out", type=Path, help="folder of replies and results (outputs/judgements/<model>)")
    add("--concurrency", type=int, default=16, metavar="N", help="requests sent at the same time (16)")
    add("--retries", type=int, default=6, metavar="N", help="further attempts after a failed request (6)")
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds to wait for a reply (600)")
    add("--temperature", type=float, default=0.0, metavar="T", help="of the replies (0)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a reply, its thinking included (4096)")
    add("--refused", default="error", metavar="error|skip", help="if the server rejects a single request")
    add(
        "--extra", type=_fields, default={}, metavar="JSON", help="further fields of each request; null: none"
    )
    return parser


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no JSON object such as {{"max_tokens": null}}')
    return found


if __name__ == "__main__":
    main()
