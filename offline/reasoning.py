"""Subjects through a stage of the offline reasoning as they come, with an LLM or without: no dataset, no file."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from offline.calls import Call, request_body
from offline.errors import EndpointError
from offline.llm import LlmClient
from offline.llm_cache import ResponseCache
from offline.progress import Progress
from offline.replies import Reason, Rejected
from offline.spending import most_usage
from offline.stages import Made, Problem, Stage
from offline.worker_metrics import WorkerMetrics

Subject = TypeVar("Subject")

PASSING = frozenset({Reason.UNREACHABLE, Reason.UNSAVED, Reason.UNASKED})
"""Of the reasons why there is no answer, those that another time may not have."""


class Reasoning:
    """Asks an LLM, or does without one where `client` is None. `meanwhile` is called while answers are waited for."""

    def __init__(self, client: LlmClient | None, metrics: WorkerMetrics, cache: ResponseCache | None = None) -> None:
        """`cache`: where there is no client, the replies of the one that there once was."""
        self.client = client
        self._cache = client.cache if client else cache
        self.meanwhile: Callable[[], None] = lambda: None
        self._metrics = metrics

    def made(self, stage: Stage[Subject, Any], subjects: Sequence[Subject]) -> list[Made]:
        """Return what becomes of each subject, in their order. What was answered before, the cache answers.

        Raises LlmError where nobody answers, or if the cache cannot be used.
        """
        if self.client is None:
            return [stage.extracted(subject) for subject in subjects]
        first = self._answers(stage, [stage.calls(subject) for subject in subjects])
        pairs = list(zip(subjects, first, strict=True))
        then = self._answers(stage, [() if _rejected(got) else stage.further(subject, got) for subject, got in pairs])
        return [_made(stage, subject, [*got, *more]) for (subject, got), more in zip(pairs, then, strict=True)]

    def tokens(self, stage: Stage[Subject, Any], subject: Subject) -> int:
        """Return how many tokens a subject's calls take at most, each answered at its first attempt."""
        if self.client is None:
            return 0
        model = self.client.model
        return sum(most_usage(call, request_body(call, model)).tokens for call in stage.calls(subject))

    def forget(self, tag: str) -> None:
        """Forget every reply that carries a tag. Raises ResponseCacheError."""
        if self._cache is not None:
            self._cache.forget(tag)

    def _answers(self, stage: Stage[Any, Any], calls: Sequence[Sequence[Call[Any]]]) -> list[list[Any]]:
        """Return what came of the calls of each subject."""
        all_calls = [call for of_subject in calls for call in of_subject]
        results = self._asked(stage.name, all_calls) if all_calls else {}
        return [[results[call.key] for call in of_subject] for of_subject in calls]

    def _asked(self, stage: str, calls: Sequence[Call[Any]]) -> dict[str, Any]:
        assert self.client  # noqa: S101 - only asked where there is one
        last = Progress()

        def note(now: Progress) -> None:
            nonlocal last
            self._metrics.count_calls(stage, last, now)
            last = now
            self.meanwhile()

        results = {outcome.key: outcome.result for outcome in self.client.run(stage, calls, report=note)}
        for result in results.values():
            if isinstance(result, Rejected) and result.reason in PASSING:
                raise EndpointError(f"{stage}: {result.reason}: {result.detail}")
        return results


def _made(stage: Stage[Subject, Any], subject: Subject, answers: list[Any]) -> Made:
    rejected = _rejected(answers)
    if rejected:
        return Made(None, (Problem(rejected.reason, rejected.detail),))
    return stage.made(subject, answers)


def _rejected(answers: Sequence[Any]) -> Rejected | None:
    return next((answer for answer in answers if isinstance(answer, Rejected)), None)
