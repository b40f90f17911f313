"""Neutral values of the sampling fields that a server would take from the model's generation_config.json."""

import re
import sys
from collections.abc import Collection, Mapping

from tqdm.auto import tqdm

# vLLM and SGLang apply what generation_config.json says of each field that a request leaves out. top_k is off
# at -1 for both of them and llama.cpp; some other servers know only 0.
NEUTRAL: Mapping[str, float] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_UNKNOWN = re.compile(
    r"unrecogni[sz]ed|unexpected|unknown|unsupported|extra |no such|does ?n[o']t support|"
    r"not (?:supported|permitted|allowed|recogni[sz]ed)|"
    r"not a valid (?:field|param)",
    re.IGNORECASE,
)


class NeutralFields:
    """Fields that are sent with every request, less those that the server refuses.

    A refusal that names some of them is answered by sending the request again without these. What the first
    answered request was sent with is kept for all others.

    Args:
        own: fields that the user sets or leaves out, which are not touched.

    Attributes:
        fields: what to send.
    """

    def __init__(self, own: Collection[str] = ()) -> None:
        self.fields: dict[str, float] = {name: value for name, value in NEUTRAL.items() if name not in own}
        self._settled = False

    def fewer(self, sent: Mapping[str, float], said: str) -> dict[str, float] | None:
        """What to send instead after a refusal; None: it is about something else.

        Args:
            sent: the neutral fields of the refused request.
            said: the server's words.
        """
        if self._settled:
            return None if sent == self.fields else self.fields
        squeezed = re.sub(r"[^a-z]", "", said.lower())  # presencePenalty, presence penalty
        named = [name for name in sent if name.replace("_", "") in squeezed]
        if not named:
            return None
        left = {name: value for name, value in sent.items() if name not in named}
        if sent.get("top_k") == NEUTRAL["top_k"] and "top_k" in named and not _UNKNOWN.search(said):
            left["top_k"] = 0
        return left

    def settle(self, sent: Mapping[str, float], url: str) -> None:
        """Keep the fields of a request that was answered, and say which ones the server does not take."""
        if self._settled:
            return
        self._settled = True
        if missing := [name for name in self.fields if name not in sent]:
            tqdm.write(
                f"the server at {url} does not take {', '.join(missing)}, so that it samples with its own "
                f"values: look whether the model's generation_config.json sets them",
                file=sys.stderr,
            )
        self.fields = dict(sent)
