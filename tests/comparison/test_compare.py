"""`leyden compare`: which runs a word names, what is refused, and numbers that are those of the literature."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from scipy import stats

from leyden.batch import ImageBatch, TextBatch
from leyden.callbacks.predictions import pair_with_targets
from leyden.cli import run_command
from leyden.comparison import statistics
from leyden.config.compose import compose, override
from leyden.config.locations import CONF
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.run.find import find_run
from support.processes import cli

REQUEST = 2  # the exit code of a wrong request
VALUES = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=3, max_size=8)


# the mathematics, against closed forms, scipy and worked examples


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
    found = statistics.same_answers(a, b)
    assert found.value == pytest.approx((86 - 150) / 1600)
    assert found.p == pytest.approx(2 * stats.binom.cdf(86, 236, 0.5))
    assert found.p == pytest.approx(3.716e-05, rel=1e-3)
    error = np.sqrt((236 - 64**2 / 1600) / 1600**2)
    assert found.bootstrap == pytest.approx((-0.04 - 1.96 * error, -0.04 + 1.96 * error), abs=0.001)


def test_samples_that_overlap_count_as_one():
    rng = np.random.default_rng(0)
    steps = np.convolve(rng.normal(size=2000), np.ones(50) / 50, "valid")  # windows of 50 steps, one after another
    one, blocks = (statistics.same_samples(np.zeros(len(steps)), steps, block) for block in (1, 100))
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
    found = statistics.over_tasks(np.array(differences))
    means = [(x + y) / 2 for i, x in enumerate(differences) for y in differences[i:]]
    assert found.value == pytest.approx(np.median(means))
    assert found.p >= statistics.least_over_tasks(len(differences)) - 1e-9
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


# runs, made by hand


def make(path: str, *, seed: int = 0, data: str = "digits", fold: int | None = None, folds: int = 5, **facts) -> None:
    """Write a run's files; `metrics`, `state`, `sha256` of the test split, `lr` and `cut` of folds may be given."""
    folder = Path("runs", path)
    folder.mkdir(parents=True)
    node = {"_target_": "my.Data"} | ({} if fold is None else {"folds": folds, "fold": fold})
    model = {"_target_": "leyden.models.Classifier"}
    raw = {"seed": seed, "data": node, "model": model, "optimizer": {"lr": facts.get("lr", 0.1)}, "checkpoint": {}}
    splits = {
        "train": (80, "train"),
        "val": (20, f"{facts.get('cut', '')}val {fold}"),
        "test": (10, facts.get("sha256", data)),
    }
    manifest = {
        "created": f"{seed:03}",
        "raw": raw,
        "choices": {"data": data},
        "overrides": facts.get("overrides", []),
        "monitor": facts.get("monitor", "val/accuracy"),
        "data": {name: {"size": size, "sha256": f"{sha} of {data}"} for name, (size, sha) in splits.items()},
    }
    status = {"state": facts.get("state", "finished"), "metrics": facts.get("metrics", {})}
    for name, content in (("config.yaml", raw), ("manifest.json", manifest), ("status.json", status)):
        dump = yaml.safe_dump if name.endswith("yaml") else json.dumps
        (folder / name).write_text(dump(content))


def edit(path: str, change: Callable[[dict], object]) -> None:
    """Change a run's manifest."""
    file = Path("runs", path, "manifest.json")
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


A = [0.900, 0.905, 0.910, 0.902, 0.908]
B = [0.912, 0.915, 0.919, 0.914, 0.915]


@pytest.fixture
def seeds(workdir: Path) -> Path:
    """Two experiments of five seeds, B better than A by 0.0100 ± 0.0026 (2.776 x 0.00212 / sqrt 5)."""
    for name, values in (("a", A), ("b", B)):
        for seed, value in enumerate(values):
            metrics = {"test/accuracy": value, "val/accuracy": value, "test/loss": 1 - value, "test/thing": value}
            make(f"{name}/{seed}", seed=seed, metrics=metrics, lr=0.1 if name == "a" else 0.2)
    return workdir


def compare(*words: str) -> int:
    return run_command("compare", [*words])


def rows(path: str = "found.csv") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).open()))


def test_seeds_pair_and_plain_words_say_what_was_found(seeds: Path, capsys: pytest.CaptureFixture):
    assert compare("a", "b", "--metric", "test/accuracy", "--save", "found.csv") == 0
    out = capsys.readouterr().out
    p = stats.ttest_rel(A, B).pvalue
    assert "b is better than a by 1.00 ± 0.26 points of test/accuracy (95 %), p < 0.001 (paired t, n = 5 seeds)" in out
    assert p < 0.001
    first, second = rows()
    assert (first["group"], float(first["mean"]), first["p"]) == ("a", pytest.approx(0.905), "")
    assert float(second["p"]) == pytest.approx(p) == pytest.approx(float(second["p_holm"]))
    assert float(second["difference"]) == pytest.approx(0.01)


