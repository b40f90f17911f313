#!/usr/bin/env bash
# One would guess: Dataset.from_dict with features that do not fit the records raises, since a column that the
# features lack raises a KeyError and Dataset.cast to the same features raises a TypeError.
# What happens: a key of a nested record that the features lack is dropped, without an error or a warning.
# Why it matters: conversations are lists of records. With features of role and content, every tool_calls is gone,
# and a model is trained on assistant turns that are empty.
# Source: datasets/arrow_writer.py, TypedSequence, which hands the type to pyarrow.array; pyarrow ignores keys of a
# dict that its struct type does not name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1
HF_HOME="$work/hf" HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - <<'EOF'
import datasets
import pyarrow
from datasets import Dataset, Features, Value

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
turn = {"role": "assistant", "content": "", "tool_calls": ["add(1, 2)"]}
features = Features({"messages": [{"role": Value("string"), "content": Value("string")}]})


def error_of(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


dropped = Dataset.from_dict({"messages": [[turn]]}, features=features)[0]
column = error_of(lambda: Dataset.from_dict({"messages": [[turn]], "id": [1]}, features=features))
cast = error_of(lambda: Dataset.from_dict({"messages": [[turn]]}).cast(features))
print("a nested key too many:", dropped)
print("a column too many:", column, "| cast to the same features:", cast)
assert dropped == {"messages": [{"role": "assistant", "content": ""}]}
assert column == "KeyError"
assert cast == "TypeError"
EOF
