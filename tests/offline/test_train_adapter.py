import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offline import adapter_files
from offline.adapter import Adapter
from offline.adapter_files import META, STATES, WEIGHTS, States
from offline.errors import AdapterError, ConfigurationError, DatasetError
from offline.train_adapter import Fit, Progress, Settings, Trained, train_adapter, train_with
from offline.training_data import Deal, TrainingData, batch_of
from offline.training_states import StateFile
from reranker.index import Index, build_index
from reranker.profile import build_profile
from reranker.records import Event, IndexRow, Manifest, Vector
from reranker.scoring import best_of_index
from reranker.segment import IndexedItem
from tests.offline.planted import GRID, planted

SHORT = Settings(rank=4, epochs=3)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return planted()


@pytest.fixture(scope="module")
def trained(data: TrainingData) -> Trained:
    return train_adapter(data, GRID)


def weights(adapter: Adapter) -> list[bytes]:
    return [part.tobytes() for head in (adapter.personas, adapter.interactions) for part in (head.down, head.up)]


# ---- what is learnt --------------------------------------------------------------------------------------------------


def test_planted_tastes_are_found_for_users_never_trained_on(data: TrainingData) -> None:
    found = train_adapter(data, [Settings(rank=8, epochs=20, learning_rate=0.02)])
    before, after = found.chosen.points[0].ndcg, found.chosen.best.ndcg
    assert after > before + 0.05
    assert found.chosen.points[-1].loss < found.chosen.points[1].loss


def test_an_untrained_adapter_changes_nothing(data: TrainingData) -> None:
    adapter = train_with(data, replace(SHORT, epochs=0))
    assert adapter.personas(data.persona_vectors) == pytest.approx(data.persona_vectors, abs=1e-6)
    assert adapter.interactions(data.event_vectors) == pytest.approx(data.event_vectors, abs=1e-6)


def index_of(personas: Vector, events: Vector) -> Index:
    """Make the index of a planted catalogue: item n owns two vectors and stands for itself by event vector n."""
    items = []
    for number, own in enumerate(events):
        rows = tuple(IndexRow(f"{number}:{n}", str(number), personas[2 * number + n], None) for n in (0, 1))
        items.append(IndexedItem(Manifest(str(number), 0, tuple(row.row_id for row in rows), "", "", own, ""), rows))
    return build_index("planted", "planted", events.shape[1], items)


def test_training_scores_as_the_server_does(data: TrainingData) -> None:
    """The similarity that is trained is the one that ranks: eq. 7 and 10 by the functions of the reranker."""
    fit = Fit(data, data.users, (), SHORT, seed=0)
    for _ in range(3):
        fit.advance()
    adapter = fit.adapter()
    index = index_of(adapter.personas(data.persona_vectors), adapter.interactions(data.event_vectors))
    batch = batch_of(data, data.users[:8], Deal(0.5, 20, 1.0, 1000), np.random.default_rng(1))
    trained = fit.similarities(batch).detach().numpy().reshape(8, data.items, 2).max(axis=2)
    for number in range(8):
        history = batch.vectors[batch.shares[number] > 0]
        profile = build_profile([Event("", str(item), 0) for item in history], index, 1.0).vector
        assert profile is not None
        served, _ = best_of_index(index, profile, index.locate([str(item) for item in range(data.items)]))
        assert trained[number] == pytest.approx(served, abs=1e-5)


def test_judged_personas_are_drawn_to_their_users() -> None:
    def margin(data: TrainingData) -> float:
        adapter = train_with(data, Settings(rank=32, epochs=15, learning_rate=0.02))
        similarities = adapter.interactions(data.event_vectors) @ adapter.personas(data.persona_vectors).T
        items = np.arange(data.items)
        return float((similarities[items, 2 * items + 1] - similarities[items, 2 * items]).mean())

    # In `judged`, the second persona of an item always explains it; the vectors alone do not say so.
    assert margin(planted(judged=True)) > margin(planted()) + 0.01