def test_lower_is_better_for_a_loss(seeds: Path, capsys: pytest.CaptureFixture):
    assert compare("a", "b", "--metric", "test/loss") == 0
    out = capsys.readouterr().out
    assert "test/loss (lower is better)" in out
    assert "b is better than a by 0.0100 ± 0.0026 of test/loss" in out
    assert compare("b", "a", "--metric", "test/loss") == 0
    assert "a is worse than b by 0.0100 ± 0.0026 of test/loss" in capsys.readouterr().out


def test_what_cannot_be_shown_comes_with_what_could_have_been(seeds: Path, capsys: pytest.CaptureFixture):
    for seed in range(5):
        metrics = {"test/accuracy": A[seed] + [0.01, -0.01, 0.005, -0.008, 0.004][seed]}
        make(f"c/{seed}", seed=seed, metrics=metrics)
    assert compare("a", "c", "--metric", "test/accuracy") == 0
    out = capsys.readouterr().out
    error = np.std([0.01, -0.01, 0.005, -0.008, 0.004], ddof=1) / 5**0.5
    least = statistics.detectable(statistics.Difference(0, "t", error=error, df=4))
    assert "no difference of test/accuracy can be shown: c minus a is +0.02 ± 1.08 points (95 %), p = 0.96" in out
    assert f"the smallest that such groups would show is about {100 * least:.2f} points" in out


def test_the_default_is_what_the_best_checkpoint_is_chosen_by_and_holm_counts_all(
    seeds: Path, capsys: pytest.CaptureFixture
):
    for seed in (0, 1, 5, 6):
        make(f"c/{seed}", seed=seed, metrics={"test/accuracy": 0.9 + seed / 1000, "val/accuracy": 0.9 - seed / 1000})
    assert compare("a", "b", "c", "--save", "found.csv") == 0
    assert [row["metric"] for row in rows()] == ["test/accuracy"] * 3 + ["val/accuracy"] * 3
    for split in ("test", "val"):  # a family each: val has already chosen the checkpoints
        own = [row for row in rows() if row["metric"].startswith(split) and row["p"]]
        p_values = [float(row["p"]) for row in own]
        assert [float(row["p_holm"]) for row in own] == pytest.approx(statistics.holm(p_values))
    assert "of 2)" in (out := capsys.readouterr().out)
    assert [row["test"] for row in rows()[:3]] == ["", "paired t", "Welch t"]  # c has two seeds of four
    assert rows()[1]["g_of_pairs"]
    assert rows()[2]["g"]
    assert " g  g of pairs\n" in out


