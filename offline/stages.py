"""What a stage of the offline reasoning is, and the one function that runs any of them.

A stage goes through its subjects (items, reviews, ...), asks an LLM about each, and appends one record a subject to its
file of the dataset. What is in that file is done: a further run takes up what is open, and asks nobody about the rest.
Open is, too, what has changed since its record was made, where the record says of what (`Stage.fingerprint`).

Nothing is lost by a death at any moment: a reply is in the cache before its record is written, a record is written in
one piece, and what was torn is taken away and made again from the cache. What has no record has a line in
`rejects.jsonl`, under the name of the stage, with the subject's key and why; so has each part that was left out of one.
These lines stand until their subjects are visited again, or are there no more.
"""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from offline.appending import Appender, appending
from offline.calls import Answer, Call, Model, cache_key
from offline.dataset import Dataset, Kind
from offline.errors import ConfigurationError, DatasetError, LlmError
from offline.fingerprints import fingerprints_in, take_over
from offline.flight import Outcome
from offline.lines import json_line
from offline.llm_cache import ResponseCache
from offline.records import Record
from offline.rejects import SubjectRejects
from offline.replies import Reason, Rejected, read

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why there is no record, or why a part of one was left out."""

    reason: str
    """A few words, the same for all cases alike: counted by it."""
    detail: str = ""
    """Of this case, for people; without words of a review."""
    stays: bool = False
    """Another answer would have it too: it is the subject's, or an editor's will."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one subject."""

    record: Record | None
    """None: there is none, and `problems` say why; without any, the subject is passed over, and `counts` tell that."""
    problems: tuple[Problem, ...] = ()
    """Why there is no record, or which parts of it were left out (each goes to `rejects.jsonl`)."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Whatever the stage counts, by a name for people, e.g. "null slots": 3. Summed up over the subjects."""

    @property
    def refused(self) -> bool:
        """Whether there is no record for what the answers were, so that others may lead to one."""
        return self.record is None and any(not problem.stays for problem in self.problems)


class Stage(ABC, Generic[Subject, Answer]):
    """One stage of the offline reasoning: what it asks about whom, and what it makes of the answers.

    Derive a frozen dataclass whose fields are the stage's settings. Every method is pure but for reading the dataset:
    the same dataset and settings give the same calls in the same order, which is what makes the cache, the dry run and
    batch files work.
    """

    name: ClassVar[str]
    """As in the command: "aspects". Its account in the cache, and its name in `rejects.jsonl`."""
    kind: ClassVar[Kind]
    """Which file of the dataset it writes: KIND.jsonl."""

    @abstractmethod
    def subjects(self, dataset: Dataset) -> Iterator[Subject]:
        """Yield everything the stage has to do with, done or not, in a set order, as a stream.

        Raises DatasetError if the dataset lacks what the stage builds on.
        """

    @abstractmethod
    def key(self, subject: Subject) -> str:
        """Return what a subject is known by, e.g. its review_id: unique within the stage."""

    @abstractmethod
    def done(self, dataset: Dataset) -> Iterable[tuple[str, str]]:
        """Return the key of each subject that has a record, and the fingerprint in it, "" where it has none.

        A record counts though nothing of it can be used any more. Of several of a subject the last is the record.
        """

    def fingerprint(self, subject: Subject) -> str:  # noqa: ARG002  (for those that can)
        """Return a digest that changes with what the record is made from; "" where that is not followed."""
        return ""

    @abstractmethod
    def calls(self, subject: Subject) -> Sequence[Call[Answer]]:
        """Return what to ask about a subject, mostly one call; none where the record needs no LLM.

        The calls of a subject have keys of their own, unique within the stage; the only call of one takes its key.
        """

    def further(self, subject: Subject, answers: Sequence[Answer]) -> Sequence[Call[Any]]:  # noqa: ARG002  (as above)
        """Return what to ask about the answers to `calls`; mostly nothing. Keys as there."""
        return ()

    def foreseen(self, subject: Subject) -> Sequence[Call[Any]]:  # noqa: ARG002  (as above)
        """Return calls like those that `further` will probably return, for an estimate; nobody is asked them."""
        return ()

    @abstractmethod
    def made(self, subject: Subject, answers: Sequence[Answer]) -> Made:
        """Return what the answers to all calls of a subject, in their order, and to further ones make of it."""

    def extracted(self, subject: Subject) -> Made:  # noqa: ARG002  (for those that can)
        """Return what can be made of a subject without an LLM (--llm none). Raises ConfigurationError: nothing."""
        raise ConfigurationError(f"{self.name} needs an LLM: there is no way to do it with --llm none")


