"""Whether a persona's evidence bears its rationale out, judged by an LLM: one short call a persona."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from offline.calls import Call, review_tag, user_tag
from offline.domains import Domain
from offline.evidence import Piece
from offline.quoting import messages, quoted

SupportJudge = Literal["similarity", "llm"]
"""By `persona_checks.support`, which costs nothing, or by the LLM that wrote the personas."""

MOST_TOKENS = 30
"""Of an answer: one word in JSON takes about 10."""

TASK = (
    'Do these reviews say what the rationale claims? Answer as JSON: {"supported": "yes"} if they say it, '
    '{"supported": "no"} if they speak of other things or say the contrary.'
)


class Verdict(BaseModel, frozen=True):
    """What an LLM answers."""

    supported: Literal["yes", "no"]


def question(key: str, rationale: str, evidence: Sequence[Piece], domain: Domain) -> Call[Verdict]:
    """Ask whether what reviews say of an item bears a persona's preference rationale out. `key`: the call's."""
    reviews = (quoted("review", piece.text) for piece in evidence)
    data = "\n".join([*reviews, quoted("rationale", rationale)])
    prompt = messages(domain.prompt("support"), data, TASK, "review", "rationale")
    tags = [review_tag(piece.review_id) for piece in evidence]
    tags += [user_tag(piece.user_id) for piece in evidence if piece.user_id]
    return Call(key, prompt, Verdict, MOST_TOKENS, tuple(tags))