def test_where_a_seed_is_missing_the_others_pair(seeds: Path, capsys: pytest.CaptureFixture):
    shutil.rmtree("runs/b/0")
    make("b/7", seed=7, metrics={"test/accuracy": 0.5}, lr=0.2)
    assert compare("a", "b", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert float(rows()[1]["p"]) == pytest.approx(stats.ttest_rel(A[1:], B[1:]).pvalue)
    assert float(rows()[1]["difference"]) == pytest.approx(np.mean(B[1:]) - np.mean(A[1:]))
    note = "b minus a is of the 4 seeds that both have, 2 left out"
    assert note in capsys.readouterr().out
    assert {row["notes"].partition("; ")[0] for row in rows()} == {note}


def test_better_is_what_holm_leaves(seeds: Path, capsys: pytest.CaptureFixture):
    shifts = np.array([0.006, 0.001, 0.005, 0.004, 0.001])
    for name in "cdef":
        for seed, shift in enumerate(shifts):
            make(f"{name}/{seed}", seed=seed, lr=name, metrics={"test/accuracy": A[seed] + shift})
    p = stats.ttest_1samp(shifts, 0).pvalue
    assert 0.0125 < p < 0.05
    assert compare("a", "c", "--metric", "test/accuracy") == 0
    assert "c is better than a" in capsys.readouterr().out
    assert compare("a", "c", "d", "e", "f", "--metric", "test/accuracy") == 0
    assert "no difference of test/accuracy can be shown: f minus a" in capsys.readouterr().out


def test_val_is_that_of_the_best_checkpoint(seeds: Path):
    for seed, value in enumerate([0.5, 0.6, 0.7]):
        make(f"d/{seed}", seed=seed, metrics={"val/accuracy": 0.1, "test/accuracy": 0.5})
        folder = Path(f"runs/d/{seed}")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-000000020.ckpt").touch()
        (folder / "checkpoints" / "best.ckpt").symlink_to("step-000000020.ckpt")
        lines = [{"step": 20, "val/accuracy": value}, {"step": 40, "val/accuracy": 0.1}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert compare("d", "--metric", "val/accuracy", "--save", "found.csv") == 0
    assert float(rows()[0]["mean"]) == pytest.approx(0.6)


def test_of_one_run_nothing_is_said_about_spread(seeds: Path, capsys: pytest.CaptureFixture):
    assert compare("a/0", "b/0", "--metric", "test/accuracy") == 0
    said = "b/0 minus a/0 is +1.20 points of test/accuracy, but one value says nothing about spread"
    assert said in capsys.readouterr().out
    assert compare("a/0", "b", "--metric", "test/accuracy") == 0
    assert "but one value says nothing about spread" in capsys.readouterr().out


def test_folds_are_averaged_over_seeds_and_corrected(workdir: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(mean, 0.01, (5, 3)) for name, mean in (("a", 0.80), ("b", 0.83))}
    for name, table in scores.items():
        for (fold, seed), value in np.ndenumerate(table):
            make(f"{name}/{fold}-{seed}", seed=seed, fold=fold, metrics={"val/accuracy": float(value)})
    assert compare("a", "b", "--save", "found.csv") == 0
    expected = statistics.paired(scores["a"].mean(1), scores["b"].mean(1), overlap=20 / 80)
    assert float(rows()[1]["p"]) == pytest.approx(expected.p)
    assert rows()[1]["n"] == "5"
    assert "(corrected resampled t, n = 5 folds of 3 seeds)" in capsys.readouterr().out
    for path in ("a", "b"):
        shutil.rmtree(f"runs/{path}/2-1")
    assert compare("a", "b") == 0
    assert "(corrected resampled t, n = 5 folds of 2 to 3 seeds)" in capsys.readouterr().out


def test_of_folds_what_they_held_out_is_compared(workdir: Path, capsys: pytest.CaptureFixture):
    for fold in range(3):
        for name in "ab":
            make(f"{name}/{fold}", fold=fold, seed=fold, metrics={"test/accuracy": 0.8, "val/accuracy": fold / 10})
    assert compare("a", "b") == 0
    out = capsys.readouterr().out
    assert "test/accuracy" not in out
    assert "n = 3 folds)" in out


@pytest.mark.parametrize("other", [{"fold": 0, "folds": 3}, {}])
def test_folds_without_a_fingerprint_pair_with_nothing_else(workdir: Path, capsys: pytest.CaptureFixture, other: dict):
    make("a/0", fold=0, metrics={"val/accuracy": 0.8})
    make("b/0", metrics={"val/accuracy": 0.9}, **other)
    for path in ("a/0", "b/0"):
        edit(path, lambda manifest: manifest.pop("data"))
    assert compare("a", "b") == REQUEST
    error = capsys.readouterr().err
    assert ("are not the same data" if other else "a/0 is a fold of digits, and b/0 is not") in error


def test_folds_of_several_files_are_tasks(workdir: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    for name, better in (("a", 0), ("b", 0.1)):
        for file in range(6):
            for fold in range(3):
                metrics = {"val/accuracy": 0.5 + better + rng.normal() / 100}
                path = f"{name}/{file}-{fold}"
                make(path, fold=fold, metrics=metrics, cut=f"{file} ")
                edit(path, lambda manifest, file=file: manifest["raw"]["data"].update(path=f"data/{file}.csv"))
    assert compare("a", "b", "--save", "found.csv") == 0
    assert "b is better than a in val/accuracy on 6 of 6 tasks" in capsys.readouterr().out
    tasks = [row["task"] for row in rows() if row["group"] == "b"]
    assert tasks == [*(f"digits {file}" for file in range(6)), "all tasks"]


def test_force_matches_what_has_another_fingerprint_by_name_and_loses_no_run(
    workdir: Path, capsys: pytest.CaptureFixture
):
    for name, better in (("a", 0), ("b", 0.1)):
        for file in range(3):
            for seed in range(3):
                metrics = {"test/accuracy": 0.5 + better + file / 10 + seed / 1000}
                sha256 = f"{file}{name if file == 2 else ''}"
                make(f"{name}/{file}-{seed}", seed=seed, metrics=metrics, sha256=sha256)
    assert compare("a", "b", "--metric", "test/accuracy") == REQUEST
    assert compare("a", "b", "--metric", "test/accuracy", "--force", "--save", "found.csv") == 0
    assert [row["n"] for row in rows()] == ["3", "3"] * 3 + ["9", "9"]
    assert "older of the same seed" not in capsys.readouterr().out


def test_losses_of_tokens_are_not_compared_over_vocabularies(workdir: Path, capsys: pytest.CaptureFixture):
    for name, tokens in (("a", "4000"), ("b", "1000")):
        make(f"{name}/0", metrics={"test/loss": 1.0, "test/bleu": 30.0})
        edit(f"{name}/0", lambda manifest, tokens=tokens: manifest["data"]["test"].update(tokens=tokens))
    assert compare("a", "b", "--metric", "test/bleu") == 0
    assert compare("a", "b", "--metric", "test/loss") == REQUEST
    assert "and no run of a did on the same data" in capsys.readouterr().err


def test_folds_pair_with_those_of_the_same_cut_alone(workdir: Path, capsys: pytest.CaptureFixture):
    for fold in range(5):
        make(f"a/{fold}", fold=fold, metrics={"test/accuracy": 0.8 + fold / 100})
        make(f"b/{fold}", fold=fold, metrics={"test/accuracy": 0.8 + fold / 90}, lr=0.2)
        make(f"c/{fold}", fold=fold, metrics={"test/accuracy": 0.8 + fold / 80}, cut="other ")
    for fold in range(3):
        make(f"d/{fold}", fold=fold, folds=3, metrics={"test/accuracy": 0.8 + fold / 80}, cut="of 3 ")
    make("e/0", metrics={"test/accuracy": 0.8})
    assert compare("a", "b", "--metric", "test/accuracy") == 0
    out = capsys.readouterr().out
    assert "(corrected resampled t, n = 5 folds)" in out
    assert "folds share most of what they train on, and all that test/accuracy is of" in out
    for others, said in (
        (["c"], "fold 0 of 5 in a/0 and fold 0 of 5 in c/0 are not the same data"),
        (["d"], "fold 0 of 5 in a/0 and fold 0 of 3 in d/0 are not the same data"),
    ):
        assert compare("a", *others, "--metric", "test/accuracy") == REQUEST
        assert said in capsys.readouterr().err
        assert compare("a", *others, "--metric", "test/accuracy", "--force") == 0
        assert "corrected Welch t" in capsys.readouterr().out
    for mixed, said in (
        ("x=a,e", "a/0 is a fold of digits, and e/0 is not"),
        ("x=a,d", "fold 0 of 5 in a/0 and fold 0 of 3 in d/0 are not the same data"),
    ):
        assert compare(mixed, "--metric", "test/accuracy") == REQUEST
        assert said in capsys.readouterr().err


def test_many_tasks_are_averaged_by_the_interquartile_mean(workdir: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    for name, better in (("a", 0), ("b", 0.03)):
        for number in range(6):
            for seed in range(3):
                value = 0.5 + number / 20 + better + rng.normal(0, 0.01)
                metrics = {"test/accuracy": value, "test/loss": 10.0**number}
                make(f"{name}/{number}-{seed}", seed=seed, data=f"data{number}", metrics=metrics)
    saved = [text for name in ("found.csv", "f.png", "f.md", "f.tex") for text in ("--save", name)]
    assert compare("a", "b", "--metric", "test/accuracy", *saved) == 0
    out = capsys.readouterr().out
    last = rows()[-1]
    assert (last["task"], last["test"], float(last["p"])) == ("all tasks", "Wilcoxon over tasks", 0.03125)
    assert float(last["p_holm"]) == 0.03125  # a family of its own
    each = [(float(row["p"]), float(row["p_holm"])) for row in rows()[:-1] if row["p"]]
    assert [holm for _, holm in each] == pytest.approx(statistics.holm([p for p, _ in each]))
    runs_of_b = [Run(path).status["metrics"]["test/accuracy"] for path in sorted(Path("runs/b").iterdir())]
    assert float(last["mean"]) == pytest.approx(stats.trim_mean(runs_of_b, 0.25))
    assert "b is better than a in test/accuracy on 6 of 6 tasks" in out
    assert Path("f.png").stat().st_size > 10_000
    assert "| all tasks (IQM) | b | 18 |" in Path("f.md").read_text()
    assert r"all tasks (IQM) & b & 18 &" in Path("f.tex").read_text()
    assert compare("a", "b", "--metric", "test/loss") == 0
    assert "not the same unit on every task" in capsys.readouterr().out


def test_more_runs_of_a_task_give_it_no_more_weight(workdir: Path, capsys: pytest.CaptureFixture):
    for number in range(6):
        for name, better, runs in (("a", 0, 3), ("b", 0.03, 9 if number < 2 else 3)):  # of the tasks that are hard
            for seed in range(runs):
                metrics = {"test/accuracy": 0.3 + number / 10 + better + seed % 3 / 1000 + number / 10_000}
                make(f"{name}/{number}-{seed}", seed=seed, data=f"data{number}", metrics=metrics)
    assert compare("a", "b", "--metric", "test/accuracy", "--save", "found.csv") == 0
    out = capsys.readouterr().out
    assert "b is better than a by 3.00 points of test/accuracy (95 %, +3.00 … +3.00), p = 0.031" in out
    means = [float(row["mean"]) for row in rows() if row["task"] == "all tasks"]
    assert means[1] - means[0] == pytest.approx(0.03, abs=0.002)


def test_of_few_tasks_it_is_said_that_nothing_can_be_shown(workdir: Path, capsys: pytest.CaptureFixture):
    for number in range(5):
        for name, better in (("a", 0), ("b", 0.1)):
            for seed in range(2):
                metrics = {"test/accuracy": 0.5 + better + seed / 1000 + number / 10_000, "test/error": number}
                make(f"{name}/{number}-{seed}", seed=seed, data=f"data{number}", metrics=metrics)
    assert compare("a", "b", "--metric", "test/accuracy") == 0
    out = capsys.readouterr().out
    assert "no difference over 5 tasks can be shown: p is never below 0.062" in out
    assert "no difference of test/accuracy can be shown: b minus a is +10.000 points, p = 0.062" in out
    assert compare("a", "b", "--metric", "test/error:lower") == 0
    assert "test/error is not the same unit on every task" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (A, "no difference of test/accuracy can be shown: x minus a is +0.00 points, p = 1.00 (paired t, n = 5 seeds)"),
        (
            [a + 0.05 for a in A],
            "x minus a is +5.00 points of test/accuracy, and does not vary: nothing can be tested",
        ),
    ],
)
def test_differences_that_do_not_vary(seeds: Path, capsys: pytest.CaptureFixture, values: list[float], said: str):
    for seed, value in enumerate(values):
        make(f"x/{seed}", seed=seed, metrics={"test/accuracy": value})
    assert compare("a", "x", "--metric", "test/accuracy") == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1e-9, 1e12])
