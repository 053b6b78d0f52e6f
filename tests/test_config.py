"""sumlib.config.params and sumlib.config.schema: what params.yaml says, and what is refused with which
message."""

import re
import time

import pytest

from sumlib.base.paths import PARAMS, ROOT
from sumlib.config.params import ConfigError, load_config

TEXT = PARAMS.read_text(encoding="utf-8")
TUNED = load_config("micro").finetune
WARMUP, ITERATIONS = f"    warmup: {TUNED.warmup}\n", f"iterations: {TUNED.iterations}\n"
RUNS = [
    "sam",
    "human-small",
    "human-medium",
    "human-large",
    "vanilla-small",
    "vanilla-medium",
    "vanilla-large",
    "sum-small",
    "sum-medium",
    "sum-large",
    "mask-refinement-medium",
    "sum-no-task-prompt-medium",
    "sum-continuous-medium",
    "sum-uniform-sampling-medium",
]
HUMAN, SUM = (
    "human-small: {<<: *human, budget: small",
    "sum-small: {<<: *sum, budget: small",
)
VANILLA = "vanilla-small: {<<: *vanilla, budget: small"
SEEDED = ["human", "vanilla", "mask-refinement", "sum-no-task-prompt", "sum"]


def refused(tmp_path, old: str, new: str) -> str:
    """The message for params.yaml with `old` (once or more in it) replaced by `new`."""
    assert old in TEXT, f"{old!r} is no longer in params.yaml: adapt the test"
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config("paper", path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_paper_profile_has_the_papers_numbers():
    config = load_config("paper")
    tuned, masks = config.finetune, config.pseudo_label
    assert (config.model.type, tuned.iterations, tuned.images, tuned.rounds, tuned.prompts_per_image) == (
        "vit_h",
        6000,
        40,
        7,
        30,
    )
    assert (tuned.lr, tuned.layer_decay, tuned.theta) == (1e-5, 0.8, 0.6)
    assert (tuned.focal_weight, tuned.dice_weight, tuned.iou_weight) == (20, 1, 1)
    assert (
        masks.points_per_side,
        masks.pred_iou_thresh,
        masks.stability_thresh,
        masks.max_area_fraction,
    ) == (32, 0.88, 0.95, 0.95)
    assert (config.refine.min_iou, config.evaluate.boundary_distance, config.pseudo_label.limit_images) == (
        0.7,
        10,
        250_000,
    )


def test_all_runs_of_the_comparison_exist():
    runs = load_config("micro").runs
    assert list(runs)[0] == "sam" and runs["sam"].train_set == "none"
    expected = {*RUNS, *(f"{name}-medium-seed{seed}" for name in SEEDED for seed in (1, 2))}
    assert expected <= set(runs)  # more are welcome
    for name in expected:
        run = runs[name]
        stem, _, seed = name.partition("-seed")
        assert run.name == name and run.seed == int(seed or 0)
        assert (run.model, run.budget) == (runs[stem].model, runs[stem].budget)
        assert name == "sam" or run.budget in name.split("-")


def test_images_are_split_by_the_ratio_and_their_sum_is_the_same_for_every_run():
    config = load_config("paper")
    split = {name: config.images_per_iteration(run) for name, run in config.runs.items() if name != "sam"}
    assert split["sum-small"] == split["vanilla-medium"] == (20, 20)
    assert split["sum-large"] == (27, 13) and split["human-large"] == (40, 0)
    for profile in ("smoke", "micro"):
        config = load_config(profile)
        for run in config.runs.values():
            human, unlabeled = config.images_per_iteration(run)
            assert (
                human + unlabeled == config.finetune.images
                and human >= 1
                and (unlabeled >= 1) == run.unlabeled
            )


def test_every_run_has_the_same_number_of_prompts_in_a_step():
    for profile in ("smoke", "micro", "paper"):
        config = load_config(profile)
        for run in config.runs.values():
            human, unlabeled = config.prompts_per_iteration(run)
            assert (len(human), len(unlabeled)) == config.images_per_iteration(run)
            assert sum(human) + sum(unlabeled) == config.finetune.images * config.finetune.prompts_per_image
            assert max(unlabeled, default=1) - min(unlabeled, default=1) <= 1 <= min([*human, *unlabeled])
            assert not unlabeled or set(human) == {config.finetune.human_prompts}


def test_profile_from_argument_then_environment_then_file(monkeypatch):
    monkeypatch.setenv("SUM_PROFILE", "paper")
    assert load_config().profile == "paper" and load_config("smoke").profile == "smoke"
    monkeypatch.delenv("SUM_PROFILE")
    assert load_config().profile == "micro"


def test_paths_are_absolute_and_follow_the_data_root():
    config = load_config("smoke")
    assert config.data_root == ROOT / "sample" and config.checkpoint.is_relative_to(config.data_root)


def test_configuration_is_frozen():
    with pytest.raises(AttributeError):
        load_config("smoke").finetune.lr = 1.0


def test_unknown_run_names_the_nearest():
    with pytest.raises(ConfigError, match="no run 'sum-meduim' in params.yaml; the nearest are: sum-medium"):
        load_config("smoke").run("sum-meduim")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            WARMUP,
            WARMUP.replace("warmup", "warmpu"),
            "unknown key finetune.micro.warmpu; the nearest known one is warmup",
        ),
        ("\nfinetune:\n", "\nfinetun:\n", "unknown key finetun; the nearest known one is finetune"),
        ("    iou_weight: 1.0\n", "", "missing key refine.smoke.iou_weight"),
        ("lr: 1.0e-5\n", "lr: -1.0e-5\n", "finetune.paper.lr is -1e-05; allowed: above 0"),
        (
            "lr: 1.0e-5\n",
            "lr: 1e-5\n",
            "finetune.paper.lr is '1e-5'; allowed: a number; in YAML write 1.0e-4 for 1e-4",
        ),
        ("lr: 1.0e-5\n", "lr: .nan\n", "finetune.paper.lr is nan; allowed: a number"),
        ("theta: 0.6", "theta: 1.6", "finetune.smoke.theta is 1.6; allowed: at least 0 and at most 1"),
        (ITERATIONS, "iterations: 120.5\n", "finetune.micro.iterations is 120.5; allowed: a whole number"),
        (ITERATIONS, "iterations: true\n", "finetune.micro.iterations is True; allowed: a whole number"),
        ("bf16: false", "bf16: 0", "finetune.smoke.bf16 is 0; allowed: true or false"),
        (
            "limit_images: 250000",
            "limit_images: 0",
            "pseudo_label.paper.limit_images is 0; allowed: at least 1",
        ),
        (
            "    shares: 1\n",
            "    shares: 3\n",
            "finetune.paper.shares is 3, which does not divide images, 40",
        ),
        (
            "    human_prompts: 10\n",
            "    human_prompts: 31\n",
            "finetune.paper.human_prompts is 31; allowed: at most prompts_per_image, 30",
        ),
        (
            "type: vit_h",
            "type: vit_x",
            "model.paper.type is 'vit_x'; allowed: one of micro, micro_l, micro_b, vit_b, vit_l, vit_h",
        ),
        (
            "    prompts: [point]\n",
            "    prompts: [point, pox]\n",
            "evaluate.smoke.prompts[1] is 'pox'; allowed: one of point, box, boundary-point",
        ),
        (
            "settings: [oracle]",
            "settings: []",
            "evaluate.smoke.settings is []; allowed: a list of different values, not empty",
        ),
        (
            "large: 2.0}",
            "huge: 2.0}",
            "unknown key data.smoke.human_to_unlabeled.huge; the nearest known one is",
        ),
        ("profile: micro", "profile: mikro", "profile is 'mikro'; the nearest are: micro"),
        ("profile: micro", "profile: null", "profile is None; the nearest are: "),
        (HUMAN, HUMAN + ", unlabeled: true", "human_only.human-small.pseudo_labels is ''; allowed with"),
        (
            SUM,
            SUM + ", unlabeled: false, uncertainty_loss: false, uncertainty_sampling: false",
            "with_labels.sum-small.unlabeled is false; put it under human_only",
        ),
        (
            "runs: {<<",
            "runs: {mine: {model: SUM, budget: small}, <<",
            "runs must be what human_only and with_labels hold together; put entries there",
        ),
        (
            "run: sum-medium,",
            "run: sum-meduim,",
            "labellers.sum.run is 'sum-meduim'; the nearest are: sum-medium",
        ),
        ("masks: masks-sum", "masks: mine", "labellers.sum.masks is 'mine'; allowed: masks-sum"),
        ("medium-sum: {<<", "mine: {<<", "with_labels.sum-round2-medium.pseudo_labels is 'medium-sum'"),
        ("unlabeled: SA-1B", "unlabeled: SA-1", "data.paper.unlabeled is 'SA-1'; the nearest are: SA-1B"),
        ("task: salient}", "task: salent}", "datasets.train.HQSeg-44K.task is 'salent'; allowed: one of"),
        (
            "  dev:\n",
            "  dev:\n    COIFT: {folders: [a], layout: b, task: part}\n",
            "datasets.test.COIFT stands under",
        ),
        (ITERATIONS, f"iterations: {10**8}\n", "finetune.micro.iterations is 100000000; allowed: at least 1"),
        (
            ITERATIONS,
            f"iterations: {10**400}\n",
            "finetune.micro.iterations is a number of 398 digits or more",
        ),
        ("lr: 1.0e-5\n", f"lr: {10**400}\n", "finetune.paper.lr is a number of 398 digits or more; allowed"),
        ("lr: 1.0e-5\n", "lr: 1" + 5000 * "0" + "\n", "not valid YAML: Exceeds the limit"),
        (WARMUP, WARMUP + WARMUP, "not valid YAML: key 'warmup' stands twice"),
        ("profile: micro", "profile: [", "not valid YAML"),
        (
            SUM,
            SUM.replace("small", "none").replace("sum-none", "sum-small"),
            "with_labels.sum-small.budget is 'none'; allowed: none for a baseline",
        ),
        ("\n  sum-small: {", "\n  sam: {", "with_labels.sam has the name of a baseline"),
        (
            HUMAN,
            HUMAN + ", uncertainty_loss: true",
            "human_only.human-small.uncertainty_loss is True; allowed: False while unlabeled is false",
        ),
        (
            HUMAN,
            HUMAN + ", theta: 0.5",
            "human_only.human-small.theta is 0.5; allowed: None while unlabeled is false",
        ),
        (
            HUMAN,
            HUMAN + ", tuning: lorra",
            "human_only.human-small.tuning is 'lorra'; allowed: one of full, decoder, adapter, lora",
        ),
        (
            SUM,
            f"{SUM}, method: augseg, consistency: mixed, uncertainty_loss: false",
            "with_labels.sum-small.uncertainty_sampling is True; allowed: False with method augseg alone",
        ),
        (
            SUM,
            SUM + ", consistency: mixed, method: hq_sam",
            "with_labels.sum-small.consistency is 'mixed'; allowed: 'none' without method: augseg",
        ),
        (
            SUM + ", pseudo_labels: small",
            SUM + ", pseudo_labels: small, method: u2p",
            "with_labels.sum-small.method is 'u2p'; the nearest are: u2pl",
        ),
        (
            SUM + ", pseudo_labels: small",
            SUM + ", pseudo_labels: small, method: u2pl",
            "with_labels.sum-small.contrast is 0.0; allowed with method u2pl: above 0",
        ),
        (
            SUM + ", pseudo_labels: small",
            SUM + ", pseudo_labels: small, uncertainty: two-decoders",
            "with_labels.sum-small.uncertainty is 'two-decoders'; allowed without method: discrepancy",
        ),
        (
            SUM,
            SUM + ", method: augseg, consistency: box, uncertainty: discrepancy",
            "with_labels.sum-small.uncertainty is 'discrepancy'; allowed: 'refinement' with method augseg",
        ),
        (
            f"{SUM}, pseudo_labels: small",
            f"{SUM}, pseudo_labels: medium",
            "with_labels.sum-small.pseudo_labels is 'medium'; allowed with budget small: one of small",
        ),
        (
            SUM,
            SUM + ", backbone: vit_x",
            "with_labels.sum-small.backbone is 'vit_x'; allowed: one of vit_h, vit_l, vit_b",
        ),
        ("type: micro_b", "type: micro_c", "backbones.smoke.vit_b.type is 'micro_c'"),
        (
            SUM,
            SUM + ", uncertainty: entropy",
            "with_labels.sum-small.uncertainty is 'entropy'; allowed: one of refinement, confidence",
        ),
        (
            HUMAN,
            HUMAN + ", pseudo_labels: small",
            "human_only.human-small.pseudo_labels is 'small'; allowed: '' while unlabeled is false",
        ),
        (
            VANILLA,
            VANILLA + ", theta: 0.5",
            "with_labels.vanilla-small.theta is 0.5; allowed: None without uncertainty_loss",
        ),
        (
            VANILLA,
            VANILLA + ", uncertainty: confidence",
            "with_labels.vanilla-small.uncertainty is 'confidence'; allowed: 'refinement' without uncertai",
        ),
        (
            "finetune/sum-medium.safetensors",
            "finetune/sum-large.safetensors",
            "labellers.sum.model is 'artifacts/finetune/sum-large.safetensors'; allowed with run sum-medium: "
            "artifacts/finetune/sum-medium.safetensors",
        ),
        ("run: sum-medium,", "run: sam,", "labellers.sum.run is 'sam'; the nearest are: "),
        (
            "run: sum-medium,",
            "run: sum-medium, backbone: vit_b,",
            "labellers.sum.backbone is 'vit_b'; leave it out beside `run`",
        ),
        (
            "run: sum-medium, masks: masks-sum, model: artifacts/finetune/sum-medium.safetensors",
            "run: sum-hq-small, masks: masks-sum, model: artifacts/finetune/sum-hq-small.safetensors",
            "labellers.sum.run is 'sum-hq-small'; allowed: a run whose method has no architecture of its own",
        ),
        (
            "medium-vit_b: {<<: *vit_b, budget: medium}",
            "medium-vit_b: {<<: *vit_b, budget: medium, backbone: vit_l}",
            "refiners.medium-vit_b.backbone is 'vit_l'; allowed: 'vit_b', as under labellers.vit_b",
        ),
    ],
)
def test_bad_parameters_are_refused(tmp_path, old, new, message):
    assert re.match(re.escape(f"params.yaml: {message}"), refused(tmp_path, old, new))


