"""Train an adapter on interactions: every user's history must find the user's other items among the whole catalogue.

Each epoch deals every user's items anew into a history and targets, so histories are of all lengths. The loss is a
softmax over the best persona of each item (eq. 10), where the user's own items compete with none; the positive is the
persona that was judged to explain the interaction (eq. 5, 9) or else the best one. Settings and the number of epochs
are chosen by users that the trial did not train on; the adapter is then trained on all users with that choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from offline.adapter import Adapter, Head
from offline.training import (
    TARGETS,
    Point,
    best_by_item,
    best_of,
    contested,
    exams_of,
    finished,
    ndcg_of,
    profiles_of,
    require_users,
    run,
    split,
)
from offline.training_data import Batch, Deal, TrainingData, UserEvents, batch_of
from offline.training_states import StateFile

# Users of one step. A step costs mostly the catalogue, an epoch takes as many steps as there are batches.
BATCH_USERS = 128
# Items of a softmax. A step's time and memory grow with them: beyond a catalogue of so many they are sampled.
COMPETITORS = 20_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What a trial is made with."""

    rank: int = 64
    temperature: float = 0.07
    """Similarities are divided by it in the softmax; the smaller, the more the nearest competitors count."""
    weight_decay: float = 0.01
    learning_rate: float = 2e-3
    epochs: int = 60
    """At most; training stops earlier where held-out users gain nothing."""
    patience: int = 10
    """Epochs without gain before a trial stops."""
    history_length: int = 20
    """Events of a profile at most."""
    gamma: float = 0.9
    """Decay of the profile (eq. 7)."""


GRID = (Settings(), Settings(temperature=0.1), Settings(rank=16, weight_decay=1.0))
"""As it is, softer, and smaller: held-out users choose. More settings cost more and differed by noise."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and how its training went."""

    settings: Settings
    points: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The epoch at which held-out users did best, the earlier of equals."""
        return best_of(self.points)


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter and what led to it."""

    adapter: Adapter
    trials: tuple[Trial, ...]
    seed: int

    @property
    def chosen(self) -> Trial:
        """The trial whose settings and epochs the adapter was trained with."""
        return max(self.trials, key=lambda trial: trial.best.ndcg)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is."""

    stage: int
    stages: int
    settings: Settings
    point: Point


Report = Callable[[Progress], None]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the order of sums depends on their number, and where cores are shared one was 3 times as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def train_adapter(
    data: TrainingData,
    grid: Sequence[Settings] = GRID,
    seed: int = 0,
    *,
    states: Callable[[str], StateFile] | None = None,
    report: Report = lambda _: None,
) -> Trained:
    """Try every setting of the grid, then train on all users with the best.

    One seed gives one result.
    states: gives the file, by name, in which a stage keeps its state; a killed training goes on from there and ends
    with the same weights. report: told every epoch.
    Raises DatasetError if there are too few users to hold some out.
    """
    require_users(data, "an adapter")
    held_out, others = split(data.users, seed)
    stages = len(grid) + 1
    trials = []
    for number, settings in enumerate(grid, start=1):
        fit = Fit(data, others, held_out, settings, seed)
        run(fit, states(f"trial-{number}") if states else None, _staged(report, number, stages, settings))
        trials.append(Trial(settings, tuple(fit.points)))
    chosen = max(trials, key=lambda trial: trial.best.ndcg)
    settings = replace(chosen.settings, epochs=chosen.best.epoch)
    final = states("final") if states else None
    adapter = train_with(data, settings, seed, state=final, report=_staged(report, stages, stages, settings))
    return Trained(adapter, tuple(trials), seed)


@_one_thread()
def train_with(
    data: TrainingData,
    settings: Settings,
    seed: int = 0,
    *,
    state: StateFile | None = None,
    report: Callable[[Point], None] = lambda _: None,
) -> Adapter:
    """Train on all users for all of the epochs."""
    fit = Fit(data, data.users, (), settings, seed)
    run(fit, state, report)
    return fit.adapter()


class Fit:
    """One training in progress."""

    def __init__(
        self,
        data: TrainingData,
        users: Sequence[UserEvents],
        held_out: Sequence[UserEvents],
        settings: Settings,
        seed: int,
    ) -> None:
        self.data, self.users, self.settings, self.seed = data, users, settings, seed
        self.personas, self.events = torch.from_numpy(data.persona_vectors), torch.from_numpy(data.event_vectors)
        self.parameters = _heads(data.persona_vectors.shape[1], settings.rank, seed)
        # Adam takes a step of about the learning rate whatever the size of the catalogue makes of the gradient.
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        deal = Deal(0.5, settings.history_length, settings.gamma, COMPETITORS)
        self.exams = exams_of(data, held_out, deal, seed)
        self.points = [Point(0, float("nan"), self._ndcg())]

    @property
    def finished(self) -> bool:
        patience = self.settings.patience if self.exams else self.settings.epochs
        return finished(self.points, self.settings.epochs, patience)

    def advance(self) -> None:
        """Train an epoch. Its randomness depends on seed and epoch alone, so that a resumed training repeats it."""
        epoch = self.points[-1].epoch + 1
        random = np.random.default_rng((self.seed, epoch))
        losses = [self._step(batch) for batch in self._batches(random)]
        self.points.append(Point(epoch, float(np.mean(losses)), self._ndcg()))

    def adapter(self) -> Adapter:
        weights = {name: parameter.detach().numpy().copy() for name, parameter in self.parameters.items()}
        return Adapter(
            base_space=self.data.space,
            personas=Head(weights["personas.down"], weights["personas.up"]),
            interactions=Head(weights["interactions.down"], weights["interactions.up"]),
        )

    def state(self) -> dict[str, Any]:
        """Return all that a resumed training needs."""
        return {
            "key": self.key,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimiser": self.optimiser.state_dict(),
            "points": [asdict(point) for point in self.points],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.points = [Point(**point) for point in state["points"]]

    @property
    def key(self) -> str:
        """What a state must have been saved with to be gone on from."""
        return f"{self.data.fingerprint} {self.settings} {self.seed} {not self.exams}"

    def similarities(self, batch: Batch) -> torch.Tensor:
        """Return each profile's similarity to every vector an item can be found by, shape (profiles, vectors)."""
        events = _mapped(self.events[torch.from_numpy(batch.vectors)], self.parameters, "interactions")
        personas = _mapped(self.personas[contested(self.data, batch)[0]], self.parameters, "personas")
        return profiles_of(batch, events) @ personas.T

    def _batches(self, random: np.random.Generator) -> Iterator[Batch]:
        order = random.permutation(len(self.users))
        settings = self.settings
        for start in range(0, len(order), BATCH_USERS):
            deal = Deal(random.uniform(*TARGETS), settings.history_length, settings.gamma, COMPETITORS)
            yield batch_of(self.data, [self.users[place] for place in order[start : start + BATCH_USERS]], deal, random)

    def _step(self, batch: Batch) -> float:
        rows, owners = contested(self.data, batch)
        similarities = self.similarities(batch) / self.settings.temperature
        loss = _loss(similarities, best_by_item(similarities, owners, len(batch.items)), rows, batch)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.item()

    @torch.no_grad()
    def _ndcg(self) -> float:
        if not self.exams:
            return float("nan")
        return ndcg_of(((self._best(exam), exam) for exam in self.exams), self.data.items)

    def _best(self, exam: Batch) -> torch.Tensor:
        return best_by_item(self.similarities(exam), contested(self.data, exam)[1], len(exam.items))


