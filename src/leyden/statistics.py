"""Statistics of the results of a few runs, folds, tasks or samples: means, differences, intervals, tests.

scipy does the mathematics; it is imported when it is first used. All intervals have a level of 95 %.
Bootstraps use a fixed seed and sorted values, so the order of the runs makes no difference.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
POWER = 0.8  # the probability that the test finds a difference as large as `detectable`
RESAMPLES = 9999
MANY_SAMPLES = 10_000  # above this number, a fifth of the resamples is enough
MAX_NUMBERS_IN_MEMORY = 1 << 24  # limits the resamples of a bootstrap that are drawn at once
TOLERANCE = 1e-6  # relative; values closer than this count as equal, because metrics are float32


class Interval(NamedTuple):
    """A confidence interval of 95 %."""

    low: float
    high: float

    def within(self, low: float, high: float) -> "Interval":
        """Return the part of the interval between two limits of the quantity; its level of confidence is the same."""
        return Interval(max(self.low, low), min(self.high, high))


class Summary(NamedTuple):
    """The mean of a group, and how certain it is."""

    n: int
    mean: float
    std: float | None = None  # sample standard deviation; None for a single value
    interval: Interval | None = None  # Student's t
    bootstrap: Interval | None = None  # BCa; None for fewer than three values, and for folds


class Difference(NamedTuple):
    """The mean of b minus the mean of a, and how certain it is."""

    value: float
    test: str
    p: float | None = None  # two-sided; None for a single value, or if all differences are equal
    interval: Interval | None = None  # from the same test
    bootstrap: Interval | None = None
    wilcoxon: float | None = None  # p of the signed-rank test, for pairs
    effect: float | None = None  # Hedges' g: value / standard deviation, corrected for its bias (Hedges 1981)
    pairs: bool = False  # whether `effect` divides by the deviation of the pairs' differences, not by the pooled one
    error: float | None = None  # standard error of `value`
    df: float | None = None  # degrees of freedom of `error`


def summarize(values: np.ndarray, overlap: float = 0.0) -> Summary:
    """Summarize values (n,). `overlap` is above 0 for folds: see `paired`."""
    values = np.sort(values)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Summary(n, mean)
    std = float(values.std(ddof=1))
    interval = _interval(mean, std * math.sqrt(1 / n + overlap), n - 1)
    return Summary(n, mean, std, interval, None if overlap else _bootstrap([values], np.mean))


def paired(a: np.ndarray, b: np.ndarray, overlap: float = 0.0) -> Difference:
    """Compare values (n,), paired by position, with a t test of their differences.

    Folds share most of their training data, so their differences vary less than those of independent data. For folds,
    `overlap` is the number of test examples of a fold divided by the number of its training examples, and the test is
    the corrected resampled t test (Nadeau & Bengio 2003): the variance of the mean is (1/n + overlap) times that of a
    difference, instead of 1/n times. Wilcoxon's test and the bootstrap have no such correction, so they are not
    computed for folds.
    """
    from scipy import stats

    differences = np.sort(b - a)
    n, value = len(differences), float(np.mean(b - a))
    test = "corrected resampled t" if overlap else "paired t"
    if n == 1:
        return Difference(value, test)
    if np.ptp(differences) <= TOLERANCE * np.abs([a, b]).max():
        return _untested_difference(value, test, a, b)
    std = float(differences.std(ddof=1))
    error = std * math.sqrt(1 / n + overlap)
    return Difference(
        value,
        test,
        p=_two_sided_p(value / error, n - 1),
        interval=_interval(value, error, n - 1),
        bootstrap=None if overlap else _bootstrap([differences], np.mean),
        wilcoxon=None if overlap else float(stats.wilcoxon(differences).pvalue),
        effect=_hedges(value / std, n - 1),
        pairs=True,
        error=error,
        df=n - 1,
    )


def unpaired(a: np.ndarray, b: np.ndarray, overlap_a: float = 0.0, overlap_b: float = 0.0) -> Difference:
    """Compare unpaired values (n,) and (m,) with Welch's t test; see `paired` for the overlaps."""
    value, test = float(b.mean() - a.mean()), "corrected Welch t" if overlap_a or overlap_b else "Welch t"
    if min(len(a), len(b)) == 1:
        return Difference(value, test)
    if max(np.ptp(a), np.ptp(b)) <= TOLERANCE * max(np.abs(a).max(), np.abs(b).max()):
        return _untested_difference(value, test, a, b)
    sizes, variances = (len(a), len(b)), (a.var(ddof=1), b.var(ddof=1))
    shares = [v * (1 / n + overlap) for v, n, overlap in zip(variances, sizes, (overlap_a, overlap_b), strict=True)]
    error = math.sqrt(sum(shares))
    df = float(sum(shares) ** 2 / sum(share**2 / (n - 1) for share, n in zip(shares, sizes, strict=True)))
    pooled_variance = sum(v * (n - 1) for v, n in zip(variances, sizes, strict=True)) / (sum(sizes) - 2)
    return Difference(
        value,
        test,
        p=_two_sided_p(value / error, df),
        interval=_interval(value, error, df),
        bootstrap=None if overlap_a or overlap_b else _bootstrap([np.sort(a), np.sort(b)], _difference_of_means),
        effect=_hedges(value / math.sqrt(pooled_variance), sum(sizes) - 2),
        error=error,
        df=df,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, adjusted for the number of tests (Holm 1979)."""
    values = np.array(p_values, np.float64)
    order = values.argsort()
    adjusted_values = np.empty_like(values)
    adjusted_values[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted_values.tolist()


def detectable(difference: Difference, comparisons: int = 1) -> float | None:
    """Return the difference that a test would detect with a power of 80 %, if its standard error is as estimated.

    The level of the test is the strictest one in Holm's method for this number of comparisons.
    """
    from scipy import optimize, stats

    if difference.error is None or difference.df is None:
        return None
    df, critical = difference.df, stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, difference.df)
    noncentrality = optimize.brentq(lambda shift: stats.nct.sf(critical, df, shift) - POWER, 0, 4 * critical)
    return float(noncentrality * difference.error)


def interquartile_mean(tasks: Sequence[np.ndarray]) -> Summary:
    """Average the middle half of the runs of all tasks, an array (n,) each; all tasks have equal weight.

    The interval resamples the runs of each task (stratified bootstrap, by percentiles: Agarwal et al. 2021).
    """
    mean = float(_iqm(*tasks, axis=-1))
    return Summary(sum(map(len, tasks)), mean, bootstrap=_bootstrap([*map(np.sort, tasks)], _iqm, "percentile"))


def wilcoxon_over_tasks(differences: np.ndarray) -> Difference:
    """Test whether the differences (n,) of n tasks are centred on 0, with Wilcoxon's signed-rank test (Demšar 2006).

    The value is the median of the means of all pairs of tasks, including each task with itself (Hodges & Lehmann
    1963). The interval lies between two of these means (Tukey). Both are derived from this test and agree with it.
    """
    from scipy import stats

    n = len(differences)
    means = np.sort(np.add.outer(differences, differences)[np.triu_indices(n)] / 2)
    probabilities = np.ones(1)  # probabilities of each rank sum under the null hypothesis
    for rank in range(1, n + 1):
        probabilities = np.convolve(probabilities, [0.5, *np.zeros(rank - 1), 0.5])
    # the number of means beyond each end of the interval
    num_outside = int(np.searchsorted(probabilities.cumsum(), (1 - LEVEL) / 2, "right"))
    return Difference(
        float(np.median(means)),
        "Wilcoxon over tasks",
        p=float(stats.wilcoxon(differences, zero_method="zsplit").pvalue) if differences.any() else 1.0,
        interval=Interval(float(means[num_outside - 1]), float(means[-num_outside])) if num_outside else None,
    )


def smallest_p_over_tasks(n: int) -> float:
    """Return the smallest p of Wilcoxon's test of n tasks, reached if all differences have the same sign."""
    return min(1.0, 2 / 2**n)


def profile(tasks: Sequence[np.ndarray], thresholds: np.ndarray, higher: bool = True) -> np.ndarray:
    """Return (3, P): for each of P thresholds, the share of runs that are better, and its interval (low, high).

    All tasks have equal weight. This is the performance profile of Agarwal et al. (2021, section 4.2), with pointwise
    intervals.
    """
    rng = np.random.default_rng(0)

    def shares(runs: np.ndarray) -> np.ndarray:
        """(…, n) -> (…, P)"""
        return (runs[..., None] > thresholds if higher else runs[..., None] < thresholds).mean(-2)

    resampled_shares = [shares(rng.choice(runs, (999, len(runs)))) for runs in map(np.sort, tasks)]
    ends = np.quantile(np.mean(resampled_shares, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return np.stack([np.mean([shares(runs) for runs in tasks], axis=0), *ends])


def compare_answers(a: np.ndarray, b: np.ndarray) -> Difference:
    """Compare the accuracies of two models on the same samples, given whether each answer is right, (N,) bool each.

    The test is McNemar's exact test; the interval is a bootstrap of the samples.
    """
    from scipy import stats

    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(~a & b))
    differences = b.astype(np.float64) - a
    return Difference(
        float(differences.mean()),
        "McNemar, exact",
        p=float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
        bootstrap=_bootstrap([np.sort(differences)], np.mean, "percentile"),
    )


def compare_samples(a: np.ndarray, b: np.ndarray, block: int = 1) -> Difference:
    """Compare the mean errors of two models on the same samples, (N,) each, with a t test of their differences.

    If samples overlap their neighbours, as windows of a series do, every `block` consecutive samples count as one.
    """
    return paired(blocks(a, block), blocks(b, block))._replace(value=float(np.mean(b - a)))


def compare_sums(
    a: np.ndarray, b: np.ndarray, metric: Callable[[np.ndarray], np.ndarray], block: int = 1
) -> Difference:
    """Compare a metric that is computed from sums over samples, such as BLEU, for two models on the same samples.

    `a` and `b` (N, P) are the summands of each sample; `metric` takes sums (…, P). Every `block` consecutive samples
    count as one. The test is approximate randomization (Riezler & Maxwell 2005): the summands of random samples are
    exchanged between the two models. The interval is a bootstrap of the samples (Koehn 2004).
    """
    a, b = (np.add.reduceat(x, np.arange(0, len(x), block)) for x in (a, b))
    value, total = float(metric(b.sum(0)) - metric(a.sum(0))), (a + b).sum(0)
    rng, count = np.random.default_rng(0), 0
    differences: list[np.ndarray] = []
    times = RESAMPLES if len(a) <= MANY_SAMPLES else RESAMPLES // 5
    batch = max(1, MAX_NUMBERS_IN_MEMORY // len(a))
    for size in [batch] * (times // batch) + [times % batch]:
        sums_a = a.sum(0) + rng.integers(2, size=(size, len(a))) @ (b - a)  # (size, P)
        count += int((np.abs(metric(total - sums_a) - metric(sums_a)) >= abs(value) * (1 - TOLERANCE)).sum())
        weights = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size)
        differences.append(metric(weights @ b) - metric(weights @ a))
    low, high = np.quantile(np.concatenate(differences), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    p = (1 + count) / (1 + times)
    return Difference(value, "approximate randomization", p=p, bootstrap=Interval(float(low), float(high)))


def ratio(sums: np.ndarray) -> np.ndarray:
    """Divide the first sum by the second: (…, 2) -> (…)."""
    return sums[..., 0] / sums[..., 1]


def bleu(sums: np.ndarray) -> np.ndarray:
    """Return BLEU (Papineni et al. 2002), 0 to 100, from sums (…, 10).

    They are the matches and the numbers of 1- to 4-grams, and the lengths of the translations and references.
    """
    matches, numbers, length, reference = sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / numbers).mean(-1))
        brevity = np.exp(np.minimum(0, 1 - reference / length))
    return np.nan_to_num(100 * brevity * precision)


def blocks(values: np.ndarray, block: int) -> np.ndarray:
    """Average values (N,) over blocks (N // block,) of at least `block` consecutive values."""
    return np.array([part.mean() for part in np.array_split(values, max(1, len(values) // block))])


def _two_sided_p(t: float, df: float) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(t), df))


def _interval(center: float, error: float, df: float) -> Interval:
    from scipy import stats

    half_width = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    return Interval(center - half_width, center + half_width)


def _hedges(d: float, df: float) -> float | None:
    """Correct the bias of a standardized difference; with one degree of freedom there is no correction."""
    if df < 2:
        return None
    return d * math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def _untested_difference(value: float, test: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """Return a difference that cannot be tested, because all values are equal; its p is 1 if the difference is zero."""
    return Difference(value, test, p=1.0 if abs(value) <= TOLERANCE * np.abs(np.concatenate([a, b])).max() else None)


def _bootstrap(samples: Sequence[np.ndarray], statistic: Callable, method: str = "BCa") -> Interval | None:
    from scipy import stats

    size = sum(map(len, samples))
    if min(map(len, samples)) < (3 if method == "BCa" else 2):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        times, batch = RESAMPLES if size <= MANY_SAMPLES else RESAMPLES // 5, max(1, MAX_NUMBERS_IN_MEMORY // size)
        interval = stats.bootstrap(
            tuple(samples), statistic, method=method, n_resamples=times, batch=batch, vectorized=True, rng=0
        ).confidence_interval
    return Interval(float(interval.low), float(interval.high)) if np.isfinite(interval).all() else None


def _difference_of_means(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return b.mean(axis) - a.mean(axis)


def _iqm(*tasks: np.ndarray, axis: int) -> np.ndarray:
    """Return the interquartile mean. The quarters are rounded down to whole runs, as in scipy.stats.trim_mean."""
    assert axis == -1
    values = np.concatenate(tasks, axis=-1)
    order, n = values.argsort(-1), values.shape[-1]
    weights = np.concatenate([np.full(runs.shape[-1], 1 / runs.shape[-1] / len(tasks)) for runs in tasks])[order]
    cumulative, tail = weights.cumsum(-1), n // 4 / n
    trimmed = (np.minimum(cumulative, 1 - tail) - np.maximum(cumulative - weights, tail)).clip(0)
    return (trimmed * np.take_along_axis(values, order, -1)).sum(-1) / (1 - 2 * tail)
