import re
from io import StringIO
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console, RenderableType

from candidate_gen.implicit_models import DEFAULTS, Model
from offline.evaluate import Choice, Evaluation
from offline.importers.accounting import ImportReport, SourceReport
from offline.measures import Comparison, Measured
from offline.publish import PublishReport
from persona4rec import tables
from reranker.v1 import reranker_pb2 as pb

CLEAR_SCREEN, C1_CLEAR_SCREEN, TITLE = "\x1b[2J", "\x9b2J", "\x1b]0;owned\x07"
MARKUP = "[red]x[/]"
HOSTILE = f"{MARKUP}{CLEAR_SCREEN}{C1_CLEAR_SCREEN}{TITLE}\r\x08"


def shown(what: RenderableType, width: int = 80) -> str:
    """Return what a person sees, after checking that nothing else reaches the terminal."""
    console = Console(record=True, width=width, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(what)
    assert isinstance(console.file, StringIO)
    sent = console.file.getvalue()
    # Colours and weights are the tables' own; no other command may be in what is sent.
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[0-9;]*m", "", sent))
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    return text


def words(text: str) -> str:
    """Return the text without the breaks and frames of a table."""
    return " ".join(re.sub(r"[│┃┏┓└┘━─┡┩┳╇┴]", " ", text).split())


def item(rank: int, before: int, **fields: object) -> pb.RankedItem:
    persona = pb.Persona(name="World Builder", preference_rationale="Loves deep worlds.")
    return pb.RankedItem(
        **{  # type: ignore[arg-type]
            "item_id": f"book{before}",
            "rank": rank,
            "rank_before": before,
            "score": 1.25,
            "persona_score": 0.5,
            "persona": persona,
            **fields,
        }
    )


def response(*items: pb.RankedItem, **fields: object) -> pb.RerankResponse:
    return pb.RerankResponse(items=items, **fields)  # type: ignore[arg-type]


TITLES = {"book1": "Dune", "book2": "Emma"}


def test_a_ranking_shows_each_item_with_its_move_and_reason() -> None:
    found = response(item(1, 2), item(2, 1), item(3, 3), profile_watermark=1_600_000_000_000, index_generation=7)
    text = words(shown(tables.ranking(found, TITLES, "Reranked for u"), width=160))
    assert text.startswith("Reranked for u # was item score persona who would engage, and why")
    assert "1 2 ▲1 Emma 1.25 0.50 World Builder. Loves deep worlds." in text
    assert "2 1 ▼1 Dune 1.25 0.50 World Builder. Loves deep worlds." in text
    # An item without a title is shown by its id.
    assert "3 3 = book3 1.25 0.50 World Builder. Loves deep worlds." in text
    assert "newest event 2020-09-13 12:26 · index generation 7" in text


@pytest.mark.parametrize("reason", [reason for reason in pb.ItemReason.values() if reason])
def test_an_item_without_persona_says_why(reason: "pb.ItemReason.ValueType") -> None:
    bare = pb.RankedItem(item_id="book1", rank=1, rank_before=1, reason=reason)
    text = words(shown(tables.ranking(response(bare), TITLES, "h"), width=160))
    assert f"1 1 = Dune 0.00 - {tables.REASONS[reason]}" in text
    assert "no dated event" in text


@pytest.mark.parametrize("degradation", [value for value in pb.Degradation.values() if value])
def test_whatever_an_answer_had_to_do_without_is_told(degradation: "pb.Degradation.ValueType") -> None:
    text = shown(tables.ranking(response(degraded=[degradation]), TITLES, "h"), width=160)
    assert f"without: {tables.DEGRADATIONS[degradation]}" in text


def test_both_orders_stand_side_by_side() -> None:
    found = response(item(1, 3), item(2, 1), item(3, 2))
    text = words(shown(tables.side_by_side(found, TITLES, 2, "For u"), width=160))
    assert "1 Dune book3 3 ▲2 World Builder." in text
    assert "2 Emma Dune 1 ▼1 World Builder." in text
    assert " 3 book3 Emma" not in text


# ---- text from strangers ---------------------------------------------------------------------------------------------

HOSTILE_ITEM = item(
    1,
    1,
    item_id=HOSTILE,
    persona=pb.Persona(name=f"name {HOSTILE}", description=HOSTILE, preference_rationale=f"why {HOSTILE}"),
)
CHOICE = Choice(DEFAULTS["als"], 0.5, 0.9, 20)


@pytest.mark.parametrize(
    "table",
    [
        tables.ranking(response(HOSTILE_ITEM), {}, HOSTILE),
        tables.ranking(response(HOSTILE_ITEM), {HOSTILE: f"title {HOSTILE}"}, HOSTILE),
        tables.side_by_side(response(HOSTILE_ITEM), {HOSTILE: f"title {HOSTILE}"}, 5, HOSTILE),
        tables.explanation(HOSTILE_ITEM),
        tables.info(pb.InfoResponse(index_version=HOSTILE, embedding_space=HOSTILE, generator=HOSTILE)),
        tables.published(PublishReport(HOSTILE, 1, 0, 0, 1, 1, 0), HOSTILE),
        tables.imported(
            ImportReport((SourceReport(HOSTILE, 1, 0, 0, 0, {HOSTILE: 1}),), {HOSTILE: 1}, (HOSTILE,)), Path(HOSTILE)
        ),
    ],
    ids=["ids", "titles", "side by side", "explanation", "info", "published", "imported"],
)
@pytest.mark.parametrize("width", [80, 300])
def test_what_strangers_wrote_is_shown_as_text_and_drives_no_terminal(table: RenderableType, width: int) -> None:
    text = shown(table, width)
    if width > 80:
        assert MARKUP in text
        assert "�[2J" in text


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_what_was_published_is_told_and_what_stays_too() -> None:
    text = shown(tables.published(PublishReport("v1", 3, 4, 0, 2, 9, 1), "http://here"))
    assert words(text) == (
        "published to http://here, version v1 3 items written (9 personas; 1 items have none and are served by their "
        "summary) 4 unchanged, 0 deleted 2 items of the index are not in the dataset and stay (--prune deletes them)"
    )
    assert "--prune" not in shown(tables.published(PublishReport("v1", 3, 4, 2, 0, 9, 1), "http://here"))


def test_what_was_imported_is_told_file_by_file() -> None:
    source = SourceReport("gt.jsonl", read=10, written=6, duplicates=1, left_out=1, reasons={"padding": 2})
    text = words(shown(tables.imported(ImportReport((source,), {"test.csv": 6}, ("Mind this.",)), Path("there"))))
    assert "gt.jsonl 10 6 1 1 2" in text
    assert "written to there: test.csv 6" in text
    assert "rejected, 2 x: padding" in text
    assert text.endswith("Mind this.")


def evaluation(p: float) -> Evaluation:
    figures = [("generator", 0.2), ("fused", 0.3), ("shuffled", 0.1)]
    return Evaluation(
        measured=tuple(
            Measured(ranker, metric, k, value, value - 0.05, value + 0.05, value + 0.001)
            for ranker, value in figures
            for metric in ("HR", "NDCG")
            for k in (5, 10)
        ),
        comparisons=tuple(
            Comparison(ranker, "generator", metric, k, value - 0.2, p)
            for ranker, value in figures[1:]
            for metric in ("HR", "NDCG")
            for k in (5, 10)
        ),
        ceiling=0.875,
        queries=1234,
        users=56,
        choices=(CHOICE, CHOICE),
    )


def test_figures_carry_their_intervals_and_say_when_a_difference_is_sure() -> None:
    text = words(shown(tables.measured(evaluation(p=0.01)), width=160))
    assert "generator fused shuffled" in text
    for row in ("HR@5", "HR@10", "NDCG@5", "NDCG@10"):
        assert f"{row} 0.2000 0.150-0.250 0.3000+ 0.250-0.350 0.1000- 0.050-0.150" in text
    assert "1,234 queries of 56 users; 87.5% of the held-out items are among the candidates" in text
    assert "NDCG@10: generator 0.2010, fused 0.3010, shuffled 0.1010" in text
    assert text.endswith(f"settings: {tables.choice(CHOICE)}")


def test_a_difference_that_may_be_chance_is_not_marked() -> None:
    text = words(shown(tables.measured(evaluation(p=0.06)), width=160))
    assert "0.3000 0.250-0.350 0.1000 0.050-0.150" in text


@pytest.mark.parametrize("model", get_args(Model))
def test_a_choice_is_told_in_full(model: Model) -> None:
    hyperparameters = DEFAULTS[model]
    told = tables.choice(Choice(hyperparameters, 0.3, 0.8, 50))
    assert told.startswith(f"{model} with {hyperparameters.factors} factors, {hyperparameters.iterations} iterations")
    assert told.endswith("fusion weight 0.3, gamma 0.8, history length 50")
    assert ("alpha" in told, "learning rate" in told) == (model == "als", model == "bpr")
