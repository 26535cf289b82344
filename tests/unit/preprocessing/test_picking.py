"""preprocessing/picking.py: which places are picked."""

from __future__ import annotations

from preprocessing.picking import evenly, evenly_on_turn


def test_picks_are_even_with_both_ends() -> None:
    assert evenly(11, 3).tolist() == [0, 5, 10]
    assert evenly(10, 4).tolist() == [0, 3, 6, 9]
    assert evenly(3, 9).tolist() == [0, 1, 2]
    assert evenly(7, 1).tolist() == [0]
    assert evenly(0, 4).tolist() == []


def test_picks_on_a_turn_are_even_and_not_both_ends() -> None:
    assert evenly_on_turn(12, 2) == [0, 6]
    assert evenly_on_turn(10, 3) == [0, 3, 6]
    assert evenly_on_turn(2, 5) == [0, 1]
    assert evenly_on_turn(1, 5) == [0]
