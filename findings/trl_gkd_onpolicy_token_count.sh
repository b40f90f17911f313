#!/usr/bin/env bash
# One would guess: on-policy, GKDTrainer's loss is a mean over the tokens that the student generated. The answers in
# the data set are replaced, so their length does not matter.
# What happens: transformers counts num_items_in_batch from the labels of the data set, before training_step replaces
# them with the student's rollout. The sum over the rollout is divided by the length of the answers in the data.
# With the same rollout of 4 tokens, answers that are 10 times as long make loss and gradient 10 times smaller.
# Why it matters: the size of a step depends on texts that are not trained on, prompt by prompt, and losses of two
# data sets with the same prompts can't be compared.
# Source: trl/experimental/gkd/gkd_trainer.py, GKDTrainer.training_step and generalized_jsd_loss;
# transformers/trainer.py, Trainer.get_batch_samples and _get_num_items_in_batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 trl==1.16.0 accelerate==1.15.0 datasets==5.2.0
export HF_HOME="$work/hf" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
export TRL_EXPERIMENTAL_SILENCE=1
"$work/venv/bin/python" -W ignore - "$work/out" <<'EOF'
import sys
from importlib.metadata import version

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.gkd import GKDConfig, GKDTrainer

print(*(f"{name} {version(name)}" for name in ("trl", "transformers", "torch")))
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w2"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.5}
tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}


def random_model(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens))


def first_loss(answer_tokens):
    answer = " ".join(["w3"] * answer_tokens)
    chat = [{"role": "user", "content": "w2"}, {"role": "assistant", "content": answer}]
    limits = {"max_steps": 1, "max_new_tokens": 4, "per_device_train_batch_size": 1, "seed": 0}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    args = GKDConfig(output_dir=sys.argv[1], lmbda=1.0, use_cpu=True, bf16=False, **limits, **quiet)
    data = Dataset.from_list([{"messages": chat}])
    trainer = GKDTrainer(random_model(0), random_model(1), args, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


losses = {length: first_loss(length) for length in (4, 8, 40)}
print("loss by the length of the data set's answer:", losses)
assert abs(losses[4] / losses[8] - 2) < 1e-3
assert abs(losses[4] / losses[40] - 10) < 1e-3
EOF
