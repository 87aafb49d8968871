from collections.abc import Sequence

import pytest
import torch
from torch import nn

from offline.cached_gradients import backward

TEXTS = ["a whale", "b", "a very long voyage", "storm", "of love and war", "sea", "the end"]


class Letters(nn.Module):
    """Embeds a text by its letters, through dropout; notes how many texts each call had."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letters, self.out, self.dropout = nn.Embedding(128, 6), nn.Linear(6, 5), nn.Dropout(dropout)
        self.with_graph: list[int] = []

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.with_graph.append(len(texts))
        means = [self.letters(torch.tensor([*text.encode()])).mean(0) for text in texts]
        return self.out(self.dropout(torch.stack(means)))  # type: ignore[no-any-return]


def contrast(vectors: torch.Tensor) -> torch.Tensor:
    """A loss in which every vector meets every other, in their order."""
    return nn.functional.cross_entropy(vectors @ vectors.T, torch.arange(len(vectors)).roll(1))


def gradients(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def test_chunks_give_the_gradients_of_the_whole() -> None:
    whole = Letters(0.0)
    loss = contrast(whole(TEXTS))
    loss.backward()  # type: ignore[no-untyped-call]
    for chunk in (1, 2, 3, 100):
        model = Letters(0.0)
        assert backward(TEXTS, model, contrast, chunk, seed=0) == pytest.approx(loss.item(), abs=1e-6)
        assert gradients(model) == pytest.approx(gradients(whole), abs=1e-6)
        assert max(model.with_graph) <= chunk


def test_dropout_draws_the_same_in_both_passes() -> None:
    """Else the gradients were of a function that nobody evaluated. By hand: one graph of the very same chunks."""
    seed, chunk = 7, 3
    model = Letters(0.5)
    loss = backward(TEXTS, model, contrast, chunk, seed)
    whole = Letters(0.5)
    order = sorted(range(len(TEXTS)), key=lambda place: len(TEXTS[place]))
    parts = []
    for number, start in enumerate(range(0, len(order), chunk)):
        torch.manual_seed(seed + number)
        parts.append(whole([TEXTS[place] for place in order[start : start + chunk]]))
    value = contrast(torch.cat(parts)[torch.argsort(torch.tensor(order))])
    value.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(value.item(), abs=1e-6)
    assert gradients(model) == pytest.approx(gradients(whole), abs=1e-6)
    other = Letters(0.5)
    assert backward(TEXTS, other, contrast, chunk, seed + 100) != pytest.approx(loss, abs=1e-6)


def test_whoever_else_draws_random_numbers_is_not_disturbed() -> None:
    model = Letters(0.5)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    backward(TEXTS, model, contrast, 2, seed=0)
    assert torch.rand(1) == expected