def test_unknown_profile_and_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no profile 'tiny'; the nearest are: smoke, micro, paper"):
        load_config("tiny")
    with pytest.raises(
        FileNotFoundError, match="params.yaml not found; restore it with `git checkout params.yaml`"
    ):
        load_config(path=tmp_path / "params.yaml")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{k}: &m{k} {{<<: [{', '.join([f'*m{k - 1}'] * 10)}]}}\n" for k in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "it has more than 30,000 values, aliases written out"),
        (MERGES, "it has more than 30,000 values, aliases written out"),
        ("a: &a [*a]\n", "it has more than 30,000 values, aliases written out"),
        ("".join(f"k{k}: 1\n" for k in range(60_000)), "it has more than 30,000 values"),
        ("".join(f"run-{k}: {{model: A, budget: small}}\n" for k in range(20_000)), "it has more than"),
        ("text: " + 5_000_000 * "x", "it has 5,000,006 bytes; allowed: 1,000,000"),
        ("[" * 5000 + "]" * 5000, "not valid YAML"),
        ("", "the file must hold keys"),
    ],
    ids=["aliases", "merges", "itself", "keys", "runs", "text", "depth", "nothing"],
)
def test_texts_that_would_take_for_ever_are_refused_at_once(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=f"params.yaml: {message}"):
        load_config("micro", path)
    assert time.monotonic() - start < 15


def test_two_runs_that_reports_would_mix_are_refused(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    new = "  again: {<<: *sum, budget: medium, pseudo_labels: medium, theta: 0.7}\n"
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("\n  sum-large:", f"\n{new}  sum-large:"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match="again has the model, budget and seed of sum-medium.*another `model:`"
    ):
        load_config(path=path)


def test_the_nearest_of_the_allowed_values_is_named(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("consistency: mixed-multi", "consistency: mixed-mlti"), encoding="utf-8")
    with pytest.raises(ConfigError, match="'mixed-mlti'; allowed: one of .*; the nearest is mixed-multi"):
        load_config(path=path)
