import re
from pathlib import Path

import pytest
from pydantic import JsonValue, ValidationError

from offline.errors import ConfigurationError
from offline.llm_settings import LlmSettings, LlmSource, LocalGguf, NoLlm, RemoteLlm, llm_source


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("none", NoLlm()),
        ("local=/models/a=b.gguf", LocalGguf(Path("/models/a=b.gguf"))),
        ("local=~/m.gguf", LocalGguf(Path.home() / "m.gguf")),
        ("http://127.0.0.1:8000/v1/", RemoteLlm("http://127.0.0.1:8000/v1")),
        ("https://api.example.com/v1", RemoteLlm("https://api.example.com/v1")),
    ],
)
def test_llm_source(text: str, source: LlmSource) -> None:
    assert llm_source(text) == source


@pytest.mark.parametrize("text", ["", "None", "local", "local=", "ftp://host/v1", "https://", "model.gguf"])
def test_what_is_no_llm_is_quoted_with_what_would_be(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--llm is {text!r}: write local=PATH"):
        llm_source(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:s3cret@host:8000/v1", "http://host:8000"),
        ("https://host/v1?key=s3cret", "https://host"),
        ("http://user:s3cret/@host/v1", "http://***"),
        ("http://user:s3cret", "http://***"),
        ("ftp://user:s3cret@host/v1", "ftp://host"),
        ("user:s3cret@host/v1", "***"),
    ],
)
def test_an_address_with_a_password_is_refused_without_it(text: str, shown: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^--llm is {re.escape(repr(shown))}[ :]"):
        llm_source(text)


def test_settings_come_from_the_environment_and_the_key_stays_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA4REC_LLM_API_KEY", "s3cret")
    monkeypatch.setenv("PERSONA4REC_LLM_PARAMETERS", '{"top_p": 0.5, "seed": null}')
    settings = LlmSettings(concurrency=3)
    assert settings.api_key.get_secret_value() == "s3cret"
    assert "s3cret" not in f"{settings!r}{settings}"
    assert settings.named("m").parameters == {"top_p": 0.5, "seed": None}


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"input_price": -1}, {"budget": float("inf")}, {"attempts": 0}])
def test_settings_have_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LlmSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"n": 4}, {"best_of": 2}, {"stream": True}])
def test_what_would_make_several_answers_of_a_call_is_refused(wrong: dict[str, JsonValue]) -> None:
    """Each of them is paid for, and one is read."""
    with pytest.raises(ValidationError, match=f"{next(iter(wrong))} is .*: a call takes one answer"):
        LlmSettings(parameters=wrong)
    assert LlmSettings(parameters={"n": 1, "best_of": None, "stream": False}).parameters
