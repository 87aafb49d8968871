"""An item's personas as a person enjoys reading them, with what an editor has decided."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persona4rec.plain import plain

if TYPE_CHECKING:
    from offline.dataset import ItemPersonas
    from offline.decisions import Decision
    from reranker.records import Persona

DONE = {"block": "blocked", "pin": "pinned", "edit": "edited"}


def item_personas(found: "ItemPersonas", title: str, taken: "Sequence[Decision]") -> RenderableType:
    """Show a line for each persona, and below them what was blocked or replaced."""
    heading = Text.assemble((plain(title or found.item_id), "bold"), (plain(f"  {found.item_id}"), "dim"))
    table = Table(title=heading, title_justify="left", header_style="bold", pad_edge=False, expand=True)
    table.add_column("persona", ratio=3, overflow="fold")
    table.add_column("who it is, and why this one", ratio=7)
    table.add_column("reviews", justify="right")
    for persona in found.personas:
        table.add_row(_name(persona, taken), _words(persona), str(len(persona.evidence)))
    if not found.personas:
        table.add_row(Text("none is left", style="dim"), "", "")
    shown = {persona.persona_id for persona in found.personas}
    notes = [_note(decision) for decision in taken if decision.persona.persona_id not in shown]
    return Group(table, *notes, Text())


def _name(persona: "Persona", taken: "Sequence[Decision]") -> Text:
    marks = [
        DONE[decision.action]
        for decision in taken
        if decision.result.persona_id == persona.persona_id and decision.action != "block"
    ]
    mark = f"  {marks[-1]}" if marks else ""
    return Text.assemble((plain(persona.name), "bold"), (mark, "green"), (f"\n{plain(persona.persona_id)}", "dim"))


def _words(persona: "Persona") -> Text:
    return Text.assemble(plain(persona.description), "\n", (plain(persona.preference_rationale), "italic"))


def _note(decision: "Decision") -> Text:
    told = f"{DONE[decision.action]}: {decision.persona.name} ({decision.persona.persona_id})"
    extra = ", ".join(filter(None, (decision.by and f"by {decision.by}", decision.at, decision.why)))
    return Text(plain(f"{told}{f' - {extra}' if extra else ''}"), style="dim")