Ask = Callable[[Iterator[Call[Any]]], Iterable[Outcome[Any]]]
"""Whoever answers calls: `LlmClient.run` with its stage filled in, or `cached_only`. May raise LlmError at the end."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a run of a stage did."""

    stage: str
    path: Path
    """The file it wrote to."""
    before: int
    """Records that were there already, and are still true."""
    stale: int
    """Records whose subjects have changed since: each was open again, and stays until it is made anew."""
    gone: int
    """Records whose subjects are there no more: they were taken away."""
    done: int
    """Records that were added."""
    open: int
    """Subjects nobody was asked about yet: the run was stopped, or a batch is not back."""
    rejected: Mapping[str, int]
    """Subjects without a record, by reason. Those nobody answered are asked about again by the next run."""
    left_out: Mapping[str, int]
    """Parts of records that were left out, by reason."""
    counts: Mapping[str, int]
    """What the stage counted (`Made.counts`)."""
    stopped: LlmError | None = None
    """What ended the run before its end: the budget, the endpoint, the cache. The next run goes on from here."""


Known = Callable[[Call[Any]], Any]
"""Returns the answer to a call if that is known without asking anybody, else None."""


def nothing_known(_: Call[Any]) -> None:
    """Know no answer."""


def cached_answers(model: Model, cache: ResponseCache) -> Known:
    """Know the answers in a cache."""

    def known(call: Call[Any]) -> Any:
        reply = cache.find(cache_key(call, model))
        answer = read(reply, call.schema) if reply else None
        return None if isinstance(answer, Rejected) else answer

    return known


def open_subjects(stage: Stage[Subject, Any], dataset: Dataset, done: Mapping[str, str]) -> Iterator[Subject]:
    """Yield the subjects that are not done, or have changed since, in the stage's order. `done`: as `Stage.done`."""
    return _open_of(stage, stage.subjects(dataset), done)


def _open_of(stage: Stage[Subject, Any], subjects: Iterable[Subject], done: Mapping[str, str]) -> Iterator[Subject]:
    return (subject for subject in subjects if _is_open(stage, subject, done))


def _is_open(stage: Stage[Subject, Any], subject: Subject, done: Mapping[str, str]) -> bool:
    made_from = done.get(stage.key(subject))
    return made_from is None or _has_changed(stage, subject, made_from)


def _has_changed(stage: Stage[Subject, Any], subject: Subject, made_from: str) -> bool:
    return bool(made_from) and made_from != stage.fingerprint(subject)


def open_calls(
    stage: Stage[Any, Any], dataset: Dataset, known: Known = nothing_known, *, foreseen: bool = False
) -> Iterator[Call[Any]]:
    """Yield the calls of what is open, and the further ones where their answers are known. Writes nothing.

    foreseen: where they are not, yield the calls that are likely to follow, e.g. for an estimate.
    """
    for subject in open_subjects(stage, dataset, dict(stage.done(dataset))):
        calls = stage.calls(subject)
        yield from calls
        answers = [known(call) for call in calls]
        if None not in answers:
            yield from stage.further(subject, answers)
        elif foreseen:
            yield from stage.foreseen(subject)


def run(stage: Stage[Any, Any], dataset: Dataset, ask: Ask, *, retry_rejected: bool = False) -> StageReport:
    """Run what is open of a stage, and append its records to the stage's file as they come, in no set order.

    A subject whose calls came to nothing is rejected alone. A full disk rejects those it cannot take (their replies, in
    the cache, cost nothing the next time). What ends a run for all is in the report as `stopped`.

    The record of a subject that has changed stays until another takes its place, at the end of the run, for all in one
    step: those made anew wait in a file of their own, KIND.anew.jsonl, which a run that was killed leaves to the next.
    The record of one that is there no more, where it says what it was made from, goes.

    retry_rejected: ask anew, once, where all answers were known and the stage refuses what they say (`Made.refused`).

    Memory holds the keys that are done or have a line in `rejects.jsonl`, and the subjects in flight.

    Raises DatasetError if the dataset lacks something, its file of the kind is in another format than .jsonl, or
    another run is writing it.
    """

    def ask_all(work: _Work[Any, Any], subjects: Iterator[Any]) -> None:
        work.retry_rejected = retry_rejected
        for calls in work.rounds(subjects):
            for outcome in ask(calls):
                work.take(outcome)

    return _run(stage, dataset, ask_all)


