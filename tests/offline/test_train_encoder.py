import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer

from candidate_gen.implicit_models import DEFAULTS
from offline import encoder_files, encoder_variant
from offline.dataset import Dataset
from offline.encoder import BothSidesAlike, Encoder, load_encoder
from offline.encoder_files import META, state_of
from offline.errors import ConfigurationError, DatasetError, EncoderError
from offline.evaluate import Choice, Materials, materials_of
from offline.histories import aspect_texts
from offline.lora import Shape, adapt
from offline.publish import documents
from offline.records import Alignment, Interaction
from offline.splits import Fold, cross_validation
from offline.train_adapter import Settings
from offline.train_encoder import EncoderFit, EncoderSettings, TrainedEncoder, train_encoder
from offline.training import Point
from offline.training_data import TrainingData, training_data
from offline.training_texts import texts_of
from offline.vector_cache import CachedEncoder
from reranker.records import Vector
from tests.offline.tiny_encoder import SETTINGS, data_of, texts, train, write_tiny


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Weights depend on the number of threads; and where cores are shared, one is several times as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def trained(model: Path) -> TrainedEncoder:
    return train(model)


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "encoder"
    found = train(model, path)
    encoder_files.write(found, data_of(load_encoder(str(model))), str(model), path)
    return path


# ---- what is learnt --------------------------------------------------------------------------------------------------


def test_planted_tastes_are_found_for_users_never_trained_on(trained: TrainedEncoder) -> None:
    assert trained.best.ndcg > trained.points[0].ndcg + 0.1
    assert trained.points[-1].loss < trained.points[1].loss
    assert len(trained.held_out) == round(0.2 * 32)


def test_judged_personas_are_drawn_to_their_users(model: Path) -> None:
    def margin(judged: bool) -> float:
        encoder = train(model, judged=judged).encoder
        similarities = encoder.interactions(texts().events) @ encoder.personas(texts().personas).T
        items = np.arange(len(texts().events))
        return float((similarities[items, 2 * items + 1] - similarities[items, 2 * items]).mean())

    assert margin(judged=True) > margin(judged=False) + 0.05


def test_only_low_rank_factors_learn(model: Path) -> None:
    lora = adapt(load_encoder(str(model)), Shape(rank=2, alpha=4), seed=0)
    assert lora.targets == ("query", "value")
    assert sum(weight.numel() for weight in lora.parameters.values()) == 2 * (32 * 2 + 2 * 32)


def test_factors_that_have_learnt_nothing_change_no_vector(model: Path) -> None:
    encoder = load_encoder(str(model))
    before = encoder.encode(texts().events)
    adapt(encoder, Shape(), seed=0)
    assert encoder.encode(texts().events) == pytest.approx(before, abs=1e-6)


def test_training_embeds_as_publishing_and_evaluating_do(model: Path) -> None:
    """One function from text to vector: the loss sees the very vectors that are stored and ranked by."""
    encoder = load_encoder(str(model))
    fit = EncoderFit(encoder, data_of(encoder), texts(), SETTINGS, seed=0)
    fit.advance()
    wanted = [*texts().personas, "", "a very long voyage " * 40]
    with torch.no_grad():
        seen = encoder.differentiable(wanted).numpy()
    assert seen == pytest.approx(encoder.encode(wanted), abs=1e-6)
    assert seen == pytest.approx(encoder.personas(wanted), abs=1e-6)
    assert seen == pytest.approx(encoder.interactions(wanted), abs=1e-6)


# ---- when it stops ---------------------------------------------------------------------------------------------------


def test_a_model_stored_in_half_precision_is_trained(model: Path, tmp_path: Path) -> None:
    half = SentenceTransformer(str(model))
    half.to(torch.bfloat16).save(str(tmp_path / "half"), create_model_card=False)
    found = train_encoder(
        load_encoder(str(tmp_path / "half")), data_of(load_encoder(str(model))), texts(), replace(SETTINGS, epochs=1)
    )
    assert np.isfinite(found.points[-1].loss)
    assert found.encoder.encode(["a book"]).dtype == np.float32


