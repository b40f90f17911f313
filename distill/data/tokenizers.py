"""Vocabulary size, vocabulary hash, end tokens and token ids of a tokenizer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import UserError

TEMPLATE_VARIABLES = "chat_template_kwargs"  # key of a tokenizer's configuration


def tokenizer_size(tokenizer: Any) -> int:
    """Largest token id plus 1 (the output head may have more rows)."""
    return max(tokenizer.get_vocab().values()) + 1


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of the vocabulary, equal only for tokenizers whose ids mean the same tokens."""
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def shared_rows(ours: Any, theirs: Any) -> int | None:
    """Number of first ids that mean the same tokens to two tokenizers, if these are all the tokens of one.

    Models of a family often differ by a few tokens at the end, such as `<think>`. Their output matrices then
    have that many comparable rows.

    Returns:
        None if a token of the smaller one has another id in the larger one, or an id of it has another token.
    """
    small, large = sorted((ours, theirs), key=tokenizer_size)
    shared, tokens = small.get_vocab(), large.get_vocab()
    size = tokenizer_size(small)
    same = all(tokens.get(token) == index for token, index in shared.items())
    alone = same and all(index >= size for token, index in tokens.items() if token not in shared)
    return size if alone else None


def end_ids(tokenizer: Any, configuration: Any) -> list[int]:
    """Ids of all tokens that end a completion, first the one that the chat template puts after an answer.

    Args:
        tokenizer: with an end-of-sequence token.
        configuration: model or generation configuration, with further end tokens; None: there is none.
    """
    configured = getattr(configuration, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    ends = list(dict.fromkeys([tokenizer.eos_token_id, *listed]))
    closing = _closing_token(tokenizer, ends)
    return sorted(ends, key=lambda token: token != closing)


def tokenize(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Token ids of a text.

    Raises:
        UserError: the tokenizer refuses the text.
    """
    try:
        return tokenizer(text, **options).input_ids
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise UserError(
            f"the tokenizer cannot spell {text[:60]!r} ({error}): take it out of the data"
        ) from error


def template_variables(tokenizer: Any) -> dict[str, Any]:
    """Variables for the chat template, such as `enable_thinking`; empty: the template's own defaults.

    They are `model.chat_template_kwargs`, which a saved tokenizer keeps.
    """
    return dict(getattr(tokenizer, "init_kwargs", {}).get(TEMPLATE_VARIABLES) or {})


def set_template_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Give a tokenizer variables for its chat template, over those that it was saved with."""
    tokenizer.init_kwargs[TEMPLATE_VARIABLES] = template_variables(tokenizer) | dict(variables)


def template_of(tokenizer: Any) -> str:
    """The chat template and its variables as a text, for cache keys."""
    variables = template_variables(tokenizer)
    return f"{tokenizer.chat_template}" + (f"\0{json.dumps(variables, sort_keys=True)}" if variables else "")


def _closing_token(tokenizer: Any, ends: Sequence[int]) -> int | None:
    """The end token that the chat template puts after an answer; None without a template that renders one."""
    if not tokenizer.chat_template:
        return None
    marker = "ANSWER"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **template_variables(tokenizer))
    except Exception:  # a template may raise anything
        return None
    behind = tokenizer(text.rpartition(marker)[2], add_special_tokens=False).input_ids
    return next((token for token in behind if token in ends), None)
