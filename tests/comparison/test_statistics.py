"""The numbers of a comparison equal closed forms, scipy and worked examples from the literature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leyden import statistics
from leyden.config.compose import compose, override

VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=3, max_size=8)


def test_a_mean_and_its_interval_are_those_of_students_t():
    values = np.array([4.1, 3.9, 4.4, 4.0, 4.6])
    found = statistics.summarize(values)
    assert (found.n, found.mean) == (5, pytest.approx(4.2))
    assert found.std == pytest.approx(np.sqrt(0.34 / 4))
    half = 2.7764451 * np.sqrt(0.34 / 4 / 5)  # t of 4 degrees of freedom, from the tables
    assert found.interval == pytest.approx((4.2 - half, 4.2 + half))
    bounds = stats.bootstrap([np.sort(values)], np.mean, rng=0).confidence_interval
    assert found.bootstrap == pytest.approx((bounds.low, bounds.high))
    assert statistics.summarize(values[:1]) == (1, 4.1, None, None, None)


def test_pairs_are_tested_as_scipy_does():
    a, b = np.random.default_rng(0).normal(size=(2, 9))
    found, expected = statistics.paired(a, b), stats.ttest_rel(b, a)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(b, a).pvalue)
    assert found.effect == pytest.approx((b - a).mean() / (b - a).std(ddof=1) * (1 - 3 / (4 * 8 - 1)), rel=2e-3)


def test_what_does_not_pair_is_tested_as_scipy_does():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=6), rng.normal(1, 3, size=4)
    found, expected = statistics.unpaired(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval()
    assert (found.p, found.df) == (pytest.approx(expected.pvalue), pytest.approx(expected.df))
    assert found.interval == pytest.approx((interval.low, interval.high))
    pooled = np.sqrt((5 * a.var(ddof=1) + 3 * b.var(ddof=1)) / 8)
    assert found.effect == pytest.approx((b.mean() - a.mean()) / pooled * (1 - 3 / (4 * 8 - 1)), rel=2e-3)


def test_folds_are_tested_by_nadeau_and_bengios_formula():
    a = np.array([0.81, 0.79, 0.84, 0.80, 0.82])
    b = np.array([0.83, 0.80, 0.85, 0.84, 0.83])
    difference = b - a  # mean 0.018, variance 0.00017
    t = 0.018 / np.sqrt((1 / 5 + 20 / 80) * 0.00017)
    found = statistics.paired(a, b, overlap=20 / 80)
    assert np.var(difference, ddof=1) == pytest.approx(0.00017)
    assert found.p == pytest.approx(2 * stats.t.sf(t, 4))
    assert found.p > 1.5 * statistics.paired(a, b).p
    assert (found.wilcoxon, found.bootstrap) == (None, None)
    wide = statistics.summarize(a, overlap=20 / 80).interval
    assert wide.high - wide.low == pytest.approx(1.5 * np.ptp(statistics.summarize(a).interval))  # sqrt(0.45 / 0.2)
    assert statistics.unpaired(a, b, 0.25, 0.25).error == pytest.approx(1.5 * statistics.unpaired(a, b).error)


def test_the_corrected_test_is_stricter_where_two_learners_are_equally_good():
    """Each takes the mean of its half of the training examples, which folds share."""
    rng, wrong = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        data = rng.normal(size=100)
        folds = np.arange(100).reshape(5, 20)
        scores = []
        for fold in folds:
            train = np.delete(data, fold)
            scores.append([((data[fold] - guess) ** 2).mean() for guess in (train[::2].mean(), train[1::2].mean())])
        a, b = np.array(scores).T
        wrong += [statistics.paired(a, b, overlap).p < 0.05 for overlap in (0, 0.25)]
    assert wrong[1] / 300 <= 0.05
    assert wrong[0] > 1.5 * wrong[1]


def test_the_luck_of_a_seed_is_seen_where_each_fold_draws_its_own():
    """One method against itself: a fold's score is what the fold allows, and the luck of a seed."""
    rng, own, shared = np.random.default_rng(0), 0, 0
    for _ in range(300):
        fold, noise = rng.normal(size=5), rng.normal(size=(2, 5)) / 5
        luck = rng.normal(size=(2, 5))
        own += statistics.paired(*(fold + noise + luck), overlap=0.25).p < 0.05
        shared += statistics.paired(*(fold + noise + luck[:, :1]), overlap=0.25).p < 0.05
    assert own / 300 <= 0.05
    assert shared / 300 > 0.5


def test_each_fold_draws_its_own_random_numbers():
    """By the config, so that initial weights, order, dropout and noise all do, whatever launches the runs."""
    of_folds = [compose(["experiment=cnn_digits", "seed=1", "data.folds=5", f"data.fold={fold}"]) for fold in range(5)]
    assert [each.config["seed"] for each in of_folds] == [each.config["data"]["seed"] for each in of_folds]
    assert len({each.config["seed"] for each in of_folds}) == 5
    assert {each.raw["seed"] for each in of_folds} == {1}
    again = override(of_folds[2].raw, ["seed=2"]).config["seed"]
    assert again == compose(["experiment=cnn_digits", "seed=2", "data.folds=5", "data.fold=2"]).config["seed"]
    assert compose(["experiment=cnn_digits", "seed=1"]).config["seed"] == 1