def test_the_best_epoch_is_kept(model: Path) -> None:
    encoder = load_encoder(str(model))
    data = data_of(encoder)
    # Steps so large that nothing can be gained.
    wild = replace(SETTINGS, learning_rate=50.0, epochs=9, patience=2)
    found = train_encoder(encoder, data, texts(), wild)
    assert found.points[-1].epoch == found.best.epoch + 2 < 9
    if found.best.epoch == 0:
        assert found.encoder.encode(texts().events) == pytest.approx(data.event_vectors, abs=1e-6)


class Unasked(BothSidesAlike):
    """Would have to embed what is not kept, and cannot."""

    def __init__(self, like: Encoder) -> None:
        self.space, self.dimension = like.space, like.dimension

    def encode(self, texts: Sequence[str]) -> Vector:
        raise AssertionError(f"{len(texts)} texts are embedded again")


def test_the_vectors_of_the_best_epoch_are_kept_for_whoever_uses_it(model: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(model))
    trained = train_encoder(encoder, data_of(encoder), texts(), SETTINGS, vectors=tmp_path).encoder
    kept = CachedEncoder(Unasked(trained), tmp_path)
    assert kept.personas(texts().personas) == pytest.approx(trained.personas(texts().personas), abs=1e-6)
    assert kept.interactions(texts().events) == pytest.approx(trained.interactions(texts().events), abs=1e-6)


def test_a_seed_gives_the_same_result_twice_and_another_another(model: Path, trained: TrainedEncoder) -> None:
    torch.manual_seed(1)  # whoever else draws random numbers changes nothing
    again = train(model)
    assert again.encoder.space == trained.encoder.space
    assert repr(again.points) == repr(trained.points)
    assert train(model, seed=1).encoder.space != trained.encoder.space


def test_too_few_users_are_refused(model: Path) -> None:
    encoder = load_encoder(str(model))
    with pytest.raises(DatasetError, match="too few users to train an encoder: 19 like two items"):
        train_encoder(encoder, data_of(encoder, users=19), texts())


# ---- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_killed_training_ends_with_the_same_weights(model: Path, trained: TrainedEncoder, tmp_path: Path) -> None:
    path = tmp_path / "encoder"
    process = subprocess.Popen([sys.executable, "-m", "tests.offline.tiny_encoder", str(model), str(path)])
    deadline = time.monotonic() + 120
    while not state_of(path).path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    encoder_files.require_place(path)

    told: list[Point] = []
    encoder = load_encoder(str(model))
    resumed = train_encoder(encoder, data_of(encoder), texts(), SETTINGS, state=state_of(path), report=told.append)
    assert told[0].epoch > 0
    assert repr(resumed.points) == repr(trained.points)
    assert resumed.encoder.space == trained.encoder.space


# ---- the directory ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_the_encoder_that_was_trained(written: Path, trained: TrainedEncoder) -> None:
    loaded = load_encoder(str(written))
    assert loaded.encode(texts().personas) == pytest.approx(trained.encoder.encode(texts().personas), abs=1e-5)
    plain = SentenceTransformer(str(written)).encode(list(texts().personas), normalize_embeddings=True)
    assert plain == pytest.approx(loaded.encode(texts().personas), abs=1e-6)
    assert not (written / "training").exists()
    assert (written / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_adapter_that_is_kept_is_the_one_that_was_merged(written: Path, model: Path) -> None:
    base = SentenceTransformer(str(model))
    PeftModel.from_pretrained(cast("Any", base[0]).auto_model, str(written / "lora"))
    expected = load_encoder(str(written)).encode(texts().personas)
    assert base.encode(list(texts().personas), normalize_embeddings=True) == pytest.approx(expected, abs=1e-5)


def test_card_and_figures_say_what_it_was_trained_on(written: Path, trained: TrainedEncoder, model: Path) -> None:
    fingerprint = data_of(load_encoder(str(model))).fingerprint
    card, meta = (written / "README.md").read_text(), json.loads((written / META).read_text())
    for fact in (fingerprint, f"{trained.best.ndcg:.4f}", "base_model: tiny", "query, value", "rank 16, alpha 32"):
        assert fact in card
    assert meta["metrics"]["ndcg"] == trained.best.ndcg
    places = [path for path in written.rglob("*") if path.is_file() and str(model).encode() in path.read_bytes()]
    assert places == [], "where the base lay on this machine"


def test_other_weights_are_another_space_and_the_kept_adapter_decides_nothing(written: Path, model: Path) -> None:
    space = load_encoder(str(written)).space
    assert space.split(":")[1:] != load_encoder(str(model)).space.split(":")[1:]
    config = written / "lora" / "adapter_config.json"
    config.write_text(config.read_text() + "\n")
    assert load_encoder(str(written)).space == space


def test_something_else_is_never_written_over(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ConfigurationError, match="holds something else than a trained encoder"):
            encoder_files.require_place(path)
    for path in (tmp_path / "new", written):
        encoder_files.require_place(path)
    (written / "notes.txt").touch()
    with pytest.raises(ConfigurationError, match=r"notes\.txt"):
        encoder_files.require_place(written)
    (written / "notes.txt").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="is the current directory"):
        encoder_files.require_place(Path())