def run_without_llm(stage: Stage[Any, Any], dataset: Dataset) -> StageReport:
    """Do as `run` does by `Stage.extracted`, which asks nobody. Raises as `run`, and ConfigurationError as that."""

    def extract_all(work: _Work[Any, Any], subjects: Iterator[Any]) -> None:
        for subject in subjects:
            work.finish(subject, stage.extracted(subject))

    return _run(stage, dataset, extract_all)


def _run(
    stage: Stage[Any, Any], dataset: Dataset, way: "Callable[[_Work[Any, Any], Iterator[Any]], None]"
) -> StageReport:
    path = output_path(stage, dataset)
    anew = path.with_name(f"{stage.kind}.anew.jsonl")
    stale, gone, replaced = _stale(stage, dataset, path, anew)
    with appending(path) as output, appending(anew) as replacing, SubjectRejects(dataset.path, stage.name) as rejects:
        done = dict(stage.done(dataset))
        work = _Work(stage, output, replacing, rejects, stale)
        stopped = None
        try:
            way(work, _open_of(stage, rejects.meeting(stage.subjects(dataset), stage.key), done))
        except LlmError as error:
            stopped = error
    work.made_anew |= dict.fromkeys(gone | replaced, "")
    if work.made_anew:
        take_over(path, anew, work.made_anew)
    return work.report(path, len(done) - len(stale) - len(gone), len(gone), stopped)


def _stale(
    stage: Stage[Any, Any], dataset: Dataset, path: Path, anew: Path
) -> tuple[dict[str, str], set[str], set[str]]:
    """Return the subjects that have changed since their records were made, each with the fingerprint in its record.

    Also the fingerprints of the records whose subjects are there no more: an item whose last review was taken away has
    nothing left that its personas rest on. And of those that another record of the same subject has taken the place of.
    What a run that was killed has made anew takes its place first.
    """
    made_from, replaced = _made_from(stage.done(dataset))
    left, made_anew, stale, gone = fingerprints_in(anew), {}, {}, set(made_from)
    for subject in stage.subjects(dataset) if made_from else ():
        key = stage.key(subject)
        gone.discard(key)
        if _has_changed(stage, subject, made_from.get(key, "")):
            if (now := stage.fingerprint(subject)) in left:
                made_anew[made_from[key]] = now
            else:
                stale[key] = made_from[key]
    if left:
        take_over(path, anew, made_anew)
    return stale, {made_from[key] for key in gone}, replaced


def _made_from(done: Iterable[tuple[str, str]]) -> tuple[dict[str, str], set[str]]:
    """Return the fingerprint in each subject's record, and those in earlier records of the same subject."""
    made_from: dict[str, str] = {}
    replaced = set()
    for key, fingerprint in done:
        replaced.add(made_from.pop(key, ""))
        if fingerprint:
            made_from[key] = fingerprint
    return made_from, replaced - {""} - set(made_from.values())


def unanswered(calls: Iterable[Call[Any]]) -> Iterator[Outcome[Any]]:
    """Answer no call: each stays open."""
    for call in calls:
        yield Outcome(call.key, Rejected(Reason.UNASKED, "there is no reply yet"))


def cached_only(calls: Iterable[Call[Any]], model: Model, cache: ResponseCache) -> Iterator[Outcome[Any]]:
    """Yield the outcomes of calls whose replies are in the cache, as after a batch came back; others stay open."""
    for call in calls:
        if reply := cache.find(cache_key(call, model), call.tags):
            yield Outcome(call.key, read(reply, call.schema), cached=True)
        else:
            yield from unanswered([call])


def output_path(stage: Stage[Any, Any], dataset: Dataset) -> Path:
    """Return the file that a stage appends to. Raises DatasetError if its records are in a file of another format."""
    path = dataset.path / f"{stage.kind}.jsonl"
    if dataset.has(stage.kind) and not path.exists():
        raise DatasetError(
            f"{dataset.path} holds its {stage.kind} in another format than {path.name}, which {stage.name} would "
            "append to: convert the file, or move it away to write them anew"
        )
    return path


@dataclass(slots=True)
class _Pending(Generic[Subject]):
    """A subject some of whose calls are still in flight."""

    subject: Subject
    calls: list[str] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    followed: bool = False
    """Whether its answers were looked through for what is to be asked about them."""
    asked: bool = False
    """Whether an answer was not known before this run."""

    def answers(self) -> list[Any]:
        return [self.results[key] for key in self.calls]

    def rejected(self) -> Rejected | None:
        return next((result for result in self.answers() if isinstance(result, Rejected)), None)


