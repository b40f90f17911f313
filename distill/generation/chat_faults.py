"""What a server's error says: its own sentence, whether another attempt can succeed, and how long to wait."""

import email.utils
import html
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import httpx

_OF_ONE_REQUEST = {400, 413, 422}  # rejections that may concern a single problem: too long, or filtered
_RETRIED = {408, 409, 425, 429, 498}  # beside those from 500 on
_NEVER_RETRIED = {501, 505}
_LONGEST_WAIT = 600.0
_SENTENCE = 300  # characters of a server's message that are shown
# Permanent faults under a status that is otherwise worth another attempt: llama.cpp answers 500 to a prompt
# that is too long, gateways answer 500 or 503 for a model that they do not have.
_TOO_LONG = re.compile(
    r"context.(?:length|size|window)|exceed_context|maximum.context|(?:prompt|input).{0,20}too.(?:long|large)",
    re.IGNORECASE,
)
_PERMANENT = re.compile(
    r"insufficient_quota|invalid.api.key|incorrect.api.key|authentication_error|invalid_request_error|"
    r"model_not_found|(?:unknown|no such).model|model\b.{0,80}(?:not found|does not exist|doesn't exist)",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"(?:unsupported|unknown|unrecogni[sz]ed|unexpected)[ _](?:request )?(?:param|argument|field|keyword)|"
    r"extra inputs are not permitted|extra_forbidden|"
    r"(?:param\w*|argument|field|option)\b.{0,60}\bnot (?:supported|permitted|allowed|recogni[sz]ed)",
    re.IGNORECASE,
)
_DELAY = re.compile(r"try again in (\d+(?:\.\d+)?) ?(ms|s)\b")
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|UnsupportedProtocol", re.IGNORECASE)


def is_permanent(status: int, body: str) -> bool:
    """Whether every further attempt would be answered with the same error."""
    retried = status in _RETRIED or (status >= 500 and status not in _NEVER_RETRIED)
    return not retried or bool(_PERMANENT.search(body)) or is_too_long(status, body)


def is_too_long(status: int, body: str) -> bool:
    """Whether the error concerns this request only: its prompt does not fit into the server's context.

    A setting that the server does not know it refuses for all.
    """
    if _SETTING.search(body):
        return False
    return status in _OF_ONE_REQUEST or (status >= 500 and bool(_TOO_LONG.search(body)))


def is_unreachable_for_good(error: httpx.HTTPError) -> bool:
    """Whether the address stays unreachable: there is no TLS, or an untrusted certificate."""
    return bool(_UNTRUSTED.search(f"{type(error).__name__} {error}"))


def error_within(answer: Any) -> tuple[int, str] | None:
    """Status and body of an error that came under status 200, as OpenRouter and llama.cpp send some."""
    if not isinstance(answer, Mapping):
        return None
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = answer.get("error") or (first.get("error") if isinstance(first, Mapping) else None)
    if not error:
        return None
    code = error.get("code") or error.get("status") if isinstance(error, Mapping) else None
    status = int(code) if isinstance(code, int | str) and re.fullmatch(r"[45]\d\d", str(code)) else 500
    return status, json.dumps({"error": error}, ensure_ascii=False)


def sentence(body: str) -> str:
    """The server's own sentence in an error's body, in one line and cut to a readable length."""
    try:
        said = _message(json.loads(body))
    except (ValueError, RecursionError):
        title = re.search(r"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
        said = html.unescape(title[1]) if title else body
    said = " ".join((said or body).split())
    return said if len(said) <= _SENTENCE else f"{said[:_SENTENCE]}..."


def asked_to_wait(headers: Mapping[str, str], body: str) -> float:
    """Seconds until the server wants another attempt, at most ten minutes; 0 if it does not say."""
    seconds = 0.0
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = seconds or float(value) * unit
        except ValueError:
            seconds = seconds or _until(value)
    if not seconds and (delay := re.search(r'"retryDelay":\s*"(\d+(?:\.\d+)?)s"', body)):  # Gemini
        seconds = float(delay[1])
    if not seconds and (delay := _DELAY.search(body)):
        seconds = float(delay[1]) * (1e-3 if delay[2] == "ms" else 1.0)
    return min(_LONGEST_WAIT, seconds) if math.isfinite(seconds) and seconds > 0 else 0.0


def _until(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _message(node: Any) -> str:
    """The message of an error's JSON, wherever servers put it; empty if there is none."""
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return "; ".join(filter(None, map(_message, node[:5])))
    if not isinstance(node, Mapping):
        return ""
    for name in ("error", "message", "msg", "detail", "errors", "error_description", "title"):
        if said := _message(node.get(name)):
            place = node.get("loc")  # FastAPI names the field
            return f"{'.'.join(map(str, place))}: {said}" if isinstance(place, list) else said
    return ""