def _loss(similarities: torch.Tensor, best: torch.Tensor, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean of -log softmax of each query's positive among the items its user does not have."""
    profiles, targets = torch.from_numpy(batch.profiles), torch.from_numpy(batch.targets)
    judged = torch.from_numpy(batch.judged)
    places = torch.searchsorted(rows, judged.clamp(min=0)).clamp(max=len(rows) - 1)
    positives = torch.where(judged >= 0, similarities[profiles, places], best[profiles, targets])
    others = torch.logsumexp(best.masked_fill(torch.from_numpy(batch.seen), -torch.inf), dim=1)
    return (torch.logaddexp(others[profiles], positives) - positives).mean()


def _mapped(vectors: torch.Tensor, parameters: Mapping[str, torch.Tensor], side: str) -> torch.Tensor:
    """Map as `offline.adapter.Head` does."""
    return normalize(vectors + (vectors @ parameters[f"{side}.down"]) @ parameters[f"{side}.up"], dim=1)


def _heads(dimension: int, rank: int, seed: int) -> dict[str, torch.nn.Parameter]:
    """Start with heads that change nothing: `up` is 0, and `down` keeps lengths on average."""
    random = torch.Generator().manual_seed(seed)
    heads = {}
    for side in ("personas", "interactions"):
        down = torch.randn(dimension, rank, generator=random) / dimension**0.5
        heads[f"{side}.down"] = torch.nn.Parameter(down)
        heads[f"{side}.up"] = torch.nn.Parameter(torch.zeros(rank, dimension))
    return heads


def _staged(report: Report, stage: int, stages: int, settings: Settings) -> Callable[[Point], None]:
    return lambda point: report(Progress(stage, stages, settings, point))
