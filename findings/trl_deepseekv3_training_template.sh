#!/usr/bin/env bash
# One would guess: TRL's training version of a chat template keeps the thought of an assistant's last turn, since it
# is what the model shall learn. The one for DeepSeek-R1-Distill does, and its head comment says why.
# What happens: the training version for DeepSeek-V3 renders <think>T</think>A as A. It keeps the split at </think>
# of the original, which is meant for earlier turns in a chat, and marks what is left as the assistant's tokens.
# Why it matters: fine-tuning on reasoning traces with the thought inline trains answers without thoughts. Nothing is
# logged, and the loss looks fine.
# Source: trl/chat_templates/deepseekv3_training.jinja, beside deepseek_r1_distill_training.jinja.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0
HF_HOME="$work/hf" "$work/venv/bin/python" - <<'EOF'
import importlib.util
from importlib.metadata import version
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

print("trl", version("trl"), "transformers", version("transformers"))
# trl needs torch to be imported; its templates are plain files
folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
chat = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "<think>one and one</think>2"},
]


def render(name):
    template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    [text], _ = render_jinja_template(conversations=[chat], chat_template=template, bos_token="<bos>")
    print(name, "|", text)
    return text


assert "one and one" not in render("deepseek_r1_distill")
assert "one and one" in render("deepseek_r1_distill_training")
assert "one and one" not in render("deepseekv3")
assert "one and one" not in render("deepseekv3_training")
EOF
