"""Cells of a cache that sequences share, counted as the nodes of the trees that their tokens make."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.engines.cells import Cells, shared_prefix


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_cells_are_counted_once_whoever_shares_them(data: st.DataObject) -> None:
    """Against a model: each cell an object of its own, a shared beginning the same objects."""
    cells, held, made = Cells(200), dict[int, list[object]](), 0
    for number in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(("hold", "shorten", "extend", "remove"))) if held else "hold"
        if action == "hold":
            source = data.draw(st.sampled_from([None, *held]))
            shared = data.draw(st.integers(0, len(held[source]))) if source is not None else 0
            new = data.draw(st.integers(0, 10))
            held[number] = [*(held[source][:shared] if source is not None else ()), *(object() for _ in range(new))]
            cells.hold(number, shared + new, source=source, shared=shared)
            made += 1
        else:
            which = data.draw(st.sampled_from(sorted(held)))
            if action == "shorten":
                length = data.draw(st.integers(0, len(held[which])))
                del held[which][length:]
                cells.shorten(which, length)
            elif action == "extend":
                held[which] += [object() for _ in range(data.draw(st.integers(0, 5)))]
                cells.extend(which, len(held[which]))
            else:
                cells.remove(which)
                del held[which]
        assert cells.free == 200 - len({id(cell) for row in held.values() for cell in row})
        some = [each for each in held if each % 2]
        rest = {id(cell) for each, row in held.items() if each not in some for cell in row}
        assert cells.only(some) == len({id(cell) for each in some for cell in held[each]} - rest)


@given(*[st.lists(st.integers(0, 2), max_size=6)] * 2)
def test_a_shared_prefix_is_as_long_as_both_agree(first: list[int], second: list[int]) -> None:
    length = shared_prefix(np.array(first, np.int32), np.array(second, np.int32))
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or length == min(len(first), len(second))
