"""Settings from a file: every one is in the example, and the environment goes before it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from persona4rec import arguments
from reranker.check import shown_settings
from reranker.config import TABLES, ServerSettings
from reranker.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / "deploy" / "reranker.example.toml"


def uncommented() -> dict[str, Any]:
    """Return the example with all of its settings switched on."""
    return tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_the_example_has_every_setting_and_no_other() -> None:
    example = uncommented()
    assert set(example) == set(ServerSettings.model_fields) - {"config"}
    for table, kind in TABLES.items():
        assert set(example[table]) == set(kind.model_fields), table


def test_the_example_shows_the_defaults() -> None:
    shown, defaults = shown_settings(ServerSettings(**uncommented())), shown_settings(ServerSettings())
    differ = {name for name, default in defaults.items() if shown.get(name) != default}
    # What is not set by default has an example, and so has the number of cores.
    assert differ == {name for name, default in defaults.items() if default == "not set"} - {"config"} | {
        "workers",
        "served_log.to",
        "tracing.endpoint",
        "feedback.kinds",
    }


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@host:6379/0",
        "REDIS://user:s3cret@host:6379/0",
        "redis://:s3@cret@host",
        "redis://:s3/cret@host",
        "redis://:a s3cret b@host",
        "redis://host/0?password=s3cret",
    ],
)
def test_no_password_of_an_address_is_shown(url: str) -> None:
    shown = shown_settings(ServerSettings(histories=url, milvus_uri=url))
    assert not any("s3" in told or "cret" in told for told in shown.values())


def test_as_it_stands_the_example_changes_nothing() -> None:
    assert ServerSettings(config=EXAMPLE) == ServerSettings().model_copy(update={"config": EXAMPLE})


def test_flags_go_before_the_environment_and_that_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("gamma = 0.1\nhistory_length = 1\ngrpc_port = 1\n[limits]\ncandidates = 1\nconcurrency = 1\n")
    monkeypatch.setenv("PERSONA4REC_GAMMA", "0.2")
    monkeypatch.setenv("PERSONA4REC_HISTORY_LENGTH", "2")
    monkeypatch.setenv("PERSONA4REC_MAX_CANDIDATES", "2")
    monkeypatch.setenv("PERSONA4REC_CONFIG", str(file))
    found = arguments.settings({"gamma": 0.3})
    assert (found.gamma, found.history_length, found.grpc_port) == (0.3, 2, 1)
    assert (found.limits.candidates, found.limits.concurrency) == (2, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gama = 1", "there is no setting gama"),
        ("[limits]\ncandidats = 1", "there is no setting limits.candidats"),
        ("gamma = 7", "setting gamma is 7: .* PERSONA4REC_GAMMA"),
        ("[limits]\ncandidates = 0", "setting limits.candidates is 0: .* PERSONA4REC_MAX_CANDIDATES"),
        ('[tls]\nkey = "k"', r"setting tls: certificate and key belong together.* PERSONA4REC_TLS_\.\.\."),
        ('[tls]\nclient_ca = "k"', "client_ca needs certificate and key"),
        ("limits = 3", "setting limits is 3"),
        ("gamma = 0.5\nhost = ?", "cannot be read: .*line 2"),
        ("gamma = 7\ngama = 1\n[limits]\ncandidates = 0", "gamma is 7.*limits.candidates is 0.*no setting gama"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_all_that_is_wrong(file: Path, text: str, told: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        arguments.settings({"config": file})


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"--config {file} is not a file"):
        arguments.settings({"config": file})


def test_secrets_are_not_quoted(file: Path) -> None:
    file.write_text("milvus_token = 5\n[served_log]\nhash_key = 71234567")
    with pytest.raises(ConfigurationError) as error:
        arguments.settings({"config": file})
    assert "milvus_token: " in str(error.value)
    assert "71234567" not in str(error.value)
