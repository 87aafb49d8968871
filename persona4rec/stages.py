"""`persona4rec summarize`, `aspects`, `align` and `batch`: the stages that an LLM has a part in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from persona4rec import arguments
from reranker.errors import ConfigurationError

# Imported where they are used: a serving host has nothing of the offline side.
if TYPE_CHECKING:
    from offline.calls import Model
    from offline.dataset import Dataset
    from offline.llm_cache import ResponseCache
    from offline.llm_settings import LlmSettings, LocalGguf, RemoteLlm
    from offline.pipeline import StageSettings
    from offline.progress import Progress
    from offline.stages import Ask, Stage, StageReport

commands = typer.Typer()
batch = typer.Typer(help="Let a stage be answered elsewhere, in the OpenAI Batch API's format.", no_args_is_help=True)
commands.add_typer(batch, name="batch")

out = Console()
log = Console(stderr=True)

DataDir = Annotated[Path, typer.Argument(metavar="DIR", help="A dataset directory.")]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="summarize, aspects, personas or align.")]
Llm = Annotated[
    str,
    typer.Option(
        "--llm",
        envvar="PERSONA4REC_LLM",
        metavar="URL|local=PATH|none",
        help="An OpenAI-compatible endpoint, a GGUF model file that is served meanwhile, or none.",
    ),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Its name at the endpoint; not needed where there is just one.")
]
DomainName = Annotated[
    str, typer.Option("--domain", metavar="NAME|FILE", help="books, restaurants, movies, generic, or a TOML file.")
]
Concurrency = Annotated[int | None, typer.Option(help="Requests in flight.", show_default="32")]
BudgetMoney = Annotated[
    float | None,
    typer.Option(help="What this run may cost at most, in the currency of PERSONA4REC_LLM_INPUT_PRICE."),
]
BudgetTokens = Annotated[int | None, typer.Option(help="Tokens this run may use at most, in and out together.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be asked and what it costs; ask nobody.")]
RetryRejected = Annotated[
    bool,
    typer.Option("--retry-rejected", help="Ask again where an earlier reply was of no use, or refused by the checks."),
]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        help="choice: one question; orders: one for each rotation of the personas; likelihood: by prompt "
        "log-probabilities, which vLLM gives.",
    ),
]
SupportJudgeName = Annotated[
    str,
    typer.Option(
        "--support-judge",
        help="Who says whether its evidence bears a persona out. similarity: vectors and words; llm: the LLM, asked "
        "once more for each persona.",
    ),
]
HistoryLength = Annotated[int, typer.Option(min=1, help="Interactions that a judgement is made from at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the order that personas are shown in.")]
MaxBadShare = Annotated[float, typer.Option(min=0, max=1, help="Share of a file's lines that may be bad.")]


@dataclass(frozen=True, slots=True)
class Asking:
    """Whom a command asks, and for how much."""

    llm: str
    model: str | None = None
    concurrency: int | None = None
    budget: float | None = None
    token_budget: int | None = None
    dry_run: bool = False
    retry_rejected: bool = False

    def settings(self) -> "LlmSettings":
        from offline.llm_settings import LlmSettings

        given = {name: getattr(self, name) for name in ("model", "concurrency", "budget", "token_budget")}
        return arguments.from_flags(LlmSettings, given)


@commands.command()
def summarize(
    directory: DataDir,
    llm: Llm,
    domain: DomainName = "generic",
    model: ModelName = None,
    concurrency: Concurrency = None,
    budget_money: BudgetMoney = None,
    budget_tokens: BudgetTokens = None,
    dry_run: DryRun = False,
    retry_rejected: RetryRejected = False,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Summarise each item in two or three neutral sentences, into summaries.jsonl. Asks only about what is open."""
    asking = Asking(llm, model, concurrency, budget_money, budget_tokens, dry_run, retry_rejected)
    run_stage("summarize", directory, stage_settings(domain), asking, max_bad_share)


