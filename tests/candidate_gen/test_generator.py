import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.generator import Candidates, Source


@given(st.data())
def test_best_is_what_a_full_sort_finds(data: st.DataObject) -> None:
    # Few distinct scores, so that many are equal.
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=1, max_size=20)), dtype=np.float32)
    banned = data.draw(st.lists(st.integers(0, len(scores) - 1), max_size=30))
    n = data.draw(st.integers(1, 25))
    item_ids = [f"i{position}" for position in range(len(scores))]

    best = Candidates.best(item_ids, scores, np.array(banned, dtype=np.intp), n, Source.MODEL)

    allowed = [position for position in range(len(scores)) if position not in banned]
    expected = sorted(allowed, key=lambda position: -scores[position])[:n]
    assert best.item_ids == tuple(item_ids[position] for position in expected)
    assert best.scores.tolist() == scores[expected].tolist()
    assert best.scores.dtype == np.float32
