"""Gradients of a loss over more texts than fit memory, in chunks and exact (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the vectors of the whole batch, but not the activations behind them: these are what fills
memory. So texts are embedded chunk by chunk without a graph, the loss gives each vector its gradient, and each chunk is
embedded once more with a graph to hand its gradients on to the weights. Costs one more forward pass.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

Embed = Callable[[Sequence[str]], torch.Tensor]
"""Returns vectors, shape (texts, dimension), with their graph."""


def backward(
    texts: Sequence[str], embed: Embed, loss: Callable[[torch.Tensor], torch.Tensor], chunk_texts: int, seed: int
) -> float:
    """Add to the weights' gradients those of `loss` over the vectors of `texts`, and return the loss.

    seed: of dropout. A chunk draws the same mask in both passes, else the gradients were those of another function.
    """
    chunks = list(_by_length(texts, chunk_texts))
    with torch.random.fork_rng():
        with torch.no_grad():
            parts = [_embedded(texts, chunk, embed, seed + number) for number, chunk in enumerate(chunks)]
        order = torch.tensor([place for chunk in chunks for place in chunk])
        vectors = torch.cat(parts)[torch.argsort(order)].requires_grad_()
        value = loss(vectors)
        value.backward()  # type: ignore[no-untyped-call]
        if vectors.grad is None:
            raise ValueError("the loss does not depend on the vectors")
        for number, chunk in enumerate(chunks):
            _embedded(texts, chunk, embed, seed + number).backward(vectors.grad[chunk])  # type: ignore[no-untyped-call]
    return value.item()


def _embedded(texts: Sequence[str], chunk: list[int], embed: Embed, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return embed([texts[place] for place in chunk])


def _by_length(texts: Sequence[str], chunk_texts: int) -> Iterator[list[int]]:
    """Yield the places of texts of like length, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for start in range(0, len(order), chunk_texts):
        yield order[start : start + chunk_texts]
