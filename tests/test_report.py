"""Averages, tables and intervals against hand-computed numbers, on tiny results."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sumlib.base.paths import ROOT
from sumlib.data.groups import TASK_GROUPS
from sumlib.report import results as report
from sumlib.report import tables as printed
from sumlib.report.intervals import (
    Bootstrap,
    Estimate,
    MissingRun,
    ratio_difference,
    resample,
    share_interval,
)

MODELS = {
    "sam": ("SAM", "none", 0),
    "sum-medium": ("SUM", "FT-Medium", 0),
    "sum-medium-seed1": ("SUM", "FT-Medium", 1),
}


def results(runs=MODELS, images=6, masks=3, shift=0.1, seed=0, rounds=(1, 3, 5, 6)) -> pd.DataFrame:
    """Per-mask results of `runs` on all 14 sets; every run but SAM is better by `shift` (+0.01 per seed),
    with paired noise.
    """
    generator, frames = np.random.default_rng(seed), []
    for task, names in report.dataset_order().items():
        for dataset in names:
            base = generator.uniform(0.2, 0.7, images * masks)
            for run, (model, train_set, number) in runs.items():
                for prompt in ("point", "box", "boundary-point"):
                    for r in rounds:
                        iou = base + (run != "sam") * (
                            shift + 0.01 * number + generator.normal(0, 0.02, len(base))
                        )
                        frames.append(
                            pd.DataFrame(
                                {
                                    "run": run,
                                    "model": model,
                                    "train_set": train_set,
                                    "seed": number,
                                    "task": task,
                                    "dataset": dataset,
                                    "image": np.repeat([f"i{i}" for i in range(images)], masks),
                                    "mask": np.tile(np.arange(masks), images),
                                    "prompt": prompt,
                                    "setting": "oracle",
                                    "round": r,
                                    "iou": iou.astype(np.float32),
                                    "biou": (iou / 2).astype(np.float32),
                                }
                            )
                        )
    return pd.concat(frames, ignore_index=True)


def difference(frame: pd.DataFrame, a: str, b: str, seed: int = 5, resamples: int = 100, **point) -> Estimate:
    """Run a - run b, by a bootstrap of these two alone."""
    both = frame[frame["run"].isin([a, b])]
    bootstrap = Bootstrap(both, np.random.default_rng(seed), resamples)
    return bootstrap.contrast(
        {a: 1.0, b: -1.0}, **({"prompt": "point", "rounds": 1, "metric": "mIoU"} | point)
    )


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return results()


@pytest.fixture(scope="module")
def scores(frame) -> pd.DataFrame:
    return report.aggregate(frame)


def tiny(rows) -> pd.DataFrame:
    """Results of run "a" from rows (task, dataset, image, iou)."""
    frame = pd.DataFrame(rows, columns=["task", "dataset", "image", "iou"])
    return frame.assign(
        run="a",
        model="A",
        train_set="none",
        seed=0,
        mask=range(len(frame)),
        prompt="point",
        setting="oracle",
        round=1,
        biou=0.0,
    )


def test_averages_by_hand():
    rows = [
        ("salient", "COIFT", "x", 0.2),
        ("salient", "COIFT", "x", 0.4),
        ("salient", "COIFT", "y", 0.9),
        ("salient", "BIG", "z", 0.7),
        ("part", "PACO", "p", 1.0),
    ]
    scores = report.aggregate(tiny(rows)).query("metric == 'mIoU'").set_index(["task", "dataset"])
    assert scores.loc[("salient", "COIFT"), "value"] == pytest.approx(50)  # masks, not images, are averaged
    assert scores.loc[("salient", "average"), "value"] == pytest.approx(60)
    assert scores.loc[("all", "average"), "value"] == pytest.approx(
        (50 + 70 + 100) / 3
    )  # over data sets, not over groups
    assert scores.loc[("all", "average"), "masks"] == 5


def test_paper_has_each_table_and_its_averages_agree():
    paper = printed.paper_tables()
    assert len(paper) == 2035
    assert {str(number) for number in printed.TABLES} <= set(paper["table"])
    rows = paper.query("table == '14' and metric == 'mIoU' and model == 'SAM'").set_index(
        ["task", "dataset"]
    )["value"]
    assert rows["part", "average"] == pytest.approx(rows["part"].drop("average").mean(), abs=0.06)
    assert [len(names) for names in report.dataset_order().values()] == [6, 3, 5]


@pytest.mark.parametrize("number", printed.TABLES)
def test_table_holds_the_papers_rows_and_differences(number, scores):
    table = printed.build_table(number, scores)
    assert len(table) == (printed.paper_tables()["table"] == str(number)).sum()
    spec, keys = printed.TABLES[number], ["rounds", "metric", "task", "dataset"]
    compared = table["model"].map(spec.reference_of).notna()
    assert compared.any() and table.loc[~compared, ["difference", "paper_difference"]].isna().all().all()
    for _, row in table[compared].iterrows():
        reference = table[table["model"] == spec.reference_of(row["model"])].set_index(keys)
        assert row["paper_difference"] == pytest.approx(
            row["paper"] - reference.loc[tuple(row[keys]), "paper"]
        )
    text = printed.table_markdown(number, table)
    assert text.startswith(f"# Table {number}. ") and "nan" not in text and "<NA>" not in text
    for line in text.splitlines():
        assert not line.startswith("|") or line.endswith("|")


def test_table_6_calls_the_main_models_by_their_encoder(scores):
    table = printed.build_table(6, scores)
    ours = report.over_seeds(scores).query(
        "model == 'SUM' and train_set == 'FT-Medium' and task == 'part' and dataset == 'average' "
        "and prompt == 'point' and rounds == 1 and metric == 'mIoU'"
    )
    row = table.query("model == 'SUM ViT-H' and task == 'part' and rounds == 1 and metric == 'mIoU'").iloc[0]
    assert row["ours"] == pytest.approx(ours["ours"].item()) and np.isfinite(row["difference"])
    assert "SAM of the same size" in printed.table_markdown(6, table)


def test_seeds_become_mean_and_deviation(scores):
    medium = report.over_seeds(scores).query(
        "model == 'SUM' and task == 'part' and dataset == 'average' "
        "and prompt == 'box' and rounds == 1 and metric == 'mIoU'"
    )
    values = scores.query(
        "model == 'SUM' and task == 'part' and dataset == 'average' "
        "and prompt == 'box' and rounds == 1 and metric == 'mIoU'"
    )["value"]
    assert medium["seeds"].item() == 2
    assert medium["ours"].item() == pytest.approx(values.mean())
    assert medium["sd"].item() == pytest.approx(abs(values.iloc[0] - values.iloc[1]) / np.sqrt(2))


def test_table_markdown_layout(scores):
    text = printed.table_markdown(14, printed.build_table(14, scores))
    assert "## mIoU, 1 point" in text and "## mBIoU, 1 point" in text
    rows = [line for line in text.splitlines() if line.startswith("| SUM FT-Medium")]
    assert len(rows) == 2 and " ± " in rows[0] and "(+6.5)" in rows[0]  # the paper's gain on salient objects
    assert all(
        "–" in line for line in text.splitlines() if line.startswith("| SUM FT-Large")
    )  # not evaluated here
    assert "## mIoU, box and 5 points" in printed.table_markdown(18, printed.build_table(18, scores))


def test_written_tables_are_the_same_bytes(frame, scores, tmp_path):
    first = printed.write_tables(scores, tmp_path / "a", tmp_path / "a")
    shuffled = frame.sample(frac=1, random_state=1)
    for column in ("run", "dataset"):
        shuffled[column] = shuffled[column].astype("category")
    second = printed.write_tables(report.aggregate(shuffled), tmp_path / "b", tmp_path / "b")
    assert len(first) == 2 * len(printed.TABLES) + 1
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert (
        not list(tmp_path.rglob("*.tmp"))
        and b"\r" not in first[0].read_bytes()
        and b"-0.00" not in first[-1].read_bytes()
    )


def test_load_results_names_file_and_remedy(frame, tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        report.load_results(tmp_path)
    for run, part in frame.groupby("run"):
        part.to_parquet(tmp_path / f"{run}.parquet")
    assert len(report.load_results(tmp_path)) == len(frame)
    frame[frame["run"] == "sam"].drop(columns="biou").to_parquet(tmp_path / "sam.parquet")
    with pytest.raises(
        ValueError, match="sam.parquet lacks the columns biou: .*`dvc repro evaluate_baseline@"
    ):
        report.load_results(tmp_path)
    frame[(frame["run"] == "sam") & (frame["dataset"] != "PACO")].to_parquet(tmp_path / "sam.parquet")
    with pytest.raises(ValueError, match="run sam .* PACO: repeat it with `dvc repro evaluate_baseline@sam`"):
        report.load_results(tmp_path)
    frame[frame["run"] == "sum-medium"].to_parquet(tmp_path / "sam.parquet")
    with pytest.raises(ValueError, match="sam.parquet holds the run"):
        report.load_results(tmp_path)


def test_bootstrap_value_is_the_difference_of_scores(frame, scores):
    point = {"prompt": "point", "rounds": 3, "metric": "mBIoU"}
    bootstrap = Bootstrap(frame, np.random.default_rng(0), 200)
    ours = scores.query(
        "prompt == 'point' and rounds == 3 and metric == 'mBIoU' and dataset == 'average'"
    ).set_index(["run", "task"])["value"]
    for task in ("salient", "entity", "part", "all"):
        estimate = bootstrap.contrast({"sum-medium": 1, "sam": -1}, task, **point)
        assert estimate.value == pytest.approx(ours["sum-medium", task] - ours["sam", task])
        assert estimate.low < estimate.value < estimate.high
    compared = bootstrap.compare({("SUM", "FT-Medium"): 1.0, ("SAM", "none"): -1.0}, "part", **point)
    each = [ours[run, "part"] - ours["sam", "part"] for run in ("sum-medium", "sum-medium-seed1")]
    assert compared.seeds == pytest.approx(each) and compared.value == pytest.approx(np.mean(each))


def test_bootstrap_resamples_images_not_masks():
    """Two images with 3 and 1 masks: the resampled means are those of the four possible draws, weighted by
    masks.
    """
    rows = [
        ("part", "PACO", "x", 0.0),
        ("part", "PACO", "x", 0.0),
        ("part", "PACO", "x", 0.0),
        ("part", "PACO", "y", 0.8),
    ]
    estimate = Bootstrap(tiny(rows), np.random.default_rng(0), 2000).contrast(
        {"a": 1.0}, "PACO", prompt="point", rounds=1, metric="mIoU"
    )
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((20, 0, 80))


def test_bootstrap_intervals_cover_the_truth():
    """Differences drawn around 0.05 with strong image effects: about 95 % of the intervals hold it (binomial
    bounds, fixed seed).
    """
    generator, hits, images = np.random.default_rng(3), 0, 40
    for _ in range(120):
        effect = 0.05 + generator.normal(0, 0.1, images).repeat(4) + generator.normal(0, 0.02, images * 4)
        base = tiny([("part", "PACO", f"i{i // 4}", 0.0) for i in range(images * 4)])
        both = pd.concat([base, base.assign(run="b", model="B", iou=effect)])
        estimate = difference(both, "b", "a", seed=generator.integers(1000), resamples=400, where="part")
        hits += estimate.low <= 5 <= estimate.high
    assert 0.89 <= hits / 120 <= 0.985


def test_seeds_without_a_prompt_are_left_out(frame):
    """SUM has two seeds, of which one was evaluated from a boundary point: the comparison there is that
    seed's.
    """
    some = frame[(frame["round"] == 1) & (frame["prompt"] == "point")]
    extra = some[some["run"].isin(["sam", "sum-medium"])].assign(prompt="boundary-point")
    bootstrap = Bootstrap(pd.concat([some, extra], ignore_index=True), np.random.default_rng(0), 50)
    models = {("SUM", "FT-Medium"): 1.0, ("SAM", "none"): -1.0}
    point = {"rounds": 1, "metric": "mIoU"}
    assert len(bootstrap.compare(models, "all", prompt="point", **point).seeds) > 1
    alone = bootstrap.compare(models, "all", prompt="boundary-point", **point)
    assert alone.seeds == () and alone.value == pytest.approx(
        bootstrap.contrast({"sum-medium": 1.0, "sam": -1.0}, "all", prompt="point", **point).value
    )


def test_bootstrap_is_deterministic_and_refuses_unpaired_runs(frame):
    assert difference(frame, "sum-medium", "sam", where="all") == difference(
        frame, "sum-medium", "sam", where="all"
    )
    missing = frame.drop(frame[(frame["run"] == "sam") & (frame["dataset"] == "BIG")].index[:1])
    with pytest.raises(ValueError, match="other masks of BIG"):
        difference(missing, "sum-medium", "sam", where="all")
    with pytest.raises(MissingRun, match="evaluate_baseline@sam"):
        difference(frame, "sam", "sum-medium", where="all", rounds=9)
    with pytest.raises(MissingRun, match="evaluate@sum-medium"):
        difference(frame, "sum-medium", "sam", where="all", rounds=9)


def test_resamples_draw_as_many_images_as_there_are():
    for one_by_one in (False, True):
        counts = resample(7, np.random.default_rng(0), 500, one_by_one=one_by_one)
        assert counts.shape == (500, 7) and (counts.sum(1) == 7).all()
        assert counts.mean(0) == pytest.approx(np.ones(7), abs=0.15)
        assert counts.var(0) == pytest.approx(np.full(7, 6 / 7), abs=0.25)  # of a multinomial draw


def test_every_interval_draws_the_same_images():
    """The mean of masks, from one data set of a bootstrap and from `share_interval`: the same numbers to the
    last digit.
    """
    values, images = np.linspace(0, 1, 12), np.repeat(list("abcd"), 3)
    rows = [("part", "PACO", image, value) for image, value in zip(images, values)]
    estimate = Bootstrap(tiny(rows), np.random.default_rng(3), 300).contrast(
        {"a": 1.0}, "PACO", prompt="point", rounds=1, metric="mIoU"
    )
    share = share_interval(values, images, np.random.default_rng(3), 300)
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([100 * value for value in share])


def test_one_training_against_several_counts_as_one(frame):
    one = frame[frame["run"] == "sum-medium"].assign(run="other", model="Vanilla")
    bootstrap = Bootstrap(pd.concat([frame, one]), np.random.default_rng(0), 50)
    point = {"prompt": "point", "rounds": 1, "metric": "mIoU"}
    sam, vanilla = ("SAM", "none"), ("Vanilla", "FT-Medium")
    against_sam = bootstrap.compare({("SUM", "FT-Medium"): 1.0, sam: -1.0}, "all", **point)
    against_one = bootstrap.compare({("SUM", "FT-Medium"): 1.0, vanilla: -1.0}, "all", **point)
    assert (against_sam.trainings, len(against_sam.seeds)) == (2, 2)
    assert (against_one.trainings, len(against_one.seeds)) == (1, 2)


def test_reports_and_figures_load_no_torch():
    """A notebook that reads tables starts in a second, and depends on no model."""
    code = (
        "import importlib, pkgutil, sys, sumlib.figures, sumlib.report\n"
        "for package in (sumlib.report, sumlib.figures):\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "assert 'sumlib.figures.curves' in sys.modules\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'torch'][:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_sets_come_from_the_registry(monkeypatch, frame):
    """A new test set has a row in the scores, in its task group."""
    assert report.dataset_order() == TASK_GROUPS
    paper = printed.paper_tables().query("table == '14' and dataset != 'average'")
    assert list(paper["dataset"].unique()) == [name for names in TASK_GROUPS.values() for name in names]
    monkeypatch.setitem(TASK_GROUPS, "entity", [*TASK_GROUPS["entity"], "Mine"])
    new = frame[frame["dataset"] == "EntitySeg-2"].assign(dataset="Mine")
    scores = report.aggregate(pd.concat([frame, new])).query("run == 'sam'")
    assert list(scores.query("task == 'entity'")["dataset"].unique()) == [*TASK_GROUPS["entity"], "average"]


def test_ratio_difference_by_hand():
    estimate = ratio_difference([[9, 2], [9, 2]], [[10, 10], [10, 10]], generator=np.random.default_rng(0))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((70, 70, 70))
