"""The files that the method's authors publish, from import to a ranked list, by the commands that people use."""

from pathlib import Path

import pytest

from offline.dataset import Dataset
from offline.publish import documents, publish
from offline.vector_cache import CachedEncoder
from persona4rec.milvus_lite import milvus_at
from reranker.personas_milvus import MilvusPersonaStore
from tests.conftest import free_port
from tests.integration.processes import serving
from tests.persona4rec.running import persona4rec, succeeded

pytestmark = pytest.mark.integration

SHOWN = 10
"""What `rerank` shows unasked."""


def test_the_authors_sample_is_imported_published_and_served(
    shared: Path, encoder: CachedEncoder, tmp_path: Path
) -> None:
    sample = shared / "data" / "amazon_books" / "persona4rec_sample"
    told = succeeded(persona4rec("import", "persona4rec", sample, "--out", tmp_path / "books"))
    assert "[PAD] is padding, not an item" in told
    dataset = Dataset.open(tmp_path / "books")
    entries = list(dataset.personas())
    assert len(entries) > 50
    # As many as a page shows; embedding the others takes half a minute and is no different.
    written = {entry.item_id: entry.personas for entry in entries[:SHOWN]}

    histories = tmp_path / "histories.sqlite"
    # What the reviews said is left out: embedding it takes a minute and changes nothing that is looked at here.
    succeeded(persona4rec("histories", "load", dataset.path, "--histories", histories, "--no-aspects"))
    reader = next(dataset.interactions()).user_id
    read = {interaction.item_id for interaction in dataset.interactions() if interaction.user_id == reader}
    candidates = tmp_path / "candidates.csv"
    candidates.write_text("\n".join(["user_id,item_id", *(f"{reader},{item_id}" for item_id in written)]) + "\n")

    uri = f"http://127.0.0.1:{free_port()}"
    with milvus_at(uri, tmp_path / "milvus"):
        # Of the other items, hundreds, only those that make the reader's profile.
        publish(
            [document for document in documents(dataset) if document.item.item_id in written.keys() | read],
            MilvusPersonaStore(uri),
            encoder,
        )
        with serving(tmp_path, uri, histories) as server:
            served = server.client.item_personas(list(written)).items
            shown = succeeded(
                persona4rec("rerank", "--user", reader, "--candidates", candidates, "--server", server.address)
            )

    assert [item.item_id for item in served] == list(written)
    for item in served:
        assert item.found
        assert item.summary
        assert [
            (p.persona_id, p.name, p.description, p.preference_rationale, tuple(p.evidence)) for p in item.personas
        ] == [(p.persona_id, p.name, p.description, p.preference_rationale, p.evidence) for p in written[item.item_id]]
    assert f"Reranked for {reader}" in shown
    assert "without: " not in shown
    names = {persona.name for personas in written.values() for persona in personas}
    rows = [line for line in shown.splitlines() if line.startswith("│") and line[1:].split()[0].isdigit()]
    assert [int(row[1:].split()[0].strip("│")) for row in rows] == list(range(1, SHOWN + 1))
    assert all(any(name in row for name in names) for row in rows)
