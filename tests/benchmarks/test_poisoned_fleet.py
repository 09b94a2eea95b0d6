"""Ten devices learn digits, two of them poison: who is turned away, why, and what is left of the accuracy."""

from __future__ import annotations

import re

import pytest

from benchmarks.poisoned_fleet import Run, scene
from coordinator.compiler.zoo import ZOO
from coordinator.demo.data import handwritten_digits
from coordinator.training.recipe import load

UPDATES = 120


@pytest.fixture(scope="module")
def ten():
    return scene(ZOO["digits"], handwritten_digits(), 10, 0.2, seed=1)


@pytest.fixture(scope="module")
def clean(ten):
    return Run(ten, load("fedbuff-guarded")).play(UPDATES)


def test_of_an_honest_fleet_nobody_is_turned_away(clean):
    assert (clean.quarantined, clean.flagged) == ({}, {})
    assert clean.refused == 10  # by which admission learnt
    assert clean.accuracy > 0.85


@pytest.mark.parametrize("attack", ["sign_flip", "hundredfold"])
def test_poisoners_are_quarantined_with_a_sentence_and_do_no_harm(ten, clean, attack):
    outcome = Run(ten, load("fedbuff-guarded"), attack).play(UPDATES)
    assert set(outcome.quarantined) == ten.poisoners
    for sentence in outcome.quarantined.values():
        assert re.search(r"its difference .*\d.* is the limit \(strike \d(\.5)? of 3\)", sentence)
    assert outcome.accuracy > clean.accuracy - 0.05  # with a fifth of the data gone


def test_wrong_labels_are_reported(ten):
    flagged = Run(ten, load("fedbuff-guarded"), "label_flip").play(UPDATES).flagged
    assert set(flagged) == ten.poisoners
    assert all("it seems to learn wrong labels: cosine -" in sentence for sentence in flagged.values())
