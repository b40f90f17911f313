"""Keep passwords and API keys out of messages and files."""

import re
from typing import Any

_IN_URL = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/\s@'\"]+(?:/[^/\s@'\"]*)?@")
# The prefixes of well-known providers' keys, and long mixtures of letters and digits.
_KEY = re.compile(r"(?:sk|gsk|hf|xai|nvapi|pplx|r8|csk|tgp)[-_]\w[\w-]{8,}|AIza[\w-]{10,}|\w{32,}")
_NAMES_KEY = re.compile(
    r"(?:^|_)(?:api_?key|authorization|password|passwd|secret|bearer|access_token|token)$"
)


def without_secrets(text: str, *secrets: str) -> str:
    """A text without the user names and passwords of its addresses (`http://user:password@host`).

    Args:
        text: a message, or a file's content.
        secrets: further strings to hide, such as a key; empty ones are ignored.
    """
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _IN_URL.sub(r"\1***@", text)


def looks_like_key(text: str) -> bool:
    """Whether a text looks like an API key, and not like the name of an environment variable."""
    if not re.fullmatch(r"[A-Za-z_]\w*", text):
        return True
    return _KEY.fullmatch(text) is not None and not text.isupper()


def key_field(fields: Any, above: str = "") -> str | None:
    """The full name of the first field, at any depth of mappings, whose name says that it holds a key."""
    for name, value in fields.items() if hasattr(fields, "items") else ():
        place = f"{above}{name}"
        if isinstance(value, str) and value and _NAMES_KEY.search(str(name).lower().replace("-", "_")):
            return place
        if found := key_field(value, f"{place}."):
            return found
    return None
