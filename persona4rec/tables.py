"""Answers and figures as a person enjoys reading them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona4rec.plain import plain
from reranker.v1 import reranker_pb2 as pb

# A serving host shows rankings and has nothing of the offline side.
if TYPE_CHECKING:
    from offline.evaluate import Choice, Evaluation
    from offline.importers.accounting import ImportReport
    from offline.measures import Comparison, Measured
    from offline.publish import PublishReport
    from offline.spending import Estimate
    from offline.versions import RollbackReport
    from offline.worker_export import ExportReport
    from reranker.personas_milvus import Version

# The usual bound: of twenty differences that do not exist, one would look sure.
SURE = 0.05

REASONS = {
    pb.ITEM_REASON_SUMMARY_ONLY: "no personas yet: scored by its summary",
    pb.ITEM_REASON_NOT_INDEXED: "not in the index: counted as average",
    pb.ITEM_REASON_NO_PROFILE: "no profile: first-stage order",
    pb.ITEM_REASON_NOT_SCORED: "not scored: first-stage order",
}
DEGRADATIONS = {
    pb.DEGRADATION_UNKNOWN_USER: "the history store does not know this user: first-stage order",
    pb.DEGRADATION_EMPTY_HISTORY: "the history is empty: first-stage order",
    pb.DEGRADATION_HISTORY_WITHOUT_VECTORS: "no item of the history is in the index: first-stage order",
    pb.DEGRADATION_HISTORY_UNAVAILABLE: "the history store did not answer: first-stage order",
    pb.DEGRADATION_ITEMS_NOT_INDEXED: "some candidates are not in the index",
    pb.DEGRADATION_INDEX_STALE: "the index could not be refreshed for a while and may be out of date",
    pb.DEGRADATION_CANDIDATES_FROM_HISTORY: "the generator does not know this user: candidates come from the history",
    pb.DEGRADATION_CANDIDATES_POPULAR: "nothing is known of this user: candidates are what is popular",
    pb.DEGRADATION_DEADLINE_SHORT: "too little time was left to score: first-stage order",
    pb.DEGRADATION_SWITCHED_OFF: "reranking is switched off: first-stage order",
    pb.DEGRADATION_NOT_ANSWERED: "the service did not answer: first-stage order",
}


def ranking(response: pb.RerankResponse, titles: Mapping[str, str], heading: str) -> RenderableType:
    """Show a ranked list, each item with its move and the persona that explains it, and what was missing."""
    table = Table(title=Text(plain(heading)), title_justify="left", header_style="bold", pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    table.add_column("was", justify="right")
    table.add_column("item", ratio=2)
    table.add_column("score", justify="right")
    table.add_column("persona", justify="right")
    table.add_column("who would engage, and why", ratio=5)
    for item in response.items:
        table.add_row(*_ranked_row(item, titles))
    return Group(table, *_notes(response))


def side_by_side(response: pb.RerankResponse, titles: Mapping[str, str], places: int, heading: str) -> Table:
    """Show the first stage's order beside the reranked one, with each reason."""
    table = Table(title=Text(plain(heading)), title_justify="left", header_style="bold", pad_edge=False, expand=True)
    table.add_column("#", justify="right")
    table.add_column("first stage", ratio=2)
    table.add_column("reranked", ratio=2)
    table.add_column("move", justify="right")
    table.add_column("because", ratio=4)
    before = sorted(response.items, key=lambda item: item.rank_before)
    for old, new in list(zip(before, response.items, strict=True))[:places]:
        table.add_row(
            str(new.rank), _title(old.item_id, titles), _title(new.item_id, titles), _move(new), explanation(new)
        )
    return table


def measured(evaluation: "Evaluation") -> RenderableType:
    """Show each ranker's measures with intervals, and how sure each difference to the generator is."""
    figures = {(m.ranker, m.metric, m.k): m for m in evaluation.measured}
    differences = {(c.ranker, c.metric, c.k): c for c in evaluation.comparisons if c.against == "generator"}
    variants: dict[str, list[str]] = {}
    for ranker in dict.fromkeys(m.ranker for m in evaluation.measured):
        variants.setdefault(ranker.partition("+")[2], []).append(ranker)
    tables = (_measured(rankers, figures, differences) for rankers in variants.values())
    return Group(*tables, *_evaluation_notes(evaluation))


def _measured(
    rankers: list[str],
    figures: Mapping[tuple[str, str, int], "Measured"],
    differences: Mapping[tuple[str, str, int], "Comparison"],
) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("")
    for ranker in rankers:
        table.add_column(ranker)
    for metric, k in dict.fromkeys((metric, k) for _, metric, k in figures):
        keys = [(ranker, metric, k) for ranker in rankers]
        table.add_row(f"{metric}@{k}", *(_figure(figures[key], differences.get(key)) for key in keys))
    return table


