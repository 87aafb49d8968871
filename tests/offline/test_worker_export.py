"""The worker's state as a dataset: what a fresh state takes from it is what was there, and what is gone stays gone."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from offline.aspects import AspectsStage
from offline.dataset import Dataset
from offline.decisions import DECISIONS, Decision, decide, decisions
from offline.domains import load_domain
from offline.errors import ConfigurationError, DatasetError, WorkerStateError
from offline.records import Item, ItemPersonas, Review, ReviewAspects
from offline.stages import open_subjects
from offline.summaries import SummariesStage
from offline.worker_events import Change, Erasure, ItemChange, Origin, ReviewChange
from offline.worker_export import EXPORT, export, snapshot_of
from offline.worker_process import seed
from offline.worker_state import Quiet, WorkerState
from reranker.records import Persona, persona_id

EMMA = Item("emma", "Emma", "A novel.", ("fiction",), {"author": "Jane Austen"})
ANN = "Marmalade ocelots."


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


@pytest.fixture
def state(path: Path) -> Iterator[WorkerState]:
    """Emma with a summary, and personas of four of her reviews; a fifth says nothing, and a sixth is new."""
    with closing(WorkerState(path, "space")) as opened:
        apply(opened, ItemChange(EMMA, 1, deleted=False), review("r1", "ann", ANN))
        apply(opened, *(review(f"r{number}", f"user{number}") for number in (2, 3, 4, 5)))
        opened.keep_summary(EMMA, "Matches are made.")
        extract(opened, "r1", "r2", "r3", "r4", "r5")
        opened.keep_personas("emma", [persona("one", "r1"), persona("other", "r2", "r3")], ["r1", "r2", "r3", "r4"])
        apply(opened, review("r6", "user6"))
        extract(opened, "r6")
        yield opened


def extract(state: WorkerState, *review_ids: str) -> None:
    for found in state.without_aspects(review_ids):
        state.keep_aspects(found, None if found.review_id == "r5" else {"plot": found.text, "style": None}, None)


def review(review_id: str, user_id: str, text: str = "It says: read me.", item_id: str = "emma") -> Change:
    return ReviewChange(Review(review_id, user_id, item_id, text, rating=4, timestamp=7), 7, deleted=False)


def persona(name: str, *evidence: str) -> Persona:
    return Persona(persona_id("emma", name, "Likes it.", "It is liked."), name, "Likes it.", "It is liked.", evidence)


def apply(state: WorkerState, *changes: Change) -> None:
    state.apply([(change, Origin("reviews", 0)) for change in changes], Quiet(0, 0), 0)


def known(state: WorkerState) -> Any:
    reviews = state.reviews("emma")
    return state.item("emma"), reviews.pieces, state.personas("emma")


def test_a_fresh_state_starts_where_the_old_one_is_and_no_stage_makes_anything_anew(
    state: WorkerState, path: Path, tmp_path: Path
) -> None:
    report = export(path, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    with closing(WorkerState(tmp_path / "fresh.sqlite", "space")) as fresh:
        seed(fresh, dataset)
        assert known(fresh) == known(state)
    stages: Any = SummariesStage(load_domain("books")), AspectsStage(load_domain("books"))
    still_open = [list(open_subjects(stage, dataset, dict(stage.done(dataset)))) for stage in stages]
    assert [[one.review_id for one in found] for found in still_open] == [[], ["r5"]], "which says nothing"
    lines = {"items": 1, "reviews": 6, "summaries": 1, "aspects": 5, "personas": 1}
    assert report.written == {f"{kind}.jsonl": count for kind, count in lines.items()}
    assert (report.due, report.waiting, report.gone, report.evidence_left_out) == (1, 1, 0, 0)


def test_what_is_gone_is_in_no_file(state: WorkerState, path: Path, tmp_path: Path) -> None:
    apply(state, ItemChange(Item("dracula"), 1, deleted=False), review("d1", "bob", "Of Dracula.", "dracula"))
    pinned = [Decision("pin", "emma", persona("one", "r1", "r2")), Decision("block", "dracula", persona("Dracula"))]
    for decision in pinned:
        decide(tmp_path, decision)
    out = tmp_path / "out"
    export(path, out, tmp_path)
    assert b"ocelots" in contents(out)
    apply(state, Erasure("ann", 10), ItemChange(Item("dracula"), 2, deleted=True))
    report = export(path, out, tmp_path)
    assert not any(word in contents(out) for word in (b"ocelots", b"ann", b"r1", b"racula"))
    assert list(decisions(out)) == [Decision("pin", "emma", persona("one", "r2"))]
    assert list(Dataset.open(out).personas()) == [ItemPersonas("emma", (persona("other", "r2", "r3"),))]
    assert report.gone == 2


def contents(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


def test_it_is_the_state_of_one_moment_and_its_log_keeps_nothing_that_goes_meanwhile(
    state: WorkerState, path: Path
) -> None:
    with snapshot_of(path) as snapshot:
        apply(state, Erasure("ann", 10))
        files = {name: list(records) for name, records in snapshot.files().items()}
    assert len(files["reviews.jsonl"]) == 6
    assert files["personas.jsonl"] == [ItemPersonas("emma", (persona("one", "r1"), persona("other", "r2", "r3")))]
    assert not any(ANN.encode() in file.read_bytes() for file in path.parent.glob("state.sqlite*"))


def test_evidence_that_the_state_does_not_hold_is_left_out_and_counted(path: Path, tmp_path: Path) -> None:
    with closing(WorkerState(path, "space")) as state:
        state.seed_reviews([(Review("r1", "", "emma", ""), ReviewAspects("r1", "emma", {"plot": "said"}))])
        state.seed(EMMA, "Matches are made.", [persona("one", "r0", "r1"), persona("other", "r0")])
    out = tmp_path / "out"
    assert export(path, out).evidence_left_out == 2
    (found,) = Dataset.open(out).personas()
    assert found == ItemPersonas("emma", (persona("one", "r1"), persona("other")), evidence_known=False)
    assert list(Dataset.open(out).aspects()) == [ReviewAspects("r1", "emma", {"plot": "said"})], "of nobody known"
    assert not (out / "reviews.jsonl").exists()


def test_an_earlier_export_is_replaced_and_no_other_dataset(state: WorkerState, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    decide(tmp_path, Decision("block", "emma", persona("none")))
    export(path, out, tmp_path)
    assert (out / DECISIONS).exists()
    export(path, out)
    assert not (out / DECISIONS).exists(), "as there are none any more"
    (out / EXPORT).unlink()
    before = contents(out)
    with pytest.raises(ConfigurationError, match="is a dataset that is no export"):
        export(path, out)
    with pytest.raises(DatasetError, match="nowhere is not a directory"):
        export(path, tmp_path / "new", tmp_path / "nowhere")
    assert contents(out) == before


def test_a_state_that_cannot_be_exported_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkerStateError, match=r"state\.sqlite: unable to open"):
        export(path, tmp_path / "out")
    with closing(WorkerState(path, "space")), pytest.raises(WorkerStateError, match=r"state\.sqlite has no item"):
        export(path, tmp_path / "out")
    path.write_bytes(b"no database, certainly" * 100)
    with pytest.raises(WorkerStateError, match=r"state\.sqlite: file is not a database"):
        export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