@commands.command()
def aspects(
    directory: DataDir,
    llm: Llm,
    domain: DomainName = "generic",
    model: ModelName = None,
    concurrency: Concurrency = None,
    budget_money: BudgetMoney = None,
    budget_tokens: BudgetTokens = None,
    dry_run: DryRun = False,
    retry_rejected: RetryRejected = False,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Extract what each review says, slot by slot of the domain, into aspects.jsonl. Asks only about what is open."""
    asking = Asking(llm, model, concurrency, budget_money, budget_tokens, dry_run, retry_rejected)
    run_stage("aspects", directory, stage_settings(domain), asking, max_bad_share)


@commands.command()
def align(
    directory: DataDir,
    llm: Llm,
    domain: DomainName = "generic",
    judge: JudgeName = "choice",
    history_length: HistoryLength = 10,
    seed: Seed = 0,
    model: ModelName = None,
    concurrency: Concurrency = None,
    budget_money: BudgetMoney = None,
    budget_tokens: BudgetTokens = None,
    dry_run: DryRun = False,
    retry_rejected: RetryRejected = False,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Judge which persona explains each interaction, into alignments.jsonl. Asks only about what is open."""
    asking = Asking(llm, model, concurrency, budget_money, budget_tokens, dry_run, retry_rejected)
    run_stage("align", directory, stage_settings(domain, judge, history_length, seed), asking, max_bad_share)


@batch.command("export")
def batch_export(
    stage: StageName,
    directory: DataDir,
    out_path: Annotated[Path, typer.Option("--out", metavar="FILE", help="The requests to write, .jsonl.")],
    llm: Llm = "",
    model: ModelName = None,
    domain: DomainName = "generic",
    judge: JudgeName = "choice",
    history_length: HistoryLength = 10,
    seed: Seed = 0,
    support_judge: SupportJudgeName = "similarity",
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Write a request for each open call of a stage, for --model NAME (or what --llm serves)."""
    from offline.batch_files import export_calls
    from offline.dataset import Dataset
    from offline.llm_cache import CACHE_FILE, ResponseCache
    from offline.pipeline import stage_named
    from offline.stages import cached_answers, open_calls

    chosen = stage_named(stage, stage_settings(domain, judge, history_length, seed, support_judge))
    dataset = Dataset.open(directory, max_bad_share)
    asked = _model(Asking(llm, model))
    with ResponseCache(directory / CACHE_FILE) as cache:
        calls = open_calls(chosen, dataset, cached_answers(asked, cache))
        exported = export_calls(calls, asked, cache, out_path)
    told = (
        f"{exported.requests:,} requests for {asked.name}: {out_path} ({exported.cached:,} calls are cached, "
        f"{exported.repeated:,} ask the same as another)"
    )
    out.print(told, markup=False, soft_wrap=True)


@batch.command("import")
def batch_import(
    stage: StageName,
    directory: DataDir,
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="The results that came back, .jsonl.")],
    llm: Llm = "",
    model: ModelName = None,
    domain: DomainName = "generic",
    judge: JudgeName = "choice",
    history_length: HistoryLength = 10,
    seed: Seed = 0,
    support_judge: SupportJudgeName = "similarity",
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Take in the results of a stage's requests, all or some; what failed stays open. Settings as at the export."""
    from offline.batch_files import import_results
    from offline.dataset import Dataset
    from offline.llm_cache import CACHE_FILE, ResponseCache
    from offline.pipeline import stage_named
    from offline.stages import cached_answers, cached_only, open_calls, run
    from persona4rec import stage_tables

    chosen = stage_named(stage, stage_settings(domain, judge, history_length, seed, support_judge))
    dataset = Dataset.open(directory, max_bad_share)
    asking = Asking(llm, model)
    asked = _model(asking)
    with ResponseCache(directory / CACHE_FILE) as cache:
        prices = asking.settings().prices
        calls = open_calls(chosen, dataset, cached_answers(asked, cache))
        imported = import_results(stage, calls, results, asked, cache, prices)
        report = run(chosen, dataset, lambda calls: cached_only(calls, asked, cache))
    out.print(stage_tables.results_imported(imported))
    out.print(stage_tables.stage_done(report))
    if report.stopped:
        raise report.stopped


def stage_settings(
    domain: str,
    judge: str = "choice",
    history_length: int = 10,
    seed: int = 0,
    support_judge: str = "similarity",
) -> "StageSettings":
    """Return what the stages' calls depend on. Raises ConfigurationError for a domain or judge there is not."""
    from typing import get_args

    from offline.alignment import Judge
    from offline.domains import load_domain
    from offline.pipeline import StageSettings
    from offline.support_judge import SupportJudge

    for name, there in ((judge, get_args(Judge)), (support_judge, get_args(SupportJudge))):
        if name not in there:
            raise ConfigurationError(f"there is no judge {name!r}: choose {', '.join(there)}")
    return StageSettings(
        load_domain(domain),
        cast("Judge", judge),
        history_length,
        seed,
        support_judge=cast("SupportJudge", support_judge),
    )


def run_stage(
    name: str, directory: Path, settings: "StageSettings", asking: Asking, max_bad_share: float = 0.05
) -> None:
    """Run what is open of a stage and print what came of it; with a dry run, print what it would ask for."""
    from offline.dataset import Dataset
    from offline.llm_settings import NoLlm, llm_source
    from offline.pipeline import stage_named
    from offline.stages import run_without_llm
    from persona4rec import stage_tables

    stage, dataset, source = stage_named(name, settings), Dataset.open(directory, max_bad_share), llm_source(asking.llm)
    if not isinstance(source, NoLlm):
        _with_llm(stage, dataset, source, asking)
    elif asking.dry_run:
        out.print(f"{name}: nobody is asked with --llm none", markup=False)
    else:
        out.print(stage_tables.stage_done(run_without_llm(stage, dataset)))


def _with_llm(stage: "Stage[Any, Any]", dataset: "Dataset", source: "LocalGguf | RemoteLlm", asking: Asking) -> None:
    from offline.llm_cache import CACHE_FILE, ResponseCache
    from persona4rec import stage_tables

    with ResponseCache(dataset.path / CACHE_FILE) as cache:
        if asking.dry_run:
            _tell_cost(stage, dataset, cache, asking)
            return
        report, progress = _ran(stage, dataset, source, cache, asking)
    out.print(stage_tables.stage_done(report, progress))
    if report.stopped:
        raise report.stopped


def _tell_cost(stage: "Stage[Any, Any]", dataset: "Dataset", cache: "ResponseCache", asking: Asking) -> None:
    from offline.spending import estimate
    from offline.stages import cached_answers, open_calls
    from persona4rec import tables

    model = _model(asking)
    calls = open_calls(stage, dataset, cached_answers(model, cache), foreseen=True)
    found = estimate(stage.name, calls, model, asking.settings().prices, cache)
    out.print(tables.dry_run(stage.name, found))


def _ran(
    stage: "Stage[Any, Any]",
    dataset: "Dataset",
    source: "LocalGguf | RemoteLlm",
    cache: "ResponseCache",
    asking: Asking,
) -> "tuple[StageReport, Progress | None]":
    """Run a stage; where nothing is open, no endpoint is looked for, and no local LLM started."""
    from offline.stages import open_calls, run, unanswered

    with log.status("looking for what is open"):
        total = sum(1 for _ in open_calls(stage, dataset, foreseen=True))
    if not total:
        return run(stage, dataset, unanswered), None
    last: list[Progress] = []
    with _client(stage, source, cache, asking, total, last) as ask:
        report = run(stage, dataset, ask, retry_rejected=asking.retry_rejected)
    return report, last[-1] if last else None


@contextmanager
def _client(
    stage: "Stage[Any, Any]",
    source: "LocalGguf | RemoteLlm",
    cache: "ResponseCache",
    asking: Asking,
    total: int,
    progress: "list[Progress]",
) -> "Iterator[Ask]":
    from offline.endpoints import opened
    from offline.llm import LlmClient
    from persona4rec.llm_progress import llm_progress

    settings = asking.settings()
    with opened(source, settings) as endpoint, llm_progress(stage.name, log) as show:
        client = LlmClient(endpoint, cache, settings)
        again = asking.retry_rejected

        def told(now: "Progress") -> None:
            progress[:] = [now]
            show(now)

        # A stage may ask in rounds; the budget is one for all.
        yield lambda calls: client.run(
            stage.name, calls, total=total, retry_rejected=again, report=told, before=progress[-1] if progress else None
        )


def _model(asking: Asking) -> "Model":
    """Return the model that calls are for; by --model alone, nobody has to be there yet."""
    from offline.endpoints import model_name
    from offline.llm_settings import NoLlm, llm_source

    settings = asking.settings()
    if not asking.llm and settings.model:
        return settings.named(settings.model)
    source = llm_source(asking.llm) if asking.llm else NoLlm()
    if isinstance(source, NoLlm):
        raise ConfigurationError("say for which LLM the requests are: --model NAME, or --llm with who serves it")
    return settings.named(model_name(source, settings))
