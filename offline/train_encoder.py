"""Train an encoder on interactions: a user's profile must find the personas of the user's other items (eq. 6-9).

Every step embeds each text that it needs once, averages each profile with decay, and compares it with the personas of
all the batch's targets. Only low-rank factors learn (`offline.lora`); which epoch's are kept is said by users that were
held out. What is found is not trained again on everybody: that would take as long once more, and users who were not
trained on are what a fusion weight can be chosen by.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offline.cached_gradients import backward
from offline.encoder import SentenceEncoder
from offline.infonce import Contest, contest_of, info_nce
from offline.lora import Lora, Shape, adapt
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
from offline.training_data import Batch, Deal, Rows, TrainingData, batch_of
from offline.training_states import StateFile
from offline.training_texts import Texts
from offline.vector_cache import CachedEncoder

# Of a user in one step. More share a profile's cost between them, but are no negatives of each other.
TARGETS_A_USER = 4
# Seeds of a step's chunks lie next to each other: apart from those of the next step by more than there are chunks.
SEEDS_A_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What a training is made with. The defaults were tried with one small encoder (22 M weights) and no other."""

    shape: Shape = field(default_factory=Shape)
    batch: int = 72
    """Pairs of profile and persona in a step at most: the more, the more negatives each has. A user gives up to four,
    so where most have few items there are fewer."""
    steps: int = 40
    """Of an epoch at most. Each epoch ends with embedding the whole catalogue, which costs as much as some ten steps
    where items have five personas; a larger data set is gone through over several epochs."""
    epochs: int = 10
    """At most; training stops earlier where held-out users gain nothing."""
    patience: int = 2
    """Epochs without gain before it stops."""
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    temperature: float = 0.05
    history_length: int = 20
    """Events of a profile at most."""
    gamma: float = 0.9
    """Decay of the profile (eq. 7)."""
    chunk_texts: int = 32
    """Texts whose activations are in memory at a time. Changes no result but by rounding, and dropout's draws."""


@dataclass(frozen=True, slots=True)
class TrainedEncoder:
    """An encoder with the factors of its best epoch, and what led to it."""

    lora: Lora
    points: tuple[Point, ...]
    settings: EncoderSettings
    seed: int
    held_out: frozenset[str]
    """Users who said when to stop, and were not trained on."""

    @property
    def best(self) -> Point:
        return best_of(self.points)

    @property
    def encoder(self) -> SentenceEncoder:
        """The encoder as trained; its space is named for its weights, not yet for a directory."""
        return _as_it_is(self.lora)


def _as_it_is(lora: Lora) -> SentenceEncoder:
    return replace(lora.encoder, space=lora.space())


def train_encoder(
    encoder: SentenceEncoder,
    data: TrainingData,
    texts: Texts,
    settings: EncoderSettings = EncoderSettings(),
    seed: int = 0,
    *,
    state: StateFile | None = None,
    vectors: Path | None = None,
    report: Callable[[Point], None] = lambda _: None,
) -> TrainedEncoder:
    """Train until held-out users gain nothing, and return the best epoch's encoder. Its model is changed in place.

    One seed gives one result, on one machine with one number of threads. data: made with this encoder.
    state: the file that the training goes on from when it was killed, from the end of its last epoch.
    vectors: a folder for those of the catalogue, of every epoch, which whoever uses the encoder finds by its space
    (`offline.vector_cache`) instead of embedding everything once more.
    Raises DatasetError if there are too few users to hold some out, EncoderError of a model that cannot be adapted.
    """
    require_users(data, "an encoder")
    fit = EncoderFit(encoder, data, texts, settings, seed, vectors)
    run(fit, state, report)
    fit.lora.put(fit.best_weights)
    fit.lora.learn(False)
    held_out = frozenset(user.user_id for user in fit.held_out)
    return TrainedEncoder(fit.lora, tuple(fit.points), settings, seed, held_out)


