"""Tokenizers with the ways in which real chat templates write thoughts, each reduced to that one way."""

import re
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CHATML = "{{ '<|im_start|>' + m.role + '\n' }}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
_PARTS = (
    "{% set content = m.content %}{% set thought = m.reasoning_content | default('') %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
_THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}" + _PARTS + _CHATML + "{{ '<think>\n' + thought +"
    " '\n</think>\n\n' + content + '<|im_end|>\n' }}{% else %}" + _CHATML + "{{ m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}" + _BEGIN
)
_EMPTY = "{{ '<think>\n\n</think>\n\n' }}"
_PLAIN = "{% for m in messages %}" + _CHATML + "{{ m.content | trim + '<|im_end|>\n' }}{% endfor %}" + _BEGIN
_OFF = "{% if enable_thinking is defined and enable_thinking is false %}"

# By what they do, and whose they are like.
TEMPLATES = {
    "knows no thoughts": _PLAIN + "{% endif %}",  # Qwen2.5, Llama 3, SmolLM2
    "writes them": _THINKS + _OFF + _EMPTY + "{% endif %}{% endif %}",  # Qwen3
    "opens them": _THINKS + _OFF + _EMPTY + "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}",  # Qwen3.5
    "opens and drops them": (  # DeepSeek-R1
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
        "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
    ),
    "reads fields only": (  # Qwen3.8
        "{% for m in messages %}" + _CHATML + "{% if m.role == 'assistant' %}{{ '<think>\n' +"
        " (m.reasoning_content | default('')) + '\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + _BEGIN + "{{ '<think>\n' }}{% endif %}"
    ),
    "keeps them narrow": (  # Nemotron 3, with <think></think> where it opens <think>\n
        "{% for m in messages %}" + _CHATML + "{% if m.role == 'assistant' and '<think>' not in m.content %}"
        "{{ '<think></think>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        + _BEGIN
        + "{{ '<think>\n' }}{% endif %}"
    ),
    "has channels": (  # gpt-oss
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|start|>assistant' }}"
        "{% if m.thinking is defined %}{{ '<|channel|>analysis<|message|>' + m.thinking +"
        " '<|end|><|start|>assistant' }}{% endif %}"
        "{{ '<|channel|>final<|message|>' + m.content + '<|im_end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    "closes the answer": (  # Command R7B, with a token between answer and end token
        "{% for m in messages %}"
        + _CHATML
        + "{{ m.content + '<|END_RESPONSE|><|im_end|>' }}{% endfor %}"
        + _BEGIN
        + "{% endif %}"
    ),
}
_SPECIAL = re.compile(r"<\|?[\w/｜▁]+\|?>|<[|｜][^<>\n' ]{2,30}[|｜]>")


def tokenizer_with(template: str, *, special_tags: bool = False) -> Any:
    """A tokenizer of bytes whose special tokens are those of the template.

    Args:
        template: the chat template.
        special_tags: whether `<think>` and `</think>` are special tokens.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(["a"], trainer)
    tags = {"<think>", "</think>"}
    special = {"<|im_end|>", "<eos>", *_SPECIAL.findall(template)}
    special = special | tags if special_tags else special - tags
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<eos>", pad_token="<eos>", bos_token="<bos>"
    )
    made.add_special_tokens({"additional_special_tokens": sorted(special)})
    made.add_tokens(sorted(tags))
    made.chat_template = template
    return made