def test_a_model_without_a_transformer_is_named(model: Path) -> None:
    encoder = load_encoder(str(model))
    pooling = SentenceTransformer(modules=[encoder.model[1]])
    with pytest.raises(EncoderError, match="has no transformer to adapt"):
        adapt(replace(encoder, model=pooling), Shape(), seed=0)


# ---- on a real catalogue ---------------------------------------------------------------------------------------------


def test_texts_stand_where_their_vectors_do(catalogue: Dataset, model: Path) -> None:
    """With aspects, which stand behind the items: what is trained on is what publishing and histories embed."""
    encoder = load_encoder(str(model))
    materials = materials_of(catalogue, encoder)
    data = training_data(materials, catalogue.interactions())
    found = documents(catalogue)
    there = texts_of(data, materials.index, found, aspect_texts(catalogue, found))
    assert len(data.said) > 0
    assert encoder.personas(there.personas) == pytest.approx(data.persona_vectors, abs=1e-5)
    assert encoder.interactions(there.events) == pytest.approx(data.event_vectors, abs=1e-5)


def test_a_fold_trains_on_its_own_interactions_alone(
    catalogue: Dataset, model: Path, interactions: tuple[Interaction, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[Interaction, ...], TrainingData]] = []
    asked: list[Collection[str] | None] = []

    def watched(
        materials: Materials, given: Iterable[Interaction], alignments: Iterable[Alignment] = ()
    ) -> TrainingData:
        found = tuple(given)
        seen.append((found, training_data(materials, found, alignments)))
        return seen[-1][1]

    def tune(
        prepare: Callable[[Fold], Materials], fold: Fold, start: Choice, users: Collection[str] | None = None
    ) -> Choice:
        asked.append(users)
        return start

    monkeypatch.setattr("offline.encoder_variant.training_data", watched)
    materials = materials_of(catalogue, load_encoder(str(model)))
    persona = {document.item.item_id: document.personas[0].persona_id for document in documents(catalogue)}
    alignments = [Alignment(i.user_id, i.item_id, persona[i.item_id], "") for i in interactions]
    fold = cross_validation(interactions, 4, 0)[0]
    settings = EncoderSettings(batch=24, steps=2, epochs=1)
    within = encoder_variant.trained_within(catalogue, materials, str(model), alignments, settings, seed=0)
    train_part = replace(fold, test=())
    start = Choice(DEFAULTS["als"], 0.5, 0.9, 5)

    its, _ = encoder_variant.alone(within, tune).prepare(train_part, start)
    assert its.index.space.startswith(f"{materials.index.space}+lora:")
    both = encoder_variant.with_adapter(within, alignments, tune, seed=0, grid=[Settings(rank=2, epochs=1)])
    adapted, _ = both.prepare(train_part, start)
    assert adapted.index.space.startswith(f"{its.index.space}+adapter:")

    ((given, data),) = seen  # one training for both
    assert not {(i.user_id, i.item_id) for i in given} & set(fold.test)
    assert data.alignments_left_out == len(fold.test)
    held_out, again = asked
    assert held_out == again
    assert held_out is not None
    assert 0 < len(held_out) < len(data.users)
    assert set(held_out) <= {user.user_id for user in data.users}