def published(report: "PublishReport", uri: str) -> Text:
    lines = [
        f"published to {uri}, version {report.version}",
        f"  {report.written} items written ({report.personas} personas; {report.without_personas} items have none and "
        "are served by their summary)",
        f"  {report.unchanged} unchanged, {report.deleted} deleted",
    ]
    if report.kept:
        lines.append(f"  {report.kept} items of the index are not in the dataset and stay (--prune deletes them)")
    if report.orphans:
        lines.append(f"  {report.orphans} vectors that a killed publish had left are deleted")
    lines += _left(report.left)
    return Text(plain("\n".join(lines)))


def rolled_back(report: "RollbackReport", uri: str) -> Text:
    lines = [
        f"back to version {report.version} in {uri}, from {report.left_version}, which the next rebuild deletes",
        f"  {report.replayed} items that had changed since were taken along",
        *_left(report.left),
    ]
    return Text(plain("\n".join(lines)))


def _left(item_ids: Sequence[str]) -> list[str]:
    if not item_ids:
        return []
    named = ", ".join(item_ids[:3]) + (", ..." if len(item_ids) > 3 else "")
    return [
        f"  {len(item_ids)} items are there in another embedding space: they, or what changed of them, are not in this "
        f"version: publish them again ({named})"
    ]


def versions(rows: Iterable["tuple[Version, int, int]"]) -> Table:
    """Show the index's versions, each with its items and vectors."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("version", "begun (UTC)", "items", "vectors", ""):
        table.add_column(heading, justify="right" if heading in {"items", "vectors"} else "left")
    used = False
    for version, items, vectors in rows:
        used = used or version.in_use
        state = _state(version, after_used=used)
        begun = f"{version.created:%Y-%m-%d %H:%M:%S}"
        table.add_row(Text(plain(version.name)), begun, f"{items:,}", f"{vectors:,}", state)
    return table


def _state(version: "Version", *, after_used: bool) -> str:
    if version.in_use:
        return "in use"
    if version.generation is None:
        return "unfinished"
    return "gone back from" if after_used else "--rollback goes back to the newest of these"


def dry_run(stage: str, found: "Estimate") -> Text:
    basis = "as long as this stage's earlier ones" if found.from_experience else "as long as they may be"
    at_most = f"at most {found.cost_at_most:.4g} if every first answer is good"
    if math.isinf(found.cost_at_most):
        at_most = "without an upper limit, as the requests set none to the answers"
    return Text(
        f"{stage}: {found.calls - found.cached:,} calls to make ({found.calls:,} in all, {found.cached:,} cached), "
        f"about {found.input_tokens:,} + {found.output_tokens:,} tokens, cost about {found.cost:.4g}, "
        f"{at_most}. Answers are taken to be {basis}."
    )


def imported(report: "ImportReport", target: Path) -> RenderableType:
    """Show what became of each file's entries, what was written, and what to know of it."""
    table = Table(header_style="bold", pad_edge=False)
    for heading in ("file", "read", "written", "duplicates", "left out", "rejected"):
        table.add_column(heading, justify="left" if heading == "file" else "right", overflow="fold")
    for source in report.sources:
        counts = source.read, source.written, source.duplicates, source.left_out, source.rejected
        table.add_row(Text(plain(source.file)), *map(str, counts))
    reasons = [(why, n) for source in report.sources for why, n in source.reasons.items()]
    rejected = [Text(plain(f"rejected, {n} x: {why}"), style="yellow") for why, n in reasons]
    written = ", ".join(f"{name} {count:,}" for name, count in report.written.items())
    return Group(
        table, Text(plain(f"written to {target}: {written}")), *rejected, *(Text(plain(n)) for n in report.notes)
    )


def exported(report: "ExportReport", target: Path) -> Text:
    """Show what was written of the worker's state, and what a dataset has no place for."""
    lines = [f"written to {target}: {', '.join(f'{name} {count:,}' for name, count in report.written.items())}"]
    left_out = (
        (report.due, "items are yet to be refreshed: what is due of them is in the worker's state only"),
        (report.waiting, "reviews are new to the personas: a fresh state takes them for those that these rest on"),
        (report.evidence_left_out, "mentions of reviews that the state does not hold are left out of evidence"),
        (report.gone, "deletions and erasures are in the worker's state only: a fresh one learns them by a replay"),
    )
    lines += [f"  {count:,} {what}" for count, what in left_out if count]
    return Text(plain("\n".join(lines)))


def info(response: pb.InfoResponse) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in (
        ("index", f"{response.index_version}, generation {response.index_generation}"),
        ("items", f"{response.items:,} with {response.personas:,} personas, {response.dimension}-d"),
        ("space", response.embedding_space),
        ("generator", response.generator or "none"),
        (
            "fusion",
            f"weight {response.fusion_weight:g}, gamma {response.gamma:g}, last {response.history_length} events",
        ),
    ):
        table.add_row(name, Text(plain(value)))
    return table