def test_numbers_of_any_size_can_be_read(seeds: Path, capsys: pytest.CaptureFixture, scale: float):
    for name, values in (("x", A), ("y", B)):
        for seed, value in enumerate(values):
            make(f"{name}/{seed}", seed=seed, metrics={"test/loss": scale * value})
    assert compare("x", "y", "--metric", "test/loss") == 0
    assert f"y is worse than x by {scale / 100:.3g} ± {0.00263 * scale:.3g} of test/loss" in capsys.readouterr().out


def test_a_figure_shows_the_difference_and_the_notes(seeds: Path):
    make("b/5", seed=5, state="failed")
    assert compare("a", "b", "--metric", "test/accuracy", "--save", "f.svg") == 0
    text = Path("f.svg").read_text()
    for said in (
        "test/accuracy (%)",
        "test/accuracy minus a (points)",
        "bars: 95 % intervals",
        "b: left out: 1 failed",
    ):
        assert f"<!-- {said} -->" in text


def test_a_table_for_latex_escapes_its_cells(seeds: Path):
    assert compare("a_1=a", "b_%=b", "--metric", "test/accuracy", "--save", "f.tex") == 0
    text = Path("f.tex").read_text()
    assert r"b\_\% & +1.00 $\pm$ 0.26 &" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    assert compare(r"[a\{~=a", "*^$=b", "--metric", "test/accuracy", "--save", "f.tex") == 0
    text = Path("f.tex").read_text()
    for begins in (r"{}[a\textbackslash{}\{\textasciitilde{} &", r"{}*\textasciicircum{}\$ &"):
        assert begins in text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["runs/a"], A),
        (["a"], A),
        (["runs/a/[0-2]"], A[:3]),
        (["a/*"], A),
        (["a/0,b/1"], None),  # of different configs
        (["last"], None),  # one run
        (["x=a/0,a/3"], [A[0], A[3]]),
    ],
)
def test_a_word_names_runs(seeds: Path, words: list[str], found: list[float] | None):
    Path("a").mkdir()  # of something else
    code = compare(*words, "--metric", "test/accuracy", "--save", "found.csv")
    if found is None:
        assert code == (0 if words == ["last"] else REQUEST)
    else:
        assert int(rows()[0]["n"]) == len(found)
        assert float(rows()[0]["mean"]) == pytest.approx(np.mean(found))