def test_sampled_competitors_teach_too(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline.train_adapter.COMPETITORS", 20)
    found = train_adapter(data, [Settings(rank=8, epochs=20, learning_rate=0.02)])
    assert found.chosen.best.ndcg > found.chosen.points[0].ndcg + 0.05


# ---- when it stops, and what is chosen -------------------------------------------------------------------------------


def test_the_exam_of_many_users_is_the_same_in_pieces(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    few = 3 * len(data.persona_vectors)

    def fit() -> Fit:
        found = Fit(data, data.users[10:], data.users[:10], SHORT, seed=0)
        found.advance()
        return found

    whole = fit()
    monkeypatch.setattr("offline.training.EXAM_SIMILARITIES", few)
    pieces = fit()
    assert (len(whole.exams), len(pieces.exams)) == (1, 14)
    assert all(len(exam.shares) * len(data.persona_vectors) <= few for exam in pieces.exams)
    assert [point.ndcg for point in pieces.points] == pytest.approx([point.ndcg for point in whole.points], abs=1e-9)


def test_a_trial_stops_when_held_out_users_gain_nothing(data: TrainingData) -> None:
    # Steps so large that nothing can be gained.
    (trial,) = train_adapter(data, [Settings(rank=4, learning_rate=10.0, epochs=50, patience=3)]).trials
    assert trial.points[-1].epoch == trial.best.epoch + 3 < 50


def test_the_best_trial_by_held_out_users_is_trained_on_everybody(data: TrainingData, trained: Trained) -> None:
    best = max((trial.best.ndcg, trial.settings.rank, trial.best.epoch) for trial in trained.trials)
    assert (trained.chosen.best.ndcg, trained.chosen.settings.rank, trained.chosen.best.epoch) == best
    again = train_with(data, replace(trained.chosen.settings, epochs=trained.chosen.best.epoch))
    assert weights(again) == weights(trained.adapter)


def test_a_seed_gives_the_same_result_twice_and_another_another(data: TrainingData, trained: Trained) -> None:
    torch.manual_seed(1)  # whoever else draws random numbers changes nothing
    again = train_adapter(data, GRID)
    assert weights(again.adapter) == weights(trained.adapter)
    assert repr(again.trials) == repr(trained.trials)
    assert weights(train_adapter(data, GRID, seed=1).adapter) != weights(trained.adapter)


def test_progress_is_told_every_epoch(data: TrainingData) -> None:
    told: list[Progress] = []
    train_adapter(data, [SHORT], report=told.append)
    assert [(p.stage, p.stages, p.point.epoch) for p in told[:4]] == [(1, 2, 0), (1, 2, 1), (1, 2, 2), (1, 2, 3)]
    assert told[-1].stage == 2


def test_too_few_users_are_refused() -> None:
    with pytest.raises(DatasetError, match="too few users to train an adapter: 19 like two items"):
        train_adapter(planted(users=19))


# ---- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_killed_training_ends_with_the_same_weights(data: TrainingData, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    # Killed in the second trial; a test machine is slow to start, an epoch takes milliseconds.
    process = subprocess.Popen([sys.executable, "-m", "tests.offline.planted", str(path)])
    second = path / STATES / "trial-2.pt"
    deadline = time.monotonic() + 120
    while not second.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(AdapterError, match=f"{META} is missing .its training has not ended"):
        adapter_files.read(path)

    told: list[Progress] = []
    resumed = train_adapter(data, GRID, states=States(path), report=told.append)
    assert weights(resumed.adapter) == weights(trained.adapter)
    assert repr(resumed.trials) == repr(trained.trials)
    assert [p.point.epoch for p in told if p.stage == 1] == [trained.trials[0].points[-1].epoch]
    assert next(p.point.epoch for p in told if p.stage == 2) > 0


@pytest.mark.parametrize("damage", ["torn", "of other data"])
def test_a_state_that_cannot_be_used_is_not(
    damage: str, data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = StateFile(tmp_path / "final.pt")
    expected = train_with(data, SHORT, state=state)
    if damage == "torn":
        state.path.write_bytes(state.path.read_bytes()[:-500])
        assert weights(train_with(data, SHORT, state=state)) == weights(expected)
    else:
        other = planted(users=30)
        assert weights(train_with(other, SHORT, state=state)) == weights(train_with(other, SHORT))
    assert "not used" in caplog.text


def test_a_full_disk_is_named(data: TrainingData) -> None:
    with pytest.raises(ConfigurationError, match="the state of the training cannot be written to /dev/full"):
        train_with(data, SHORT, state=StateFile(Path("/dev/full/state.pt")))


# ---- the directory ---------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(data: TrainingData, trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    train_adapter(data, GRID, states=States(path))
    adapter_files.require_place(path)
    adapter_files.write(trained, data, path)
    found = adapter_files.read(path)
    assert (found.space, weights(found)) == (trained.adapter.space, weights(trained.adapter))
    assert sorted(entry.name for entry in path.iterdir()) == ["README.md", WEIGHTS, META, "training.png"]
    card = (path / "README.md").read_text()
    for fact in (data.fingerprint, trained.adapter.space, "planted", f"{trained.chosen.best.ndcg:.4f}", "chosen"):
        assert fact in card
    assert (path / "training.png").read_bytes().startswith(b"\x89PNG")
    adapter_files.write(trained, data, path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (WEIGHTS, b"", "SHA-256 differs"),
        (WEIGHTS, None, "adapter.safetensors is missing"),
        (META, b"{", "cannot be read"),
        (META, b"[]", r"meta.json says format and version \[\]"),
        (META, b'{"format": "persona4rec adapter", "version": 9}', "this release reads"),
        (META, None, "meta.json is missing;"),
    ],
)
def test_a_damaged_adapter_is_refused(
    name: str, content: bytes | None, told: str, data: TrainingData, trained: Trained, tmp_path: Path
) -> None:
    adapter_files.write(trained, data, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterError, match=told) as raised:
        adapter_files.read(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_something_else_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigurationError, match="holds something else than an adapter"):
        adapter_files.require_place(tmp_path)
    with pytest.raises(ConfigurationError):
        adapter_files.require_place(tmp_path / "thesis.tex")
    adapter_files.require_place(tmp_path / "new")
