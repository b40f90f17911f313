"""Tests of what is hidden before a configuration or a command line is sent or written."""

import pytest

from distill.io.secrets import hide_in_word, hide_secrets

HIDDEN = (
    "api_key",
    "OPENAI_API_KEY",
    "openaiApiKey",
    "password",
    "db-password",
    "token",
    "hf_token",
    "access_token",
)
KEPT = ("eos_token", "pad_token", "max_tokens", "tokenizer", "key_from", "keys", "token_loss", "author")


@pytest.mark.parametrize("name", HIDDEN)
def test_a_value_under_the_name_of_a_secret_is_hidden_at_any_depth(name: str) -> None:
    config = {"a": {"b": [{name: "sesame", "n": 1}], name: 12345}, name: None}
    assert hide_secrets(config) == {"a": {"b": [{name: "***", "n": 1}], name: "***"}, name: None}
    assert hide_in_word(f"+a.b.{name}=sesame") == f"+a.b.{name}=***"
    assert "sesame" not in hide_in_word(f"+a.b={{{name}: sesame, n: 1}}")


@pytest.mark.parametrize("name", KEPT)
def test_other_values_stay(name: str) -> None:
    assert hide_secrets({name: "value"}) == {name: "value"}
    assert hide_in_word(f"a.{name}=value") == f"a.{name}=value"


def test_a_login_in_an_address_is_hidden_whatever_its_key() -> None:
    config = {"url": "http://anna:sesame@host/v1", "more": ["postgresql://u:sesame@h/d"], "at": "a@b"}
    hidden = {"url": "http://***@host/v1", "more": ["postgresql://***@h/d"], "at": "a@b"}
    assert hide_secrets(config) == hidden
    assert hide_in_word("engine.url=http://anna:sesame@host/v1") == "engine.url=http://***@host/v1"