def sweep(folder: str, *, own: bool) -> None:
    """Write a sweep of three trials of two seeds; the second is the best."""
    Path("runs", folder).mkdir(parents=True)
    node = yaml.safe_load((CONF / "hydra" / "sweeper" / "leyden.yaml").read_text()) | {"seeds": 2, "folds": None}
    node = node if own else {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    OmegaConf.save({"hydra": {"sweeper": node}}, Path("runs", folder, "multirun.yaml"))
    for job in range(6):
        value = [0.7, 0.9, 0.8][job // 2] + job / 1000
        overrides = [f"optimizer.lr={job // 2}", f"seed={job % 2}"]
        metrics = {"val/accuracy": value, "test/accuracy": value}
        make(f"{folder}/{job}", seed=job % 2, lr=job // 2, overrides=overrides, metrics=metrics)


@pytest.mark.parametrize("own", [True, False])
def test_a_sweep_stands_for_its_best_trial(workdir: Path, capsys: pytest.CaptureFixture, own: bool):
    sweep("x/20260101-000000-abcd", own=own)
    if own:
        import optuna

        from leyden.sweep.directory import Sweep
        from leyden.sweep.settings import Objective

        study = Sweep(Path("runs/x/20260101-000000-abcd")).begin(
            [Objective("val/accuracy", "maximize")], [["seed=0"], ["seed=1"]]
        )
        for value in (0.7, 0.9, 0.8):
            study.add_trial(optuna.create_trial(value=value))
    assert compare("abcd:0", "abcd", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert [float(row["mean"]) for row in rows()] == pytest.approx([0.7005, 0.9025])
    assert "abcd: trial 1, the best of 3" in capsys.readouterr().out
    assert compare("last:2", "abcd:0", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert [float(row["mean"]) for row in rows()] == pytest.approx([0.8045, 0.7005])
    capsys.readouterr()
    assert compare("abcd:7") == REQUEST
    assert "has no runs of a trial 7; it has those of 0, 1, 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sha256": "others"}, "and no run of a did on the same data; --force"),
        ({"data": "mnist"}, "measured test/accuracy on mnist"),
        ({"state": "interrupted"}, "x/0 is interrupted: leyden resume x/0 finishes it; --force"),
        ({"metrics": {"val/accuracy": 0.9}}, "no run of x has logged test/accuracy; did you mean val/accuracy?"),
        ({"metrics": {"test/accuracy": float("nan")}}, "x/0 of x ended with test/accuracy=nan; --force"),
        ({"state": "failed"}, "x: no run has a result (1 failed)"),
    ],
)
def test_what_cannot_be_compared_is_refused(seeds: Path, capsys: pytest.CaptureFixture, other: dict, said: str):
    make("x/0", **({"metrics": {"test/accuracy": 0.95}} | other))
    assert compare("a", "x", "--metric", "test/accuracy") == REQUEST
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such run in runs"),
        (["a", "a"], "two groups have the same name"),
        (["a", "x=a/0,a/1"], "a/0 is in both a and x"),
        (["a/0", "x=a/0", "--samples"], "a/0 is in both a/0 and x"),
        (["a", "b", "--metric", "val/accuracy:up"], "write val/accuracy:higher or val/accuracy:lower"),
        (["a", ""], "'' leaves out what to compare"),
        (["a", "x="], "'x=' leaves out what to compare"),
        (["a", "b,"], "'b,' leaves out what to compare"),
        (["a", "=b"], "'=b' leaves out what to compare"),
        (["a,b"], "mixes runs of different configs: optimizer.lr is 0.1 in a/0 and 0.2 in b/0"),
        (["a", "b", "--metric", "test/thing"], "is more of it better? write test/thing:higher or test/thing:lower"),
        (["a", "b", "--metric", "test/acuracy"], "did you mean test/accuracy?"),
        (["a", "b", "--save", "x.doc"], "must end in one of .md, .tex, .csv, .png, .pdf, .svg"),
        (["a", "b", "--save", "no/x.md"], "there is no folder no"),
        (["a:3"], "is no sweep"),
        (["a", "b/0", "--samples"], "a is 5 runs: name one"),
        (["a/0", "b/0", "--samples"], "leyden evaluate a/0 --save-predictions"),
    ],
)
def test_what_is_asked_wrongly_is_refused(seeds: Path, capsys: pytest.CaptureFixture, words: list[str], said: str):
    assert compare(*words) == REQUEST
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_force_compares_and_says_what_it_went_over(seeds: Path, capsys: pytest.CaptureFixture):
    for seed in range(3):
        make(f"x/{seed}", seed=seed, sha256="others", metrics={"test/accuracy": 0.95 + seed / 100})
    assert compare("a", "x", "--metric", "test/accuracy", "--force") == 0
    out = capsys.readouterr().out
    assert "forced: x/0 of x measured test/accuracy on digits" in out
    assert "x is better than a by" in out
    assert "(Welch t, n = 5 seeds and 3 seeds)" in out
    for seed in range(3, 5):
        make(f"x/{seed}", seed=seed, sha256="others", metrics={"test/accuracy": 0.95})
    assert compare("a", "x", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 5 seeds and 5 seeds)" in capsys.readouterr().out  # seeds of other data do not pair


