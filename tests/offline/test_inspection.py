"""The quality report: its figures by hand, and the page in a real browser, with hostile texts in it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from offline.dataset import Alignment, Dataset, Item, ItemPersonas, Review, write_jsonl
from offline.encoder import Encoder
from offline.inspection import Inspection, inspected
from offline.inspection_report import rendered
from offline.llm_cache import CACHE_FILE, ResponseCache
from offline.replies import Usage
from reranker.records import Persona, persona_id

HOSTILE = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


def persona(item_id: str, name: str, *evidence: str) -> Persona:
    words = name, "Looks for the sea.", "This persona appreciates whales."
    return Persona(persona_id(item_id, *words), *words, evidence)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    write_jsonl(tmp_path / "items.jsonl", [Item("a", HOSTILE), Item("b", "{0} {{ 7 * 7 }}"), Item("c")])
    write_jsonl(
        tmp_path / "reviews.jsonl", [Review("r1", "u", "a", "Whales!"), Review("r2", "u", "b", "Sea and ropes")]
    )
    a, b = persona("a", HOSTILE, "r1"), persona("b", HOSTILE, "r2")
    second = persona("b", "Sailor", "r2")
    write_jsonl(tmp_path / "personas.jsonl", [ItemPersonas("a", (a,)), ItemPersonas("b", (b, second))])
    chosen = [("a", a.persona_id), ("b", second.persona_id), ("b", second.persona_id), ("b", "b:gone")]
    chosen.append(("a", b.persona_id))
    write_jsonl(tmp_path / "alignments.jsonl", [Alignment("u", item, p, "") for item, p in chosen])
    (tmp_path / "rejects.jsonl").write_text(
        '{"file": "personas", "line": 0, "reason": "no evidence: 3", "raw": ""}\n'
        '{"file": "personas", "line": 0, "reason": "no evidence: 4", "raw": ""}\nnoise\n'
    )
    with ResponseCache(tmp_path / CACHE_FILE) as cache:
        cache.book("personas", HOSTILE, Usage(3, 1000, 200), 0.5)
    return Dataset(tmp_path)


@pytest.fixture
def found(dataset: Dataset, encoder: Encoder) -> Inspection:
    return inspected(dataset, encoder)


def test_figures(found: Inspection) -> None:
    assert (found.items, found.items_with_personas, found.personas) == (3, 2, 3)
    assert [(part.what, part.items) for part in found.coverage] == [
        ("items with reviews", 2),
        ("items with personas", 2),
    ]
    assert (found.per_item, found.evidence_per_persona) == ((1, 2), (1, 1, 1))
    assert found.names == ((HOSTILE, 2),)
    assert len(found.quality.support) == 3
    assert len(found.quality.nearest) == 2
    assert found.rejects == (("personas", "no evidence", 2),)
    assert [line.usage.asks for line in found.spending] == [3]


def test_reasons_of_files_are_told_with_their_field_and_counted_together(tmp_path: Path, encoder: Encoder) -> None:
    write_jsonl(tmp_path / "items.jsonl", [Item("a")])
    review = '{"review_id": "%s", "user_id": "u", "item_id": "a", "text": "Sea", "rating": "%s"}'
    bad = ['{"review_id": "r', '{"review_id": ', review % ("y", "five"), review % ("z", "six"), review % ("r1", "1")]
    lines = [review % (f"r{number}", "1") for number in range(4)] + bad + [review % ("r2", "1")]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines))
    personas = [persona("a", name) for name in "xy"]
    write_jsonl(tmp_path / "personas.jsonl", [ItemPersonas("a", (*personas, persona("a", "z", "r1")))])
    assert set(inspected(Dataset(tmp_path), encoder).rejects) == {
        ("reviews.jsonl", "Invalid JSON: EOF while parsing a string", 1),
        ("reviews.jsonl", "Invalid JSON: EOF while parsing a value", 1),
        ("reviews.jsonl", "rating: expected a number", 2),
        ("reviews.jsonl", "repeats the id", 2),
        ("personas.jsonl", "persona: evidence is empty", 2),
    }


def test_alignments_by_place_beside_what_chance_gives(found: Inspection) -> None:
    assert found.aligned is not None
    assert (found.aligned.judged, found.aligned.unknown) == (3, 2)
    assert found.aligned.by_position == ((1, 1, 2.0), (2, 2, 1.0))
    assert (found.aligned.never, found.aligned.candidates) == (1, 3)


def test_the_page_needs_nothing_else_and_holds_no_markup_of_the_dataset(found: Inspection) -> None:
    page = rendered(found)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count('<svg role="img" aria-label="') == page.count("<svg ") > 0
    assert not re.search(r'(?:src|href)="(?!#)', page.replace("xlink:href", "href"))
    assert "{0} {{ 7 * 7 }}" in page
    assert rendered(found) == page, "the same figures give the same file"


def test_a_catalogue_without_personas_is_reported_too(tmp_path: Path, encoder: Encoder) -> None:
    write_jsonl(tmp_path / "items.jsonl", [Item("a", "Emma")])
    assert "n/a" in rendered(inspected(Dataset(tmp_path), encoder))


@pytest.mark.integration
def test_a_real_browser_draws_it_and_runs_nothing_of_it(found: Inspection, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs chromium")
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    page.write_text(rendered(found), encoding="utf-8")
    browse = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*browse, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert re.search(r"<title>[^<]*</title>", dom)
    assert "<title>pwned" not in dom
    assert dom.count("<svg") == 5
    assert "&lt;script&gt;" in dom
    shot = [*browse, "--window-size=1200,2400", f"--screenshot={picture}", page.as_uri()]
    subprocess.run(shot, capture_output=True, timeout=120, check=True)
    # An empty page of that size is below 15 kB.
    assert picture.stat().st_size > 40_000
