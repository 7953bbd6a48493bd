"""The gate between a candidate and production: its figures by hand, and how seldom chance gets through."""

import numpy as np
import pytest

from vit_search.promotion.mcnemar import ALPHA, MOST_READINGS, AccuracyComparison, compare


def test_images_that_only_one_gets_right_are_counted_for_it():
    labels = np.array([0, 1, 2, 3, 4, 5])
    candidate, champion = np.array([0, 1, 2, 3, 0, 0]), np.array([0, 1, 0, 0, 4, 0])
    seen = compare(candidate == labels, champion == labels, reading=1)
    assert (seen.images, seen.wins, seen.losses) == (6, 2, 1)
    assert seen.gain == pytest.approx(1 / 6)


@pytest.mark.parametrize(("wins", "losses", "p"), [(5, 0, 1 / 32), (6, 0, 1 / 64), (2, 1, 1 / 2), (0, 0, 1.0), (1, 3, 15 / 16)])
def test_the_chance_is_that_of_a_fair_coin(wins, losses, p):
    assert AccuracyComparison(100, wins, losses, 1).p == pytest.approx(p)


def test_what_is_allowed_shrinks_with_each_reading_and_makes_alpha_in_all():
    assert [AccuracyComparison(1, 0, 0, t).alpha for t in (1, 2, 3)] == pytest.approx([ALPHA / 2, ALPHA / 6, ALPHA / 12])
    assert sum(AccuracyComparison(1, 0, 0, t).alpha for t in range(1, 100_000)) == pytest.approx(ALPHA, rel=1e-4)


@pytest.mark.parametrize(
    ("comparison", "said"),
    [
        (AccuracyComparison(100, 6, 0, 1), ""),  # p = 1/64 < 0.025
        (AccuracyComparison(100, 5, 0, 1), "chance explains its gain: +0.0500 on 100 test images (5 that it alone gets right"),  # p = 1/32
        (AccuracyComparison(100, 6, 0, 2), "chance explains its gain"),  # 0.05 / 6 is less than 1/64
        (AccuracyComparison(100, 7, 0, 2), ""),  # 1/128 = 0.0078 < 0.0083
        (AccuracyComparison(100, 3, 3, 1), "it is no better than the champion: +0.0000"),
        (AccuracyComparison(100, 2, 9, 1), "it is no better than the champion: -0.0700"),
        (AccuracyComparison(100_000, 150, 0, 1), "it is hardly better than the champion: +0.0015"),  # sure, and not worth it
        (AccuracyComparison(100, 60, 0, MOST_READINGS + 1), "has been read 21 times; after 20 it decides nothing; give new test images"),
    ],
)
def test_a_candidate_passes_where_it_is_better_beyond_chance_and_by_enough(comparison, said):
    assert (said in comparison.problem) if said else comparison.problem == ""


def test_the_interval_holds_the_gain_is_the_same_each_time_and_widens_with_readings():
    first, third = AccuracyComparison(1000, 40, 20, 1), AccuracyComparison(1000, 40, 20, 3)
    low, high = first.interval()
    assert low < first.gain < high
    assert first.interval() == (low, high)
    wider = third.interval()
    assert wider[0] < low
    assert wider[1] > high


def test_a_gain_of_the_stated_size_is_found_four_times_in_five():
    """Models that differ on 6 % of 10,000 images, and one of them better by what `detectable` says."""
    rng = np.random.default_rng(1)
    gain = AccuracyComparison(10_000, 300, 300, 1).detectable
    shares = [0.03 + gain / 2, 0.03 - gain / 2, 0.94]
    found = sum(AccuracyComparison(10_000, wins, losses, 1).passes for wins, losses, _ in rng.multinomial(10_000, shares, 400))
    assert found / 400 == pytest.approx(0.8, abs=0.08)  # four deviations of the share


def test_twenty_challengers_as_good_as_the_champion_seldom_get_one_through():
    """RELIABILITY.md's table: "higher accuracy wins" lets one of twenty through each time, and McNemar at 5 % each 64 times of 100."""
    rng = np.random.default_rng(0)
    rounds = 300
    drawn = rng.multinomial(10_000, [0.03, 0.03, 0.94], (rounds, 20))
    through = sum(any(AccuracyComparison(10_000, w, losses, t).passes for t, (w, losses, _) in enumerate(one, 1)) for one in drawn)
    naive = sum(any(w > losses for w, losses, _ in one) for one in drawn)
    assert naive == rounds
    assert through / rounds <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / rounds) ** 0.5