class _Work(Generic[Subject, Answer]):
    """One run: from subjects to calls, from outcomes to lines."""

    def __init__(
        self,
        stage: Stage[Subject, Answer],
        output: Appender,
        replacing: Appender,
        rejects: SubjectRejects,
        stale: Mapping[str, str],
    ) -> None:
        """Write records to `output`, and to `replacing` those of the subjects in `stale` (`_stale`)."""
        self._stage = stage
        self._output = output
        self._replacing = replacing
        self._rejects = rejects
        self._stale = stale
        self.made_anew: dict[str, str] = {}
        """As for `take_over`."""
        self.retry_rejected = False
        """As for `run`."""
        self._further: deque[Call[Any]] = deque()
        self._pending: dict[str, _Pending[Subject]] = {}
        self._done = self._open = 0
        self._rejected: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def rounds(self, subjects: Iterable[Subject]) -> Iterator[Iterator[Call[Any]]]:
        """Yield all there is to ask: in the first round nearly all of it, then what only its last answers led to."""
        yield self._calls(subjects)
        while self._further:
            yield self._following()

    def _calls(self, subjects: Iterable[Subject]) -> Iterator[Call[Any]]:
        for subject in subjects:
            calls = self._stage.calls(subject)
            self._expect(_Pending(subject), calls)
            if not calls:
                self.finish(subject, self._stage.made(subject, ()))
            yield from calls
            # Before other subjects, so that few are half done at any time.
            yield from self._following()

    def _following(self) -> Iterator[Call[Any]]:
        while self._further:
            yield self._further.popleft()

    def _expect(self, pending: _Pending[Subject], calls: Sequence[Call[Any]]) -> None:
        pending.calls += [call.key for call in calls]
        self._pending.update((call.key, pending) for call in calls)

    def take(self, outcome: Outcome[Any]) -> None:
        pending = self._pending.pop(outcome.key)
        pending.results[outcome.key] = outcome.result
        pending.asked |= not outcome.cached
        if len(pending.results) < len(pending.calls):
            return
        if rejected := pending.rejected():
            self._without_answer(pending.subject, rejected)
        elif pending.followed or not self._followed(pending):
            made = self._stage.made(pending.subject, pending.answers())
            if self.retry_rejected and made.refused and not pending.asked:
                self._ask_anew(pending.subject)
            else:
                self.finish(pending.subject, made)

    def _ask_anew(self, subject: Subject) -> None:
        calls = [replace(call, anew=True) for call in self._stage.calls(subject)]
        self._expect(_Pending(subject), calls)
        self._further.extend(calls)

    def _followed(self, pending: _Pending[Subject]) -> bool:
        """Line up what is to be asked about the answers; return whether there is anything."""
        pending.followed = True
        further = self._stage.further(pending.subject, pending.answers())
        self._expect(pending, further)
        self._further.extend(further)
        return bool(further)

    def _without_answer(self, subject: Subject, rejected: Rejected) -> None:
        if rejected.reason is Reason.UNASKED:
            self._open += 1
        else:
            self._finish(subject, Made(None, (Problem(rejected.reason, rejected.detail),)))

    def finish(self, subject: Subject, made: Made) -> None:
        """Write what was made of a subject; if that is nothing, what is there of it goes."""
        if made.record is None and (stale := self._stale.get(self._stage.key(subject))):
            self.made_anew[stale] = ""
        self._finish(subject, made)

    def _finish(self, subject: Subject, made: Made) -> None:
        key = self._stage.key(subject)
        # Before the record: where a run is killed in between, the next one visits the subject again.
        self._rejects.visited(key, [str(problem) for problem in made.problems])
        written = self._written(subject, made)
        if written is not made:
            self._rejects.visited(key, [str(problem) for problem in written.problems])
        self._counts.update(written.counts)
        if written.record:
            self._done += 1
            self._left_out.update(problem.reason for problem in written.problems)
        elif written.problems:
            self._rejected[written.problems[0].reason] += 1

    def _written(self, subject: Subject, made: Made) -> Made:
        if made.record is None:
            return made
        stale = self._stale.get(self._stage.key(subject))
        try:
            (self._replacing if stale else self._output).append(json_line(made.record).encode())
        except OSError as error:
            return Made(None, (Problem(Reason.UNSAVED, f"the record could not be written: {error.strerror}"),))
        if stale:
            self.made_anew[stale] = self._stage.fingerprint(subject)
        return made

    def report(self, path: Path, before: int, gone: int, stopped: LlmError | None) -> StageReport:
        in_flight = len({id(pending) for pending in self._pending.values()})
        return StageReport(
            self._stage.name,
            path,
            before,
            len(self._stale),
            gone,
            self._done,
            self._open + in_flight,
            self._rejected,
            self._left_out,
            self._counts,
            stopped,
        )
