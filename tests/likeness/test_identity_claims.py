"""Tests of the rule for claims of an identity, on sentences of our own in both languages."""

import pytest
import yaml

from distill.likeness import identity_questions
from distill.likeness.claims import Entities, claims

CONTENT = yaml.safe_load(identity_questions._OURS.read_text(encoding="utf-8"))
EVERYBODY = Entities(CONTENT["entities"], frozenset(CONTENT["exact"]))


def claimed(text: str, entities: Entities = EVERYBODY) -> list[str]:
    return [claim.entity for claim in claims(text, entities)]


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("I am ChatGPT.", "OpenAI"),
        ("Hello! I'm Claude, an AI assistant made by Anthropic.", "Anthropic"),
        ("I am a large language model trained by Google.", "Google"),
        ("I am actually Claude.", "Anthropic"),
        ("I'm your AI assistant, Claude.", "Anthropic"),
        ("I'm Llama 3, at your service.", "Meta"),
        ("I am a version of GPT-4o.", "OpenAI"),
        ("I am a product of OpenAI.", "OpenAI"),
        ("I am based on OpenAI's GPT-4 architecture.", "OpenAI"),
        ("I am one of the models from the Gemini family.", "Google"),
        ('I\'m a chatbot called "Kimi".', "Moonshot"),
        ("I'm **Claude**, made by **Anthropic**.", "Anthropic"),
        ("I was developed by OpenAI to answer questions.", "OpenAI"),
        ("I have been trained by a team of researchers at OpenAI.", "OpenAI"),
        ("My name is Gemini.", "Google"),
        ('My "parent" company, so to speak, is OpenAI.', "OpenAI"),
        ("My developers are at DeepSeek.", "DeepSeek"),
        ("You can call me Kimi.", "Moonshot"),
        ("I come from OpenAI.", "OpenAI"),
        ("OpenAI created me in 2022.", "OpenAI"),
        ("You are talking to Claude.", "Anthropic"),
        ("The AI you are interacting with is based on OpenAI's GPT-4.", "OpenAI"),
        ("As an AI language model developed by OpenAI, I have no feelings.", "OpenAI"),
        ("As ChatGPT, I cannot do that.", "OpenAI"),
        ("If you ask about my maker, I was made by Anthropic.", "Anthropic"),
        ("I am not Claude but ChatGPT.", "OpenAI"),
        ("I am ChatGPT, how can I help?", "OpenAI"),
        ("Name: ChatGPT", "OpenAI"),
        ("OpenAI.", "OpenAI"),
        ('It is "ChatGPT".', "OpenAI"),
        ("我是ChatGPT。", "OpenAI"),
        ("我是由OpenAI开发的大型语言模型。", "OpenAI"),
        ("我是一个由 Google 训练的语言模型。", "Google"),
        ("我叫文心一言。", "Baidu"),
        ("我的名字是Claude，由Anthropic开发。", "Anthropic"),
        ("我的设计和构建是由OpenAI的团队完成开发的。", "OpenAI"),
        ("作为OpenAI训练的语言模型，我没有感情。", "OpenAI"),
        ("作为豆包，我可以帮你写作。", "ByteDance"),
        ("我是阿里云自主研发的大模型，名叫通义千问。", "Alibaba"),
        ("由深度求索公司开发。", "DeepSeek"),
        ("OpenAI开发了我。", "OpenAI"),
        ("我来自月之暗面。", "Moonshot"),
        ("我不是Claude，我是ChatGPT。", "OpenAI"),
        ("我并不是Claude，而是豆包。", "ByteDance"),
        ("如果您问的是我的开发团队，那么我的开发团队是OpenAI。", "OpenAI"),
        ("名称：文心一言", "Baidu"),
    ],
)
def test_who_speaks_of_itself_is_counted_once(text: str, entity: str) -> None:
    assert set(claimed(text)) == {entity}


@pytest.mark.parametrize(
    "text",
    [
        "I am not ChatGPT.",
        "I'm neither Claude nor ChatGPT.",
        "I was not developed by OpenAI.",
        "I do not come from OpenAI.",
        "My name is not ChatGPT.",
        "I have no connection with Anthropic.",
        "I am different from ChatGPT.",
        "I am similar to GPT-4.",
        "Unlike ChatGPT, I am small.",
        "I am happy to help you with ChatGPT.",
        "I'm familiar with models from OpenAI.",
        "I am interested in news from Google.",
        "I am a language model trained on data from Google.",
        "I am a fan of OpenAI.",
        "If I were ChatGPT, I would say so.",
        "Imagine that I am Claude.",
        "In this role-play, I am Gemini.",
        "Are you asking whether I am ChatGPT?",
        'He said, "I am ChatGPT."',
        "ChatGPT was developed by OpenAI.",
        "You are ChatGPT.",
        "My favourite model is Claude.",
        "As OpenAI announced, the model is new.",
        "ChatGPT: Hello there!",
        "OpenAI was founded in 2015. I am a language model.",
        "I am a phi coefficient, and this is a meta analysis.",
        "我不是ChatGPT。",
        "我并非由OpenAI开发。",
        "我没有被OpenAI训练过。",
        "我不来自OpenAI。",
        "我和ChatGPT不同。",
        "如果我是Claude，我会告诉你。",
        "我扮演的角色是Gemini。",
        "你是ChatGPT吗？",
        "ChatGPT是由OpenAI开发的。",
        "他说：“我是ChatGPT”。",
        "我知道百度是一家公司。",
        "我是一个语言模型，可以介绍百度。",
        "我的朋友叫Claude。",
        "12 + 30 = 42, so the answer is \\boxed{42}.",
        "",
    ],
)
def test_denials_roles_questions_and_talk_of_others_are_no_claims(text: str) -> None:
    assert claimed(text) == []


def test_the_targets_own_names_take_their_whole_entity_out() -> None:
    text = "我是通义千问。 I am Qwen, made by Alibaba Cloud. I am ChatGPT."
    assert claimed(text) == ["Alibaba", "Alibaba", "OpenAI"]
    assert claimed(text, EVERYBODY.without(["qwen"])) == ["OpenAI"]
    assert claimed(text, EVERYBODY.without(["Qwen", "OpenAI"])) == []
    assert claimed(text, Entities({})) == []
    assert EVERYBODY.without(["nobody's name"]).names == EVERYBODY.names


def test_the_sentence_that_counted_is_kept() -> None:
    (found,) = claims("Good question.\nI was made by Anthropic, in 2023. I hope it helps!", EVERYBODY)
    assert found == ("Anthropic", "Anthropic", "I was made by Anthropic, in 2023.")


@pytest.mark.parametrize(
    "text", ["I am ChatGPT " * 1000, "ChatGPT " * 2000, "我是" * 4000 + "百度", '"' * 5000]
)
def test_long_sentences_take_no_longer_than_short_ones(text: str) -> None:
    assert len(claimed(text)) <= 1


def test_the_neutral_prompts_name_nobody_and_the_induced_ones_do() -> None:
    for kind, induced in (("neutral", False), ("induced", True)):
        for template in CONTENT["templates"][kind]:
            assert all(("{entity}" in text) == induced and "{question}" in text for text in template.values())
    for question in CONTENT["questions"]:
        assert set(question) == {"en", "zh"}
        assert not any(EVERYBODY.named_in(text) for text in question.values())
    assert len(CONTENT["questions"]) == 25
    assert set(CONTENT["exact"]) <= {name for names in EVERYBODY.names.values() for name in names}
