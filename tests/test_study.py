"""The human study: blind pages, answers that are checked, and what is counted."""

import base64
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from sumlib.analysis import human_study as study
from sumlib.base.paths import SAMPLE
from sumlib.config.params import load_config
from sumlib.data.registry import open_dataset
from sumlib.pipeline.smoke import pseudo_labels
from sumlib.pseudo.store import PseudoLabels


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return PseudoLabels(pseudo_labels(load_config("smoke"), tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def folder(labels, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "here"
    study.write_study(path, labels, open_dataset("SA-1B", SAMPLE), 10, np.random.default_rng(0))
    return path


def answers(key: pd.DataFrame, rater: str = "ann", **changes) -> pd.DataFrame:
    """Everything right and the same, except for ``changes``."""
    return pd.DataFrame(
        {
            "study": key["study"],
            "rater": rater,
            "trial": key["trial"],
            **dict.fromkeys(study.ANSWERS, "yes"),
            "better": "same",
        }
        | changes
    )


# ---- the page
# ----------------------------------------------------------------------------------------------------------


def test_choose_takes_every_image_before_it_takes_one_twice(labels):
    found = study.choose(labels, 10_000, np.random.default_rng(0))
    first = [name for name, _ in found[: len(labels.images)]]
    assert sorted(first) == sorted(labels.images) and len(set(found)) == len(found)
    assert len(found) == sum(int(labels[name].refined.any((1, 2)).sum()) for name in labels.images)
    assert (
        study.choose(labels, 3, np.random.default_rng(0))
        == found[:3]
        != study.choose(labels, 3, np.random.default_rng(1))
    )


def test_page_is_blind_and_complete(folder):
    page, key = (folder / "study.html").read_text(), study.read_key(folder)
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(key) == 10 and len(sources) == 3 * len(key)
    bare = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"\bsam\b|refined|sa_", bare, re.IGNORECASE), "the page says which mask is whose"
    for trial in key["trial"]:
        for column, values in study.ANSWERS.items():
            assert re.findall(f'name="{trial}-{column}" value="(\\w+)"', bare) == list(values)
    assert "@" not in re.sub(r"@media", "", bare) and key["study"].nunique() == 1 and key["study"][0] in bare
    assert {tuple(order) for order in key[["a", "b"]].to_numpy()} == {("SAM", "refined"), ("refined", "SAM")}


def test_pictures_show_the_masks_of_the_key(folder, labels):
    page, key = (folder / "study.html").read_text(), study.read_key(folder)
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    images = open_dataset("SA-1B", SAMPLE)
    decode = lambda text: cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)[
        ..., ::-1
    ]
    for row, plain, a, b in zip(key.itertuples(), sources[::3], sources[1::3], sources[2::3]):
        label, image = labels[row.image], images[images.names.index(row.image)].image
        masks = {"SAM": label.masks[row.mask], "refined": label.refined[row.mask]}
        both = masks["SAM"] | masks["refined"]
        for shown, who in ((a, row.a), (b, row.b)):
            assert f"data:image/jpeg;base64,{shown}" == study._picture(image, masks[who], both)
            assert decode(shown).shape == decode(plain).shape and max(decode(shown).shape) >= 320
            assert (decode(shown) != decode(plain)).any()


def test_pictures_of_large_images_are_made_smaller_and_show_the_same_outline():
    image, mask = np.full((1500, 3000, 3), 90, np.uint8), np.zeros((1500, 3000), bool)
    mask[300:1200, 500:2500] = True
    plain, drawn = (
        cv2.imdecode(
            np.frombuffer(base64.b64decode(study._picture(image, m, mask).split(",")[1]), np.uint8),
            cv2.IMREAD_COLOR,
        )
        for m in (None, mask)
    )
    assert (
        max(plain.shape) == 800
        and plain.shape == drawn.shape
        and len(study._picture(image, mask, mask)) < 100_000
    )
    rows, columns = np.nonzero(np.abs(plain.astype(int) - drawn).max(-1) > 60)
    height, width = rows.max() - rows.min(), columns.max() - columns.min()
    assert width / height == pytest.approx(2000 / 900, rel=0.03)


def test_a_study_is_never_overwritten(folder, labels):
    with pytest.raises(FileExistsError, match="there is a study already"):
        study.write_study(folder, labels, open_dataset("SA-1B", SAMPLE), 2, np.random.default_rng(1))
    with pytest.raises(FileNotFoundError, match="no study there"):
        study.read_key(folder / "elsewhere")


# ---- answers
# -----------------------------------------------------------------------------------------------------------


def test_answers_are_read_as_they_were_given(folder):
    key = study.read_key(folder)
    given = pd.concat([answers(key, "ann"), answers(key, "bob", better="a")], ignore_index=True)
    for rater, frame in given.groupby("rater"):
        frame.to_csv(folder / f"answers-{rater}.csv", index=False)
    found = study.read_answers(folder)
    pd.testing.assert_frame_equal(found, given.drop(columns="study"), check_dtype=False)
    for path in folder.glob("answers-*.csv"):
        path.unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "other"}, r"answers-x\.csv, line 2: answers to study 'other'"),
        ({"trial": 99}, "line 2: no trial '99'"),
        ({"a_boundary": "maybe"}, "line 2: a_boundary is 'maybe'; allowed are yes, no"),
        ({"better": ""}, "line 2: better is ''; allowed are a, b, same"),
        ({"trial": 1}, "rater 'ann' answers trial 1 twice"),
        (None, "lacks the columns better"),
    ],
)
def test_wrong_answers_name_file_line_and_remedy(folder, changes, message):
    frame = answers(study.read_key(folder), **(changes or {}))
    frame = frame.drop(columns="better") if changes is None else frame
    path = folder / "answers-x.csv"
    frame.to_csv(path, index=False)
    try:
        with pytest.raises(ValueError, match=message):
            study.read_answers(folder)
    finally:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no answers-\*\.csv there"):
        study.read_answers(folder)


