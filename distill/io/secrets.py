"""Keep passwords and API keys out of messages and files."""

import re
from typing import Any

_IN_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/\s@'\"]+(?:/[^/\s@'\"]*)?@")
# The prefixes of well-known providers' keys, and long mixtures of letters and digits.
_KEY = re.compile(r"(?:sk|gsk|hf|xai|nvapi|pplx|r8|csk|tgp)[-_]\w[\w-]{8,}|AIza[\w-]{10,}|\w{32,}")
_SECRET = (
    r"(?:api_?key|secret_?key|private_?key|access_?key|authorization|password|passwd|secret|bearer|token)"
)
_NAMES_KEY = re.compile(rf"(?:^|_){_SECRET}$")
_TEXT_TOKEN = re.compile(r"(?:^|_)(?:bos|eos|eot|pad|unk|sep|cls|mask|end|start|stop|image)_token$")
_IN_MAPPING = re.compile(r"([\w-]+)(['\"]?\s*:\s*)[^\s,}\]]+")  # {api_key: abc}


def without_secrets(text: str, *secrets: str) -> str:
    """A text without the user names and passwords of its addresses (`http://user:password@host`).

    Args:
        text: a message, or a file's content.
        secrets: further strings to hide, such as a key; empty ones are ignored.
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _IN_URL.sub(r"\1***@", text)


def hide_secrets(value: Any, name: str = "") -> Any:
    """Plain values without the logins of addresses, and with `***` under names such as `api_key`.

    Args:
        value: mappings, lists and values, of a configuration that is sent to somebody.
        name: key that the value stands under.
    """
    if hasattr(value, "items"):
        return {key: hide_secrets(own, str(key)) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_secrets(own, name) for own in value]
    if _names_key(name) and value not in ("", None) and not isinstance(value, bool):
        return "***"
    return without_secrets(value) if isinstance(value, str) else value


def hide_in_word(word: str) -> str:
    """A word of a command line without secrets: `+logger.my.token=abc` becomes `+logger.my.token=***`."""
    name, equals, value = word.partition("=")
    if equals and value and _names_key(re.split(r"[.+~]", name)[-1]):
        return f"{name}=***"
    return _IN_MAPPING.sub(
        lambda found: f"{found[1]}{found[2]}***" if _names_key(found[1]) else found[0], without_secrets(word)
    )


def _names_key(name: str) -> bool:
    """Whether a key's name says that it holds a secret; a tokenizer's `end_token` holds none."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_")  # openaiApiKey
    return _NAMES_KEY.search(name) is not None and _TEXT_TOKEN.search(name) is None


def looks_like_key(text: str) -> bool:
    """Whether a text looks like an API key, and not like the name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_]\w*", text):
        return True
    return _KEY.fullmatch(text) is not None and not text.isupper()


def key_field(fields: Any, above: str = "") -> str | None:
    """The full name of the first field, at any depth of mappings, whose name says that it holds a key."""
    for name, value in fields.items() if hasattr(fields, "items") else ():
        place = f"{above}{name}"
        if isinstance(value, str) and value and _names_key(str(name)):
            return place
        if found := key_field(value, f"{place}."):
            return found
    return None