def test_a_seed_of_several_runs_pairs_with_none(seeds: Path, capsys: pytest.CaptureFixture):
    make("b/again", seed=4, lr=0.3, metrics={"test/accuracy": 0.9})
    assert compare("a", "b", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 5 seeds and 6 runs)" in capsys.readouterr().out
    make("a/again", seed=4, lr=0.3, metrics={"test/accuracy": 0.9})
    assert compare("a", "b", "--metric", "test/accuracy", "--force") == 0
    assert "(Welch t, n = 6 runs and 6 runs)" in capsys.readouterr().out


def test_failed_and_pruned_runs_and_older_ones_of_a_seed_are_left_out_and_counted(
    seeds: Path, capsys: pytest.CaptureFixture
):
    make("a/5", seed=5, state="failed")
    make("a/6", seed=6, state="pruned", metrics={"test/accuracy": 0.1})
    make("a/again", seed=4, metrics={"test/accuracy": A[4]})
    assert compare("a", "--metric", "test/accuracy", "--save", "found.csv") == 0
    assert rows()[0]["n"] == "5"
    out = capsys.readouterr().out
    assert "a: left out: 1 failed, 1 pruned" in out
    assert "a: 1 older of the same seed left out" in out


def test_said_directions_and_those_of_a_config_count(seeds: Path, capsys: pytest.CaptureFixture):
    assert compare("a", "b", "--metric", "test/thing:lower") == 0
    assert "b is worse than a" in capsys.readouterr().out
    for path in Path("runs").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["raw"]["checkpoint"] = {"monitor": "val/thing", "mode": "max"}
        path.write_text(json.dumps(manifest))
    assert compare("a", "b", "--metric", "test/thing") == 0
    assert "b is better than a" in capsys.readouterr().out