def test_unblind_by_hand():
    key = pd.DataFrame(
        {
            "study": "s",
            "trial": [1, 2],
            "image": ["i", "j"],
            "mask": [0, 3],
            "a": ["SAM", "refined"],
            "b": ["refined", "SAM"],
        }
    )
    given = answers(key, a_boundary=["no", "yes"], b_coverage=["yes", "no"], better=["b", "a"]).drop(
        columns="study"
    )
    found = study.unblind(given, key).set_index(["trial", "who"])
    assert found["better"].to_dict() == {
        (1, "SAM"): False,
        (1, "refined"): True,
        (2, "SAM"): False,
        (2, "refined"): True,
    }
    assert found["boundary"].to_dict() == {
        (1, "SAM"): False,
        (1, "refined"): True,
        (2, "SAM"): True,
        (2, "refined"): True,
    }
    assert found["both"].to_dict() == {
        (1, "SAM"): False,
        (1, "refined"): True,
        (2, "SAM"): False,
        (2, "refined"): True,
    }


def test_agreement_by_hand():
    key = pd.DataFrame({"study": "s", "trial": range(1, 5)})
    one = answers(key, "ann", a_boundary=["yes", "yes", "no", "no"])
    two = answers(key, "bob", a_boundary=["yes", "no", "no", "no"])
    found = study.agreement(pd.concat([one, two])).set_index("question")
    chance = 0.5 * 0.25 + 0.5 * 0.75
    assert found.loc["a_boundary", "agreement"] == 0.75 and found.loc["a_boundary", "kappa"] == pytest.approx(
        (0.75 - chance) / (1 - chance)
    )
    assert found.loc["better", "agreement"] == 1 and np.isnan(
        found.loc["better", "kappa"]
    )  # nobody ever said anything else
    alone = study.agreement(one)
    assert alone["agreement"].isna().all() and (alone["pairs"] == 0).all()


def test_a_made_up_rater_follows_the_scores_and_errs_as_told(folder):
    key = study.read_key(folder)
    rng = np.random.default_rng(0)
    scores = key[["image", "mask"]].assign(
        iou=rng.random(len(key)), biou=rng.random(len(key)), refined_iou=1.0, refined_biou=1.0
    )
    exact = study.answers_by_score(key, scores, "x", covered=0.75, sharp=0.6, errors=0, generator=rng)
    judged = study.unblind(exact, key)
    assert judged.query("who == 'refined'")[["boundary", "coverage", "better"]].all(axis=None)
    sam = judged.query("who == 'SAM'").sort_values("trial")
    assert (
        sam["coverage"].tolist() == (scores["iou"] >= 0.75).tolist()
        and sam["boundary"].tolist() == (scores["biou"] >= 0.6).tolist()
    )
    wrong = study.answers_by_score(key, scores, "x", covered=0.75, sharp=0.6, errors=1, generator=rng)
    assert all((wrong[column] != exact[column]).all() for column in study.ANSWERS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV file"),
        (b"\xff\xfe\x00", "not a CSV file"),
        (b'a,"b\n', "not a CSV file|lacks the columns"),
        (b"study,rater,trial\n", "lacks the columns"),
    ],
)
def test_files_that_are_no_answers_are_named(folder, content, message):
    path = folder / "answers-x.csv"
    path.write_bytes(content)
    try:
        with pytest.raises(ValueError, match=rf"answers-x\.csv: ({message})"):
            study.read_answers(folder)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("trial", "one", r"key\.csv, line 2: not as it was written"),
        ("a", "SUM", r"key\.csv, line 2: not as it was written"),
        ("trial", "2", r"key\.csv: trial 2 stands twice"),
    ],
)
def test_a_broken_key_is_named(folder, tmp_path, column, value, message):
    key = study.read_key(folder).astype(str)
    key.loc[0, column] = value
    key.to_csv(tmp_path / "key.csv", index=False)
    with pytest.raises(ValueError, match=message):
        study.read_key(tmp_path)
