"""Our Gaussian process: its numbers against scikit-learn's and SciPy's, and what it proposes."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import check_grad
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from vit_search.config import search_file
from vit_search.config.value_sources import AtQuantiles, quantile
from vit_search.search.proposals import gaussian
from vit_search.search.proposals.samplers import scalar

HEAD = "name: t\ndata: {name: digits}\ntrials: 20\nepochs: 3\n"
SPACE = search_file.parse(
    HEAD
    + """
model: {dim: {choice: [16, 24, 32]}, heads: {choice: [2, 3, 5]}, depth: {int: [1, 40]}, norm: {choice: [pre, post]},
  dropout: {float: [0.1, 0.5], step: 0.1, when: "depth >= 3"}, mlp_dim: {int: [16, 256], log: true}, qkv_bias: {choice: [true, false]}}
training: {lr: {float: [1e-4, 1e-2], log: true}, weight_decay: {float: [0, 0.5]}}
constraints: ["params <= 200000"]
"""
).space
RNG = np.random.default_rng(0)
POINTS, SCORES = RNG.random((12, 3)), RNG.normal(size=12)
LOGS = np.array([-0.7, 0.1, 0.6, 0.3, -3.0])


def process():
    return gaussian.conditioned(LOGS, POINTS, SCORES)


def test_mean_and_deviation_are_those_of_scikit_learn():
    kernel = ConstantKernel(math.exp(LOGS[3])) * Matern(np.exp(LOGS[:3]), nu=2.5)
    other = GaussianProcessRegressor(kernel, alpha=math.exp(LOGS[4]) + 1e-6, optimizer=None).fit(POINTS, SCORES)
    there = RNG.random((7, 3))
    assert np.allclose(process().at(there), other.predict(there, return_std=True), atol=1e-7)


def test_the_loss_is_the_posterior_and_its_gradient_is_right():
    means, deviations = np.full(5, -0.5), np.full(5, 0.7)
    told = (gaussian.squared_differences(POINTS, POINTS), SCORES, means, deviations)
    kernel = ConstantKernel(math.exp(LOGS[3])) * Matern(np.exp(LOGS[:3]), nu=2.5)
    other = GaussianProcessRegressor(kernel, alpha=math.exp(LOGS[4]) + 1e-6, optimizer=None).fit(POINTS, SCORES)
    likelihood = other.log_marginal_likelihood(other.kernel_.theta) + 6 * math.log(2 * math.pi)
    prior = -0.5 * (((LOGS - means) / deviations) ** 2).sum()
    assert gaussian.negative_log_posterior(LOGS, *told)[0] == pytest.approx(-likelihood - prior)
    for logs in (LOGS, LOGS - 0.5, LOGS + 0.4):
        value, gradient = (lambda x, i=i: gaussian.negative_log_posterior(x, *told)[i] for i in (0, 1))
        assert check_grad(value, gradient, logs) < 1e-4


@pytest.mark.parametrize(("mean", "deviation", "best"), [(0.0, 1.0, 0.0), (2.0, 0.5, 0.0), (-1.0, 0.7, 1.0), (0.0, 0.1, 0.7)])
def test_the_improvement_is_the_integral(mean, deviation, best):
    low, high = max(best, mean - 12 * deviation), mean + 12 * deviation
    integral = quad(lambda y: (y - best) * norm.pdf(y, mean, deviation), low, max(high, best + deviation), epsabs=0, epsrel=1e-9)[0]
    assert gaussian.log_improvement(np.array([mean]), np.array([deviation]), best)[0] == pytest.approx(math.log(integral), abs=1e-5)


def test_the_logarithm_of_the_improvement_rises_with_the_mean_wherever_it_is():
    means = -np.logspace(6, -3, 400)
    log = gaussian.log_improvement(means, np.ones(400), 0.0)
    assert np.isfinite(log).all()
    assert (np.diff(log) > 0).all()


def test_what_is_believed_of_open_trials_changes_no_mean_and_narrows_the_deviation():
    more = RNG.random((2, 3))
    after = gaussian.believing(process(), SCORES, more)
    there = RNG.random((9, 3))
    assert np.allclose(after.at(there)[0], process().at(there)[0], atol=1e-6)
    assert (after.at(more)[1] < process().at(more)[1]).all()


def test_how_bad_a_bad_score_is_tells_nothing():
    scores = np.array([0.9, 0.8, 0.85, 0.7, 0.1])
    worse = np.array([0.9, 0.8, 0.85, 0.7, -1e6])
    assert np.allclose(gaussian.standardised(scores), gaussian.standardised(worse), atol=1e-6)
    assert (gaussian.standardised(np.full(9, 0.5)) == 0).all()


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=9, max_size=9))
def test_a_quantile_leads_to_its_value_and_back(places):
    for place, (name, parameter) in zip(places, SPACE.searched.items(), strict=True):
        value = parameter.ask(AtQuantiles({name: place}), name)
        assert parameter.ask(AtQuantiles({name: quantile(parameter, value)}), name) == pytest.approx(value)


def seen(count, seed=0):
    rng = random.Random(seed)
    drawn = (SPACE.draw(rng) for _ in range(100 * count))
    return [params for params in drawn if SPACE.problem(params) is None][:count]


def worth(params):
    return -abs(math.log(params["lr"] / 1e-3)) - (params["norm"] == "post") - params["depth"] / 40


def test_proposals_can_be_built_are_new_and_are_better_than_chance():
    trials = seen(20)
    asked = []

    def suits(params):
        asked.append(params)
        return SPACE.problem(params) is None and params not in trials

    for seed in range(12):
        made = gaussian.propose(SPACE, trials, [worth(params) for params in trials], trials[:3], random.Random(seed), suits)
        assert SPACE.problem(made) is None
        assert ("dropout" in made) == (made["depth"] >= 3)
        trials.append(made)
    assert sum(map(worth, trials[20:])) / 12 > sorted(map(worth, trials[:20]))[-4]
    again = [
        gaussian.propose(SPACE, trials, [worth(params) for params in trials], [], random.Random(1), lambda params: True) for _ in range(2)
    ]
    assert again[0] == again[1]
    assert gaussian.propose(SPACE, trials, [worth(params) for params in trials], [], random.Random(1), lambda params: False) is None


def test_a_score_that_never_changes_still_lets_it_propose():
    trials = seen(30)
    for scores in ([0.5] * 30, [math.nextafter(0.5, 1)] + [0.5] * 29, [-1e12] + [0.5] * 29):
        made = gaussian.propose(SPACE, trials, scores, trials[:2], random.Random(0), lambda params: params not in trials)
        assert made not in trials


def test_a_value_that_a_person_wrote_is_known_among_the_steps():
    trials = seen(12)
    deep = next(params for params in trials if params["depth"] >= 3)
    written = [{**deep, "dropout": value} for value in (0.2, 0.3, 0.4)]  # 0.1 + 2 * 0.1 is not 0.3
    made = gaussian.propose(SPACE, trials + written, list(range(15)), written, random.Random(0), lambda params: True)
    assert SPACE.problem(made) is None


def test_given_values_stay():
    trials = seen(10)
    given = {"norm": "post", "dim": 24}
    made = gaussian.propose(SPACE, trials, [worth(params) for params in trials], [], random.Random(0), lambda params: True, given)
    assert {name: made[name] for name in given} == given


def test_several_objectives_are_weighed_anew_and_what_beats_another_in_all_scores_more():
    values = [[0.9, 100.0], [0.8, 50.0], [0.7, 60.0]]
    scores = [scalar(values, ["max", "min"], random.Random(seed)) for seed in range(30)]
    assert all(one[1] > one[2] for one in scores)
    assert len({one[0] > one[1] for one in scores}) == 2
    assert scalar([[0.9], [0.8]], ["min"], random.Random(0)) == [-0.9, -0.8]
