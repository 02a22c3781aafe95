"""`leyden compare` says which group is better and by how much, and claims only what its runs can show."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from leyden import statistics
from leyden.run.directory import Run
from support.comparison import A, B, compare, edit, make, rows

REQUEST = 2  # the exit code of a wrong request


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


def test_no_interval_of_a_share_ends_above_100_per_cent(workdir: Path, capsys: pytest.CaptureFixture):
    for seed, value in enumerate((0.99, 0.9)):
        make(f"a/{seed}", seed=seed, metrics={"test/accuracy": value, "test/loss": 1 - value})
    assert compare("a", "--metric", "test/accuracy", "--metric", "test/loss", "--save", "found.csv") == 0
    assert "37.3 … 100.0" in capsys.readouterr().out  # 94.5 ± 12.706 x 6.364 / sqrt 2
    accuracy, loss = rows()
    assert float(accuracy["t_high"]) == 1
    assert float(accuracy["t_low"]) == pytest.approx(0.945 - 12.706 * 0.045, abs=1e-4)
    assert float(loss["t_low"]) < 0 < float(loss["t_high"])


def test_what_cannot_be_shown_comes_with_what_could_have_been(seeds: Path, capsys: pytest.CaptureFixture):
    for seed in range(5):
        metrics = {"test/accuracy": A[seed] + [0.01, -0.01, 0.005, -0.008, 0.004][seed]}
        make(f"c/{seed}", seed=seed, metrics=metrics)
    assert compare("a", "c", "--metric", "test/accuracy") == 0
    out = capsys.readouterr().out
    error = np.std([0.01, -0.01, 0.005, -0.008, 0.004], ddof=1) / 5**0.5
    least = statistics.detectable(statistics.Difference(0, "t", error=error, df=4))
    assert "no difference of test/accuracy can be shown: c minus a is +0.02 ± 1.08 points (95 %), p = 0.96" in out
    assert f"the smallest that groups of this size could show is about {100 * least:.2f} points" in out


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
    note = "b minus a is over the 4 seeds that both have, 2 left out"
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
    assert "older runs of the same seed" not in capsys.readouterr().out


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
    assert "folds share most of their training data and all data of test/accuracy" in out
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
    assert "not have the same unit on every task" in capsys.readouterr().out


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
    assert "test/error does not have the same unit on every task" in capsys.readouterr().out


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
