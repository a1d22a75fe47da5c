"""Exchanges: what is taken is taken, what is not stays, and donors are always the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from chestxray.images.shifts import (
    EXCHANGES,
    OTHER,
    OWN,
    Nuisance,
    body_of,
    corners,
    donors_of,
    exchanged,
    framing,
    grey_levels,
    low_frequencies,
    ring,
)

NAMES = [exchange.name for exchange in EXCHANGES]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=NAMES)
def test_an_exchange_keeps_the_shape_and_leaves_its_film_and_donor_alone(
    exchange: Nuisance, planes: npt.NDArray[np.uint8]
) -> None:
    before = planes.copy()
    found = exchanged(planes, planes[::-1], exchange)
    assert np.array_equal(planes, before)
    assert (found.shape, found.dtype) == (planes.shape, np.uint8)
    assert np.array_equal(exchanged(planes, planes[::-1], exchange, np.zeros(4, bool)), planes)


def test_at_least_two_kinds_are_never_trained_on() -> None:
    assert sum(not exchange.trained for exchange in EXCHANGES) >= 2


def test_matched_levels_are_the_donors_and_keep_the_order(planes: npt.NDArray[np.uint8]) -> None:
    film, donor = planes[0], (planes[1] // 2 + 40).astype(np.uint8)
    found = grey_levels(film, donor)
    assert np.abs(np.quantile(found, [0.1, 0.5, 0.9]) - np.quantile(donor, [0.1, 0.5, 0.9])).max() <= 4
    order = np.argsort(film.ravel(), kind="stable")
    assert (np.diff(found.ravel()[order].astype(int)) >= 0).all()


def test_a_ring_and_corners_come_from_the_donor_and_the_middle_does_not(planes: npt.NDArray[np.uint8]) -> None:
    film, donor = np.full_like(planes[0], 100), np.full_like(planes[0], 200)
    for take in (ring, corners):
        found = take(film, donor)
        assert found[0, 0] == found[-1, -1] == 200
        assert (found[found.shape[0] // 2, 30:-30] == 100).all()
    assert corners(film, donor)[0, film.shape[1] // 2] == 100


def test_low_frequencies_take_the_brightness_and_leave_the_detail(planes: npt.NDArray[np.uint8]) -> None:
    film, donor = planes[0], (planes[1] // 3).astype(np.uint8)
    found = low_frequencies(film, donor)
    assert abs(float(found.mean()) - float(donor.mean())) < 15
    detail = [np.diff(each.astype(float), axis=1).ravel() for each in (film, found)]
    assert np.corrcoef(*detail)[0, 1] > 0.8


def test_framing_gives_the_body_the_donors_margins() -> None:
    film, donor = np.zeros((100, 100), np.uint8), np.zeros((100, 100), np.uint8)
    film[5:95, 5:95] = 200
    donor[15:85, 10:90] = 200
    found = body_of(framing(film, donor))
    assert np.abs(np.array(found) - np.array(body_of(donor))).max() <= 2


def test_donors_are_chosen_by_hash_and_are_of_the_class_asked_for_and_of_another_patient() -> None:
    films = [(f"{index:064x}", f"p{index // 2}") for index in range(40)]
    labels = np.arange(40) // 2 % 2
    for of, same in ((OWN, True), (OTHER, False)):
        donors = donors_of(films, labels, films, labels, EXCHANGES[0], of)
        assert (donors >= 0).all()
        assert ((labels[donors] == labels) == same).all()
        assert all(films[donor][1] != films[index][1] for index, donor in enumerate(donors))
        backwards = donors_of(films[::-1], labels[::-1], films, labels, EXCHANGES[0], of)[::-1]
        assert np.array_equal(donors, backwards)


def test_a_film_that_nobody_can_give_to_has_no_donor() -> None:
    films, labels = [("aa", "one"), ("bb", "one")], [0, 0]
    assert donors_of(films, labels, films, labels, EXCHANGES[0], OWN).tolist() == [-1, -1]