def test_holms_example():
    # Holm 1979 as in Wright 1992: 0.01, 0.02, 0.03, 0.04 become 0.04, 0.06, 0.06, 0.06
    assert statistics.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([]) == []


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_the_difference_that_can_be_found_is_found_four_times_in_five(n: int, comparisons: int):
    known = statistics.Difference(0, "t", error=1 / np.sqrt(n), df=n - 1)
    least = statistics.detectable(known, comparisons)
    samples = np.random.default_rng(0).normal(least, size=(40_000, n))
    shown = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05 / comparisons
    assert shown.mean() == pytest.approx(statistics.POWER, abs=0.01)


def test_mcnemars_textbook_example():
    """Approval of the prime minister (Agresti 1990, table 10.1): 794, 150, 86, 570 of 1,600."""
    a, b = (np.repeat(x, [794, 150, 86, 570]) for x in ([True, True, False, False], [True, False, True, False]))
    found = statistics.compare_answers(a, b)
    assert found.value == pytest.approx((86 - 150) / 1600)
    assert found.p == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5))
    assert found.p == pytest.approx(3.716e-05, rel=1e-3)
    error = np.sqrt((236 - 64**2 / 1600) / 1600**2)
    assert found.bootstrap == pytest.approx((-0.04 - 1.96 * error, -0.04 + 1.96 * error), abs=0.001)


def test_samples_that_overlap_count_as_one():
    rng = np.random.default_rng(0)
    steps = np.convolve(rng.normal(size=2000), np.ones(50) / 50, "valid")  # windows of 50 steps, one after another
    one, blocks = (statistics.compare_samples(np.zeros(len(steps)), steps, block) for block in (1, 100))
    assert one.value == pytest.approx(blocks.value) == pytest.approx(steps.mean())
    assert np.ptp(blocks.bootstrap) > 4 * np.ptp(one.bootstrap)
    means = statistics.blocks(steps, 100)
    assert len(means) == 19
    assert blocks.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    tasks = [np.array([0.0, 1, 2, 3]), np.array([4.0, 5, 6, 100])]
    found = statistics.interquartile_mean(tasks)
    assert (found.n, found.mean) == (8, 3.5)  # of 2, 3, 4, 5
    assert found.bootstrap.low < 3.5 < found.bootstrap.high
    runs = np.random.default_rng(0).normal(size=(3, 6))
    assert statistics.interquartile_mean(list(runs)).mean == pytest.approx(stats.trim_mean(runs.ravel(), 0.25))
    again = [tasks[0].repeat(3), tasks[1]]  # three times as many runs of the first task weigh no more
    assert statistics.interquartile_mean(again).mean == pytest.approx(found.mean)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 2)), min_size=1, max_size=14, unique_by=abs))
def test_over_tasks_the_size_the_interval_and_the_test_say_the_same(differences: list[float]):
    found = statistics.wilcoxon_over_tasks(np.array(differences))
    means = [(x + y) / 2 for i, x in enumerate(differences) for y in differences[i:]]
    assert found.value == pytest.approx(np.median(means))
    assert found.p >= statistics.smallest_p_over_tasks(len(differences)) - 1e-9
    assert (found.interval is None) == (len(differences) < 6)
    if found.interval and 0 not in differences:
        assert found.p == pytest.approx(stats.wilcoxon(differences).pvalue)
        away = found.interval.low > 0 or found.interval.high < 0
        assert away == (found.p <= 0.05) or 0 in found.interval or 0 in means
    if found.p < 0.05:
        ranks = stats.rankdata(np.abs(differences))
        assert found.value * np.sum(np.sign(differences) * ranks) > 0


def test_a_performance_profile_is_the_share_of_runs_above_counted_by_task():
    tasks = [np.array([1.0, 2, 3, 4]), np.array([4.0])]
    share, low, high = statistics.profile(tasks, np.array([0.0, 2.0, 4.0]))
    assert share == pytest.approx([1, (0.5 + 1) / 2, 0])
    assert np.all((low <= share) & (share <= high))
    assert statistics.profile(tasks, np.array([2.0]), higher=False)[0] == pytest.approx([0.25 / 2])


@settings(deadline=None, max_examples=30)
@given(VALUES, VALUES, st.randoms(use_true_random=False), st.integers(-50, 50))
def test_order_sides_and_zero_make_no_difference(a: list[float], b: list[float], random, shift: int):
    size = min(len(a), len(b))
    for test, x, y in ((statistics.unpaired, a, b), (statistics.paired, a[:size], b[:size])):
        found = test(np.array(x), np.array(y))
        order = random.sample(range(size), size)
        x, y = ([v[i] for i in order] + v[size:] for v in (x, y))
        same, swapped = test(np.array(x), np.array(y)), test(np.array(y), np.array(x))
        moved = test(np.array(x) + shift, np.array(y) + shift)
        for other, sign in ((same, 1), (swapped, -1), (moved, 1)):
            assert sign * other.value == pytest.approx(found.value, abs=1e-9)
            if found.p is not None and found.error and found.error > 1e-3:
                assert other.p == pytest.approx(found.p)
                assert sign * other.effect == pytest.approx(found.effect)
                assert sorted(sign * end for end in other.interval) == pytest.approx(found.interval)
        assert same.bootstrap == (pytest.approx(found.bootstrap) if found.bootstrap else None)
