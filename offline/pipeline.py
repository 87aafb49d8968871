"""The stages in their order, by the names that commands call them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from offline.alignment import HISTORY, AlignmentStage, Judge
from offline.aspects import AspectsStage
from offline.domains import Domain
from offline.encoder import BUNDLED, load_encoder
from offline.errors import ConfigurationError
from offline.stages import Stage
from offline.summaries import SummariesStage
from offline.support_judge import SupportJudge


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What the calls of the stages depend on, beside the dataset; each stage takes what concerns it."""

    domain: Domain
    judge: Judge = "choice"
    history_length: int = HISTORY
    """Interactions of a profile, 1 at least."""
    seed: int = 0
    encoder: str = BUNDLED
    """By name or directory, as for publishing: measures the personas."""
    support_judge: SupportJudge = "similarity"


def _personas(settings: StageSettings) -> Stage[Any, Any]:
    # Here, because clustering loads the encoder's libraries, which take seconds.
    from offline.personas import PersonasStage
    from offline.vector_cache import CachedEncoder, default_folder

    encoder = CachedEncoder(load_encoder(settings.encoder), default_folder())
    return PersonasStage(settings.domain, encoder, settings.support_judge)


STAGES: Mapping[str, Callable[[StageSettings], Stage[Any, Any]]] = {
    "summarize": lambda settings: SummariesStage(settings.domain),
    "aspects": lambda settings: AspectsStage(settings.domain),
    "personas": _personas,
    "align": lambda settings: AlignmentStage(settings.domain, settings.judge, settings.history_length, settings.seed),
}


def stage_named(name: str, settings: StageSettings) -> Stage[Any, Any]:
    """Return a stage. Raises ConfigurationError if there is none of the name."""
    if name not in STAGES:
        raise ConfigurationError(f"there is no stage {name!r}: choose {', '.join(STAGES)}")
    return STAGES[name](settings)
