"""A low-rank adaptation (LoRA; Hu et al. 2021, arXiv 2106.09685) of the transformer inside an encoder."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

from offline.encoder import SentenceEncoder
from offline.errors import EncoderError


@dataclass(frozen=True, slots=True)
class Shape:
    """What is put beside the frozen weights."""

    rank: int = 16
    alpha: int = 32
    """The product of the two low-rank factors is scaled by alpha / rank."""
    dropout: float = 0.05


@dataclass(frozen=True, slots=True)
class Lora:
    """An encoder whose transformer has low-rank factors beside its frozen weights; only these learn."""

    encoder: SentenceEncoder
    adapted: PeftModel

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.adapted.named_parameters() if weight.requires_grad}

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of layer that are adapted."""
        config = self.adapted.peft_config["default"]
        found = config.target_modules if isinstance(config, LoraConfig) else None
        return tuple(sorted([found] if isinstance(found, str) else found or ()))

    def learn(self, learning: bool) -> None:
        """Switch the factors' dropout on or off. The frozen part stays as it serves, whose own dropout is off."""
        self.encoder.model.eval()
        for name, module in self.adapted.named_modules():
            if "lora_dropout" in name:
                module.train(learning)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().cpu().clone() for name, weight in self.parameters.items()}

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def space(self) -> str:
        """Return an id of the space as it is now, for vectors that are not kept: other weights, another id."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.weights().items()):
            digest.update(name.encode())
            digest.update(weight.numpy().astype("<f4").tobytes())
        return f"{self.encoder.space}+lora:{digest.hexdigest()[:12]}"

    def merge_and_save(self, path: Path, base: str) -> None:
        """Write the factors to `path`/lora, merge them into the weights, and write the model to `path`. Ends this."""
        # Its default is where the base lay on this machine.
        self.adapted.peft_config["default"].base_model_name_or_path = base
        # Left to itself peft asks the model hub whether the vocabulary has changed; nothing here changes it.
        self.adapted.save_pretrained(str(path / "lora"), save_embedding_layers=False)
        (path / "lora" / "README.md").unlink(missing_ok=True)
        self.adapted.merge_and_unload()
        self.encoder.model.save(str(path), create_model_card=False)


def adapt(encoder: SentenceEncoder, shape: Shape, seed: int) -> Lora:
    """Put low-rank factors into the encoder's transformer: its model is changed in place, its vectors are not yet.

    Which layers are adapted is what peft knows to work for the architecture, or every linear one of another.
    Raises EncoderError if the model has no transformer of the usual kind.
    """
    transformer: Any = getattr(encoder.model[0], "auto_model", None)
    if transformer is None:
        raise EncoderError(f"the encoder of space {encoder.space} has no transformer to adapt: choose another --base")
    known = transformer.config.model_type in KNOWN
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=None if known else "all-linear",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers by a name that is being renamed; nobody who trains can do anything about it.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(transformer, config)
    return Lora(encoder, adapted)