def test_groups_chosen_by_different_metrics_must_be_told_what_to_compare(seeds: Path, capsys: pytest.CaptureFixture):
    make("x/0", monitor="val/loss", metrics={"test/loss": 0.1})
    assert compare("a", "x") == REQUEST
    assert "a goes by accuracy, x by loss: say what to compare" in capsys.readouterr().err


def test_names_are_no_formulas(workdir: Path):
    for number in range(2):
        for name in "ab":
            make(f"{name}/{number}", data=f"data{number}", metrics={"test/accuracy": 0.5})
    assert compare("$^$=a", "_b=b", "--metric", "test/accuracy", "--save", "f.svg") == 0
    text = Path("f.svg").read_text()
    for legend in ("$^$", " _b"):
        assert f"<!-- {legend} -->" in text


# two models on the same samples


def predictions(run: str, **arrays) -> None:
    folder = Path("runs", run, "evaluations", arrays.pop("when", "now"))
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"split": "test", "sha256": "s", "checkpoint": "step-9.ckpt", "block": 1}
    np.savez(folder / "predictions.npz", **(facts | arrays))


def test_two_models_are_compared_on_the_same_samples(seeds: Path, capsys: pytest.CaptureFixture):
    target = np.arange(200) % 4
    worse, better = np.where(np.arange(200) < 30, -1, target), np.where(np.arange(200) < 8, -1, target)
    predictions("a/0", target=target, prediction=worse)
    predictions("b/0", target=target, prediction=better)
    assert compare("a/0", "b/0", "--samples", "--save", "found.csv") == 0
    assert float(rows()[1]["p"]) == pytest.approx(2 * 0.5**22)
    assert "b/0 is better than a/0 by 11.0 points of test/accuracy (95 %, +7." in (out := capsys.readouterr().out)
    assert "(McNemar, exact, n = 200 samples)" in out
    predictions("b/0", target=target[:9], prediction=better[:9], split="val", when="later")
    best = Path("runs/b/0/checkpoints/best.ckpt")
    best.parent.mkdir()
    best.with_name("step-7.ckpt").touch()
    best.symlink_to("step-7.ckpt")
    assert compare("a/0", "b/0", "--samples", "--save", "f.svg") == 0
    assert "b/0: these are answers of step-9.ckpt, not of the best checkpoint" in capsys.readouterr().out
    assert "<!-- test/accuracy minus a/0 (points) -->" in Path("f.svg").read_text()
    assert compare("b/0", "a/0", "--samples") == REQUEST
    said = "a/0 has no predictions of val: leyden evaluate a/0 --split val --save-predictions makes them"
    assert said in capsys.readouterr().err
    predictions("b/0", target=target, prediction=better, sha256="other")
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "have answered other samples, if with" in capsys.readouterr().err
    predictions("b/0", target=target[::-1], prediction=better)
    assert compare("a/0", "b/0", "--samples", "--force") == REQUEST
    assert "have answered other samples; evaluate" in capsys.readouterr().err