class EncoderFit:
    """One training in progress."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        data: TrainingData,
        texts: Texts,
        settings: EncoderSettings,
        seed: int,
        vectors: Path | None = None,
    ) -> None:
        self.data, self.texts, self.settings, self.seed, self.vectors = data, texts, settings, seed, vectors
        self.held_out, self.users = split(data.users, seed)
        self.lora = adapt(encoder, settings.shape, seed)
        self.optimiser = torch.optim.AdamW(
            self.lora.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        # The catalogue as the encoder has it now: the frozen vectors to begin with, since no factor changes them yet.
        self.personas, self.events = torch.from_numpy(data.persona_vectors), torch.from_numpy(data.event_vectors)
        deal = Deal(0.5, settings.history_length, settings.gamma, data.items)
        self.exams = exams_of(data, self.held_out, deal, seed)
        self.points = [Point(0, float("nan"), self._ndcg())]
        self.best_weights = self.lora.weights()

    @property
    def key(self) -> str:
        return f"{self.data.fingerprint} {self.settings} {self.seed}"

    @property
    def finished(self) -> bool:
        return finished(self.points, self.settings.epochs, self.settings.patience)

    def advance(self) -> None:
        """Train an epoch, and see how held-out users fare."""
        epoch = self.points[-1].epoch + 1
        random = np.random.default_rng((self.seed, epoch))
        self.lora.learn(True)
        losses = [self.step(batch, random) for batch in self._batches(random)]
        self.lora.learn(False)
        self._embed_catalogue()
        self.points.append(Point(epoch, float(np.mean(losses)), self._ndcg()))
        if best_of(self.points).epoch == epoch:
            self.best_weights = self.lora.weights()

    def state(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "weights": self.lora.weights(),
            "best": self.best_weights,
            "optimiser": self.optimiser.state_dict(),
            "points": [asdict(point) for point in self.points],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.lora.put(state["weights"])
        self.best_weights = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.points = [Point(**point) for point in state["points"]]
        if not self.finished:
            self._embed_catalogue()

    def step(self, batch: Batch, random: np.random.Generator) -> float:
        """Learn from a batch; returns its loss, mean over its queries, nats."""
        contest = contest_of(self.data, batch, self._positives(batch))
        wanted = [self.texts.events[row] for row in batch.vectors] + [self.texts.personas[r] for r in contest.personas]
        distinct = list(dict.fromkeys(wanted))
        place = {text: number for number, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in wanted])
        self.optimiser.zero_grad()
        loss = backward(
            distinct,
            self.lora.encoder.differentiable,
            lambda vectors: self._loss(vectors[rows.to(vectors.device)], batch, contest),
            self.settings.chunk_texts,
            int(random.integers(1 << 40)) * SEEDS_A_STEP,
        )
        self.optimiser.step()
        return loss

    def _loss(self, vectors: torch.Tensor, batch: Batch, contest: Contest) -> torch.Tensor:
        events, personas = vectors[: len(batch.vectors)], vectors[len(batch.vectors) :]
        return info_nce(profiles_of(batch, events), personas, contest, self.settings.temperature)

    def _positives(self, batch: Batch) -> Rows:
        """Return the persona of each query: the judged one, or the best of the target by the last epoch's vectors."""
        rows, owners = contested(self.data, batch)
        profiles = profiles_of(batch, self.events[torch.from_numpy(batch.vectors)])
        similarities = (profiles @ self.personas[rows].T)[torch.from_numpy(batch.profiles)]
        others = owners[None, :] != torch.from_numpy(batch.targets)[:, None]
        best = rows[similarities.masked_fill(others, -torch.inf).argmax(1)].numpy()
        return np.where(batch.judged >= 0, batch.judged, best)

    def _batches(self, random: np.random.Generator) -> Iterator[Batch]:
        order = random.permutation(len(self.users))
        settings, users = self.settings, max(self.settings.batch // TARGETS_A_USER, 2)
        for start in range(0, len(order), users)[: settings.steps]:
            deal = Deal(random.uniform(*TARGETS), settings.history_length, settings.gamma, 0, TARGETS_A_USER)
            yield batch_of(self.data, [self.users[place] for place in order[start : start + users]], deal, random)

    def _embed_catalogue(self) -> None:
        encoder = _as_it_is(self.lora)
        encode = (CachedEncoder(encoder, self.vectors) if self.vectors else encoder).encode
        self.personas = torch.from_numpy(encode(self.texts.personas))
        self.events = torch.from_numpy(encode(self.texts.events))

    def _ndcg(self) -> float:
        return ndcg_of(((self._best(exam), exam) for exam in self.exams), self.data.items)

    def _best(self, exam: Batch) -> torch.Tensor:
        rows, owners = contested(self.data, exam)
        similarities = profiles_of(exam, self.events[torch.from_numpy(exam.vectors)]) @ self.personas[rows].T
        return best_by_item(similarities, owners, len(exam.items))