def choice(chosen: "Choice") -> str:
    model = chosen.hyperparameters
    step = f"alpha {model.alpha:g}" if model.model == "als" else f"learning rate {model.learning_rate:g}"
    return (
        f"{model.model} with {model.factors} factors, {model.iterations} iterations, regularization "
        f"{model.regularization:g}, {step}; fusion weight {chosen.weight:g}, gamma {chosen.gamma:g}, "
        f"history length {chosen.history_length}"
    )


def _ranked_row(item: pb.RankedItem, titles: Mapping[str, str]) -> tuple[RenderableType, ...]:
    persona_score = f"{item.persona_score:.2f}" if item.HasField("persona_score") else "-"
    title = _title(item.item_id, titles)
    return str(item.rank), _move(item), title, f"{item.score:.2f}", persona_score, explanation(item)


def _title(item_id: str, titles: Mapping[str, str]) -> Text:
    return Text(plain(titles.get(item_id) or item_id))


def _move(item: pb.RankedItem) -> Text:
    moved = item.rank_before - item.rank
    if moved == 0:
        return Text(f"{item.rank_before}  =", style="dim")
    arrow, style = ("▲", "green") if moved > 0 else ("▼", "yellow")
    return Text(f"{item.rank_before} {arrow}{abs(moved)}", style=style)


def explanation(item: pb.RankedItem) -> Text:
    if not item.HasField("persona"):
        return Text(REASONS.get(item.reason, ""), style="dim")
    # Text, never markup: personas come from reviews, and those from anybody.
    return Text.assemble((plain(item.persona.name), "bold"), plain(f". {item.persona.preference_rationale}"))


def _notes(response: pb.RerankResponse) -> Iterable[Text]:
    for reason in response.degraded:
        yield Text(f"without: {DEGRADATIONS.get(reason, pb.Degradation.Name(reason))}", style="yellow")
    seen = f"newest event {_moment(response.profile_watermark)}" if response.profile_watermark else "no dated event"
    took = f"{response.timings.total_us / 1000:.2f} ms in the server"
    yield Text(f"{seen} · index generation {response.index_generation} · {took}", style="dim")


def _moment(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"


def _figure(figure: "Measured", difference: "Comparison | None") -> Text:
    sure = difference is not None and difference.p < SURE
    mark, style = (("+", "green") if difference.difference > 0 else ("-", "red")) if sure and difference else (" ", "")
    interval = f" {figure.low:.3f}-{figure.high:.3f}"
    return Text.assemble(f"{figure.value:.4f}", (mark, style), (interval, "dim"))


def _evaluation_notes(evaluation: "Evaluation") -> Iterable[Text]:
    yield Text(
        f"{evaluation.queries:,} queries of {evaluation.users:,} users; {evaluation.ceiling:.1%} of the held-out items "
        "are among the candidates (the ceiling of every HR)."
    )
    yield Text(
        "Mean over queries with its 95 % bootstrap interval over users. "
        f"+ / -: above or below the generator at p < {SURE:g}, permutation test paired by user, not corrected for the "
        "number of tests.",
        style="dim",
    )
    yield _per_user(evaluation)
    yield from _against_plain(evaluation)
    for name, choices in (("", evaluation.choices), *evaluation.variant_choices):
        yield from _choices(name, choices)


def _against_plain(evaluation: "Evaluation") -> Iterable[Text]:
    """Say of each variant's rankers how they differ from the same without it."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for c in evaluation.comparisons:
        if c.against != "generator" and c.metric == "NDCG":
            found.setdefault((c.ranker, c.against), []).append(c)
    for (ranker, against), comparisons in found.items():
        told = ", ".join(f"NDCG@{c.k} {c.difference:+.4f} (p = {c.p:.3f})" for c in comparisons)
        yield Text(f"{ranker} against {against}, by user: {told}")


def _choices(name: str, choices: "Iterable[Choice]") -> Iterable[Text]:
    folds: dict[str, list[int]] = {}
    for number, chosen in enumerate(choices, start=1):
        folds.setdefault(choice(chosen), []).append(number)
    for told, numbers in folds.items():
        which = f" (fold {', '.join(map(str, numbers))})" if len(folds) > 1 else ""
        yield Text(f"settings{name and ' with '}{name}{which}: {told}", style="dim")


def _per_user(evaluation: "Evaluation") -> Text:
    deepest = max(m.k for m in evaluation.measured)
    figures = [m for m in evaluation.measured if m.k == deepest and m.metric == "NDCG"]
    return Text(
        f"Averaged by user first, NDCG@{deepest}: " + ", ".join(f"{m.ranker} {m.per_user:.4f}" for m in figures)
    )
