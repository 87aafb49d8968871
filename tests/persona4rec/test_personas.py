"""`persona4rec personas` and `inspect` as their users meet them."""

import json
from pathlib import Path

import pytest

from offline.dataset import Dataset, write_jsonl
from persona4rec.demo import CATALOGUE
from tests.offline.written import to_be_written, written
from tests.persona4rec.running import complaint, persona4rec, succeeded
from tests.stub_llm import StubLlm


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Return three books of the demo catalogue with reviews, aspects and personas."""
    catalogue = Dataset(CATALOGUE)
    items = list(catalogue.items())[:3]
    chosen = {item.item_id for item in items}
    write_jsonl(tmp_path / "items.jsonl", items)
    write_jsonl(tmp_path / "reviews.jsonl", (r for r in catalogue.reviews() if r.item_id in chosen))
    write_jsonl(tmp_path / "aspects.jsonl", (a for a in catalogue.aspects() if a.item_id in chosen))
    write_jsonl(tmp_path / "personas.jsonl", (p for p in catalogue.personas() if p.item_id in chosen))
    return tmp_path


@pytest.mark.integration
def test_an_editor_blocks_edits_and_sees_it(books: Path) -> None:
    first, second = next(Dataset(books).personas()).personas[:2]
    succeeded(persona4rec("personas", "block", books, first.persona_id, "--by", "ed", "--why", "too narrow"))
    edited = succeeded(persona4rec("personas", "edit", books, second.persona_id, "--name", "Court Fool"))
    shown = succeeded(persona4rec("personas", "show", books))
    assert "Court Fool  edited" in shown
    assert f"blocked: {first.name}" in shown
    assert "too narrow" in shown
    new_id = edited.split("it is now ")[1].split(": ")[0]
    succeeded(persona4rec("personas", "pin", books, new_id))
    lines = [json.loads(line) for line in (books / "decisions.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["block", "edit", "pin"]
    assert lines[1]["persona"]["persona_id"] == second.persona_id


@pytest.mark.integration
def test_personas_without_an_llm_then_nothing_to_do_then_a_report(books: Path) -> None:
    (books / "personas.jsonl").unlink()
    assert "done" in succeeded(persona4rec("personas", books, "--llm", "none", "--domain", "books"))
    assert "3 before" in succeeded(persona4rec("personas", books, "--llm", "none", "--domain", "books"))
    assert "3 of 3 items" in succeeded(persona4rec("inspect", books, "--html", books / "report.html"))
    assert (books / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.integration
def test_a_budget_holds_for_the_personas_and_their_judge_together(tmp_path: Path) -> None:
    """12 personas calls and 24 of the judge take 110 tokens each."""
    dataset = to_be_written(tmp_path / "data", 12)
    with StubLlm(lambda _, body: written(body)) as stub:
        asked = ("personas", dataset.path, "--llm", stub.url, "--support-judge", "llm", "--concurrency", "1")
        result = persona4rec(*asked, "--budget-tokens", "3200")
    assert result.returncode == 1
    assert "the budget of 3,200 tokens does not reach further" in result.stderr
    assert 12 < len(stub.requests) <= 3200 / 110
    assert f"{len(stub.requests)} of 36" in result.stderr


@pytest.mark.integration
def test_what_cannot_be_decided_is_told(books: Path) -> None:
    first = next(Dataset(books).personas()).personas[0]
    assert "has no persona 'nobody'" in complaint(persona4rec("personas", "block", books, "nobody"))
    same = persona4rec("personas", "edit", books, first.persona_id, "--name", first.name)
    assert "has these words already" in complaint(same)
    assert "--name is empty" in complaint(persona4rec("personas", "edit", books, first.persona_id, "--name", " "))
    assert not (books / "decisions.jsonl").exists()
