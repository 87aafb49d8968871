"""Maximal marginal relevance: the next place goes to the item that is good and unlike those above it.

Carbonell and Goldstein, SIGIR 1998. Likeness is that of the personas that won: two items that would be recommended
for the same reason resemble each other, whatever else they are.
"""

import numpy as np
from numpy.typing import NDArray

from reranker.records import Vector

# Nobody looks for variety beyond: each place costs a pass over all candidates, about 15 us for 100 of them.
DEEPEST = 100


def spread(
    order: NDArray[np.int64], scores: NDArray[np.float32], vectors: Vector, diversity: float, depth: int
) -> NDArray[np.int64]:
    """Return the order with its first `depth` places (0 or more than DEEPEST: DEEPEST) dealt by marginal relevance.

    order: candidate numbers, best first, shape (n,); scores: standardised, shape (n,); vectors: unit length or 0, shape
    (n, dimension); diversity: 0 to below 1, the share that likeness has against the score.
    """
    left = order.copy()
    nearest = np.full(len(scores), -1.0, np.float32)
    dealt: list[int] = []
    for _ in range(min(len(order), depth or DEEPEST, DEEPEST)):
        marginal = (1 - diversity) * scores[left] - diversity * nearest[left]
        # Of equals the first: the order before decides.
        place = int(marginal.argmax())
        chosen = int(left[place])
        dealt.append(chosen)
        left = np.delete(left, place)
        nearest = np.maximum(nearest, vectors @ vectors[chosen])
    return np.concatenate([np.array(dealt, np.int64), left])
