"""A trained encoder as a variant of an evaluation: trained anew within each fold, alone or with an adapter over it."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from offline import adapter_variant
from offline.adapter_variant import Tune
from offline.dataset import Dataset
from offline.encoder import load_encoder
from offline.evaluate import Choice, Materials, Variant, materials_of
from offline.histories import aspect_texts
from offline.publish import documents
from offline.records import Alignment
from offline.splits import Fold
from offline.train_adapter import GRID, Settings
from offline.train_encoder import EncoderSettings, train_encoder
from offline.training_data import training_data
from offline.training_texts import texts_of
from offline.vector_cache import CachedEncoder

NAME = "lora"

Within = Callable[[Fold], tuple[Materials, frozenset[str]]]
"""Returns the materials of an encoder trained on a fold's training interactions, and the users who only stopped it."""


def trained_within(
    dataset: Dataset,
    materials: Materials,
    base: str,
    alignments: Sequence[Alignment],
    settings: EncoderSettings,
    seed: int,
) -> Within:
    """Train on each fold's training interactions, and on no alignment that knows of others.

    materials: of the dataset, by the encoder `base`. One fold's training serves all variants that are made of it.
    """
    found = documents(dataset)
    said = aspect_texts(dataset, found)

    @lru_cache(maxsize=1)
    def within(fold: Fold) -> tuple[Materials, frozenset[str]]:
        data = training_data(materials, fold.train, alignments)
        texts = texts_of(data, materials.index, found, said)
        with TemporaryDirectory() as folder:
            # Training ends with embedding the catalogue, which takes as long as much of the training.
            trained = train_encoder(load_encoder(base), data, texts, settings, seed, vectors=Path(folder))
            its = materials_of(dataset, CachedEncoder(trained.encoder, Path(folder)), materials.feedback)
            return its, trained.held_out

    return within


def alone(within: Within, tune: Tune) -> Variant:
    """Judge the encoder alone.

    The weight is chosen by the queries of users that the encoder was not trained on: to others it seems better than it
    is, and to train one for each inner fold too would take as many times as long.
    """

    def prepare(fold: Fold, start: Choice) -> tuple[Materials, Choice]:
        its, held_out = within(fold)
        return its, tune(lambda _: its, fold, start, held_out)

    return Variant(NAME, prepare)


def with_adapter(
    within: Within, alignments: Sequence[Alignment], tune: Tune, seed: int, grid: Sequence[Settings] = GRID
) -> Variant:
    """Judge the encoder with an adapter over it, trained on the same fold; the weight is chosen as for it alone."""

    def prepare(fold: Fold, start: Choice) -> tuple[Materials, Choice]:
        its, held_out = within(fold)
        return adapter_variant.train_over(its, fold, start, alignments, tune, seed, grid=grid, users=held_out)

    return Variant(f"{NAME}+{adapter_variant.NAME}", prepare)