def test_two_forecasters_are_compared_in_blocks_of_windows(seeds: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    target = rng.normal(size=(100, 3, 1)).astype(np.float32)
    target[4] = np.nan  # nothing was observed
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        prediction = target + noise * rng.normal(size=target.shape).astype(np.float32)
        error = np.square(prediction - target).mean((1, 2))
        predictions(run, target=target, prediction=prediction, error=error, block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "b/0 is better than a/0 by" in out
    assert "of test/mse" in out
    assert "(paired t, n = 16 blocks of samples)" in out
    for run, noise in (("a/0", 1.0), ("b/0", 0.1)):
        predictions(run, target=target[:3], prediction=target[:3], error=np.full(3, noise), block=6)
    assert compare("a/0", "b/0", "--samples") == 0
    out = capsys.readouterr().out
    assert "but one value says nothing about spread: nothing can be tested (n = 1 block of samples)" in out
    predictions("b/0", target=np.full_like(target, np.nan), prediction=target, error=np.full(100, np.nan), block=6)
    assert compare("a/0", "b/0", "--samples") == REQUEST
    assert "nothing was observed of what b/0 has answered" in capsys.readouterr().err


def test_predictions_are_judged_by_what_they_are():
    image, label = torch.zeros(2, 1, 8, 8), torch.tensor([2, 0])
    proba = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.9, 0.0]])
    assert pair_with_targets(ImageBatch(image, label), proba)["prediction"].tolist() == [2, 1]
    values = pair_with_targets((image, torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.tensor([[1.0, 4.0], [3.0, 4.0]]))
    assert values["error"].tolist() == [2, 0]
    with pytest.raises(UserError, match="of a TextBatch there is no prediction for each sample"):
        pair_with_targets(TextBatch(label[None], label[None], False, 1.0, 2.0), torch.zeros(1, 2, 9))
    with pytest.raises(UserError, match="neither probabilities"):
        pair_with_targets((image, torch.zeros(2)), torch.zeros(2, 3))


@pytest.mark.slow
def test_evaluate_saves_what_a_classifier_and_a_forecaster_say_of_each_sample(workdir: Path):
    small = ["trainer.max_epochs=1", "data.batch_size=50", "data.limit=100"]
    for seed in range(2):
        assert cli("train", *small, "name=net", f"seed={seed}", f"optimizer.lr={[1e-6, 1e-2][seed]}") == 0
        assert cli("evaluate", "last", "--save-predictions") == 0
    worse, better = sorted(Path("runs/net").iterdir())
    for path in (worse, better):
        (saved,) = path.glob("evaluations/*/predictions.npz")
        arrays, run = np.load(saved), Run(path)
        right = arrays["prediction"] == arrays["target"]
        assert right.mean() == pytest.approx(run.status["metrics"]["test/accuracy"], abs=1e-6)
        assert arrays["probability"].shape == (359, 10)
        assert arrays["probability"].argmax(1).tolist() == arrays["prediction"].tolist()
        assert str(arrays["sha256"]) == run.manifest["data"]["test"]["sha256"]
    assert compare(str(worse), str(better), "--samples") == 0
    assert cli("train", "model=nlinear", "data=sunspots", "trainer.max_epochs=1", "name=series") == 0
    assert cli("evaluate", "last", "--save-predictions") == 0
    run = find_run("last")
    (saved,) = run.path.glob("evaluations/*/predictions.npz")
    arrays = np.load(saved)
    assert np.mean(arrays["error"]) == pytest.approx(run.status["metrics"]["test/mse"], rel=1e-4)
    assert int(arrays["block"]) == 2 * arrays["prediction"].shape[1]
