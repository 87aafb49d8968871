import csv
import json
from pathlib import Path
from typing import Any

import pytest

from offline.dataset import Alignment, Dataset, Interaction, Item, ItemPersonas, ItemSummary, Review, ReviewAspects
from offline.errors import DatasetError, TooManyRejectsError
from offline.importers.accounting import ImportReport, SourceReport
from offline.importers.persona4rec import EVIDENCE_LIMIT, import_files
from reranker.records import Persona, persona_id

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "amazon_books" / "persona4rec_sample"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(source: Path, name: str, *lines: dict[str, Any] | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (source / f"{name}.jsonl").write_text(text + "\n")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def of_file(report: ImportReport, name: str) -> SourceReport:
    return next(source for source in report.sources if source.file == f"{name}.jsonl")


def review(number: int, item_id: str = "diner") -> dict[str, Any]:
    return {
        "review_id": f"r{number}",
        "business_id": item_id,
        "user_id": "u",
        "rating": 4,
        "timestamp": "2018-07-07 22:09:11",
        "review_text": "Good ramen.",
        "extracted_aspects": {
            "cuisine_category": "Japanese",
            "cuisine_category_reason": "says ramen",
            "specific_dishes_or_attributes": "ramen",
            "visit_purpose": None,
            "quality_criteria": "null",
            "visit_context": " ",
        },
    }


def source_persona(number: int, name: str) -> dict[str, Any]:
    return {"ID": f"P{number}", "Name": name, "Description": "d", "Preference_Rationale": "r"}


def persona(item_id: str, name: str, *evidence: str) -> Persona:
    return Persona(persona_id(item_id, name, "d", "r"), name, "d", "r", evidence)


def event(item_id: str, timestamp: object = 5) -> dict[str, Any]:
    return {"business_id": item_id, "timestamp": timestamp, "rating": 5.0, "extracted": {"visit_purpose": "a date"}}


def test_restaurants(source: Path, out: Path) -> None:
    write(source, "1_aspects", review(1))
    write(
        source,
        "2_summary",
        {"business_id": "diner", "item_title": "Diner", "item_description": "Food.", "item_summary": "A diner."},
    )
    write(source, "3_personas", {"business_id": "diner", "personas": [source_persona(1, "x"), source_persona(2, "y")]})
    selection = {"user_id": "u", "target_business_id": "diner", "selection_reasoning": "Because. diner_P2"}
    write(source, "4_selected_personas", selection | {"selected_persona_id": "diner_P2"})
    report = import_files(source, out)

    dataset = Dataset.open(out)
    assert list(dataset.items()) == [Item("diner", "Diner", "Food.")]
    assert list(dataset.summaries()) == [ItemSummary("diner", "A diner.")]
    said = {
        "cuisine_category": "Japanese",
        "specific_dishes_or_attributes": "ramen",
        "visit_purpose": None,
        "quality_criteria": None,
        "visit_context": None,
    }
    moment = 1_531_001_351_000
    assert list(dataset.reviews()) == [Review("r1", "u", "diner", "Good ramen.", rating=4.0, timestamp=moment)]
    assert list(dataset.aspects()) == [ReviewAspects("r1", "diner", said, "u", 4.0, moment)]
    both = (persona("diner", "x", "r1"), persona("diner", "y", "r1"))
    assert list(dataset.personas()) == [ItemPersonas("diner", both)]
    assert list(dataset.alignments()) == [Alignment("u", "diner", both[1].persona_id, "Because. diner_P2")]
    assert report.rejected == 0
    assert [note.split(";")[0] for note in report.notes] == ["The authors' personas name no evidence"]


def test_a_second_import_changes_nothing(source: Path, out: Path) -> None:
    write(source, "1_aspects", review(1))
    write(source, "gt", {"user_id": "u", "item_id": "a"})
    import_files(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    import_files(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# ---- evidence --------------------------------------------------------------------------------------------------------


def test_evidence_is_the_known_reviews_up_to_a_limit(source: Path, out: Path) -> None:
    group = [review(number) for number in range(EVIDENCE_LIMIT + 5)]
    write(source, "2.5_grouped", {"business_id": "diner", "aspects": group})
    write(source, "3_personas", {"business_id": "diner", "personas": [source_persona(1, "x")]})
    import_files(source, out)
    [found] = Dataset.open(out).personas()
    assert found.personas[0].evidence == tuple(f"r{number}" for number in range(EVIDENCE_LIMIT))


def test_personas_without_known_reviews_are_kept_and_say_so(source: Path, out: Path) -> None:
    write(source, "3.5_persona_with_summary", {"item_id": "a", "personas": [source_persona(1, "x")]})
    report = import_files(source, out)
    assert list(Dataset.open(out).personas()) == [ItemPersonas("a", (persona("a", "x"),), evidence_known=False)]
    assert "Of 1 of the 1 items with personas no review is known" in report.notes[1]


# ---- histories -------------------------------------------------------------------------------------------------------


def test_history_events_take_the_review_id_of_their_review(source: Path, out: Path) -> None:
    write(source, "1_aspects", review(1))
    events = [event("diner", "2018-07-07T22:09:11Z"), event("bar"), event("café", None)]
    write(source, "3.5_history", {"user_id": "u", "reviews": events})
    import_files(source, out)
    dataset = Dataset.open(out)
    assert list(dataset.interactions()) == [
        Interaction("u", "diner", 5.0, 1_531_001_351_000),
        Interaction("u", "bar", 5.0, 5),
        Interaction("u", "café", 5.0),
    ]
    assert [aspects.review_id for aspects in dataset.aspects()] == ["r1", "u/bar/5", "u/café/undated"]


def test_an_id_made_of_long_ids_fits(source: Path, out: Path) -> None:
    write(source, "3.5_history", {"user_id": "u" * 200, "reviews": [event("i" * 200)]})
    import_files(source, out)
    assert len(list(Dataset.open(out).aspects())) == 1


def test_what_is_to_be_predicted_is_no_interaction(source: Path, out: Path) -> None:
    write(source, "3.5_gt", {"user_id": "u", "item_id": "c"})
    write(source, "3.5_history_loo", {"user_id": "u", "reviews": [event("a")]})
    write(
        source,
        "3.5_history",
        {"user_id": "u", "reviews": [event("a"), event("b", 6), event("c", 7)]},
        {"user_id": "v", "reviews": [event("a")]},
    )
    report = import_files(source, out)
    dataset = Dataset.open(out)
    assert [(event.user_id, event.item_id) for event in dataset.interactions()] == [("u", "a"), ("v", "a")]
    assert [aspects.review_id for aspects in dataset.aspects()] == ["u/a/5", "v/a/5"]
    assert rows(out / "test.csv") == [["user_id", "item_id"], ["u", "c"]]
    assert of_file(report, "3.5_history") == SourceReport("3.5_history.jsonl", 4, 1, 1, 2, {})


# ---- selections ------------------------------------------------------------------------------------------------------


def selection(number: str, shown: dict[str, Any] | None, reasoning: str = "") -> dict[str, Any]:
    return {
        "user_id": "u",
        "target_item_id": "a",
        "selected_persona_id": number,
        "selected_persona": shown,
        "selection_reasoning": reasoning,
    }


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (selection("P2", None), "y"),
        (selection("a_P2", source_persona(2, "y")), "y"),
        (selection("P1", source_persona(1, "y")), "y"),
        (selection("P1", source_persona(1, "rewritten since")), "x"),
    ],
)
def test_a_selection_is_found_by_its_text_or_else_its_number(
    source: Path, out: Path, line: dict[str, Any], name: str
) -> None:
    write(source, "3_personas", {"item_id": "a", "personas": [source_persona(1, "x"), source_persona(2, "y")]})
    write(source, "4_selected_personas", line)
    import_files(source, out)
    [alignment] = Dataset.open(out).alignments()
    assert alignment.persona_id == persona("a", name).persona_id


def test_a_selection_of_an_unknown_item_brings_its_persona(source: Path, out: Path) -> None:
    write(source, "4_selected_personas", selection("P1", source_persona(1, "x"), "**Selection:** 3. a_P3"))
    report = import_files(source, out)
    dataset = Dataset.open(out)
    assert list(dataset.personas()) == [ItemPersonas("a", (persona("a", "x"),), evidence_known=False)]
    assert [alignment.persona_id for alignment in dataset.alignments()] == [persona("a", "x").persona_id]
    assert list(dataset.items()) == [Item("a")]
    assert any("1 of 1 alignments name another persona" in note for note in report.notes)


def test_a_selection_that_names_nothing_known_is_rejected(source: Path, out: Path) -> None:
    write(source, "3_personas", {"item_id": "a", "personas": [source_persona(1, "x")]})
    write(source, "4_selected_personas", selection("P1", None), selection("P7", None), selection("seven", None))
    report = import_files(source, out)
    assert list(of_file(report, "4_selected_personas").reasons) == [
        "selects a persona that is not known, neither by its number nor by its text",
        "selected_persona_id: String should match pattern '^P\\d+$'",
    ]
    assert len(list(Dataset.open(out).alignments())) == 1


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_padding_is_refused_by_name_and_the_candidates_beside_it_are_kept(source: Path, out: Path) -> None:
    results = [{"item_id": "a", "score": 0.5}, {"item_id": "[PAD]", "score": 0.4}, {"item_id": "b", "score": -1}]
    write(source, "candidate", {"user_id": "u", "results": results})
    report = import_files(source, out)
    assert rows(out / "candidates.csv") == [["user_id", "item_id", "score"], ["u", "a", "0.5"], ["u", "b", "-1.0"]]
    assert of_file(report, "candidate").reasons == {"item_id: [PAD] is padding, not an item": 1}
    [entry] = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    assert (entry["file"], entry["line"], json.loads(entry["raw"])["item_id"]) == ("candidate.jsonl", 1, "[PAD]")


def test_a_bad_entry_loses_nothing_beside_it(source: Path, out: Path) -> None:
    group = [review(1), {"review_id": "r2"}, "no review", review(1), review(3)]
    write(source, "2.5_grouped", {"business_id": "diner", "aspects": group}, "no json", {"aspects": []})
    report = import_files(source, out)
    assert [found.review_id for found in Dataset.open(out).reviews()] == ["r1", "r3"]
    counts = of_file(report, "2.5_grouped")
    assert (counts.read, counts.written, counts.duplicates, counts.rejected) == (7, 2, 1, 4)
    lines = [json.loads(line)["line"] for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert lines == [1, 1, 2, 3]


def test_too_many_bad_lines_leave_the_dataset_as_it_was(source: Path, out: Path) -> None:
    write(source, "1_aspects", review(1))
    import_files(source, out)
    write(source, "1_aspects", review(2))
    write(source, "2_summary", "no json")
    with pytest.raises(TooManyRejectsError, match=r"2_summary\.jsonl: 1 of 1 lines are bad"):
        import_files(source, out)
    assert [found.review_id for found in Dataset.open(out).reviews()] == ["r1"]
    assert sorted(path.name for path in out.iterdir()) == [
        "aspects.jsonl",
        "items.jsonl",
        "rejects.jsonl",
        "reviews.jsonl",
    ]


def test_a_directory_without_any_of_the_files_is_refused(source: Path, out: Path) -> None:
    with pytest.raises(DatasetError, match=r"1_aspects\.jsonl, .*\*candidate\*\.jsonl"):
        import_files(source, out)
    assert not out.exists()


# ---- the authors' sample ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="../shared/data/amazon_books/persona4rec_sample is absent")
def test_the_sample_is_accounted_for_entry_by_entry(out: Path) -> None:
    report = import_files(SAMPLE, out)
    assert {
        source.file: (source.read, source.written, source.duplicates, source.left_out, source.rejected)
        for source in report.sources
    } == {
        "1_aspects.jsonl": (50, 50, 0, 0, 0),
        "2.5_grouped.jsonl": (573, 535, 38, 0, 0),
        "2_summary.jsonl": (50, 50, 0, 0, 0),
        "3_personas.jsonl": (299, 299, 0, 0, 0),
        "3.5_persona_with_summary.jsonl": (299, 7, 292, 0, 0),
        "3.5_gt.jsonl": (50, 50, 0, 0, 0),
        "gt.jsonl": (46, 46, 0, 0, 0),
        "3.5_history_loo.jsonl": (573, 573, 0, 0, 0),
        "3.5_history.jsonl": (632, 26, 558, 48, 0),
        "4_selected_personas.jsonl": (50, 50, 0, 0, 0),
        "candidate.jsonl": (920, 891, 0, 0, 29),
    }
    for source in report.sources:
        assert source.read == source.written + source.duplicates + source.left_out + source.rejected


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="../shared/data/amazon_books/persona4rec_sample is absent")
def test_the_sample_becomes_a_dataset_that_holds_together(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = import_files(SAMPLE, out)
    caplog.clear()
    dataset = Dataset.open(out)
    items = {item.item_id for item in dataset.items()}
    personas = {item.item_id: item for item in dataset.personas()}
    assert len(personas) == 101
    assert sum(len(item.personas) for item in personas.values()) == 299 + 7 + 50
    assert not any(item.evidence_known for item in personas.values())
    known = {found.persona_id for item in personas.values() for found in item.personas}
    assert all(alignment.persona_id in known for alignment in dataset.alignments())
    interactions = [(event.user_id, event.item_id) for event in dataset.interactions()]
    named = [item_id for _, item_id in interactions]
    named += [summary.item_id for summary in dataset.summaries()] + [found.item_id for found in dataset.aspects()]
    assert items.issuperset([*named, *personas])
    assert not set(interactions) & {(user_id, item_id) for user_id, item_id in rows(out / "test.csv")}
    assert len(list(dataset.reviews())) == report.written["reviews.jsonl"]
    assert not caplog.records
