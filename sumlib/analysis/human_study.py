"""The paper's human study (its Figures 44-47), for images whose truth nobody knows: blind pairs, answers, the
summary.

`write_study` makes one web page that needs nothing but a browser. It shows pseudo-labels twice, SAM's mask
and the refined one, as A and B in random order, and saves each rater's answers as CSV; which is which stands
in `key.csv`, which raters do not see.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from jinja2 import Environment

from sumlib.base.files import write_text
from sumlib.data.dataset import Dataset
from sumlib.pseudo.store import PseudoLabels

MASKS = ("SAM", "refined")
QUESTIONS = {
    "boundary": "Is its boundary right?",
    "coverage": "Does it cover one object or part, all of it and nothing else?",
}
ANSWERS = {f"{side}_{question}": ("yes", "no") for side in "ab" for question in QUESTIONS} | {
    "better": ("a", "b", "same")
}
"""Columns of an answer file besides rater and trial, and the values they take."""
_SIDES = (320, 800)  # pixels of a picture's longer side on the page, at least and at most


def choose(labels: PseudoLabels, count: int, generator: np.random.Generator) -> list[tuple[str, int]]:
    """``count`` pseudo-labels (image, mask number) in random order: one of each image before a second of any;
    all if there are fewer.

    Those whose refined mask is empty are left out: a rater would see at once which is which.
    """
    usable = {name: np.flatnonzero(labels[name].refined.any((1, 2))) for name in labels.images}
    stacks = [
        [(name, int(k)) for k in generator.permutation(usable[name])]
        for name in generator.permutation(labels.images)
    ]
    deepest = max(map(len, stacks), default=0)
    turns = [[stack[depth] for stack in stacks if depth < len(stack)] for depth in range(deepest)]
    return [item for turn in turns for item in turn][:count]


def write_study(
    folder: Path, labels: PseudoLabels, images: Dataset, count: int, generator: np.random.Generator
) -> pd.DataFrame:
    """Write ``folder/study.html`` and ``folder/key.csv`` of ``count`` trials; returns the key: study, trial,
    image, mask, a, b ("SAM" or "refined").

    Raises:
        FileExistsError: the folder holds a study: its answers would no longer fit.
    """
    folder = Path(folder)
    if (folder / "key.csv").exists():
        raise FileExistsError(
            f"{folder / 'key.csv'}: there is a study already, and answers to it may be out; choose another "
            "folder"
        )
    numbers, trials, rows = {name: k for k, name in enumerate(images.names)}, [], []
    for trial, (name, k) in enumerate(choose(labels, count, generator), start=1):
        label, image = labels[name], images[numbers[name]].image
        order = [MASKS[i] for i in generator.permutation(2)]
        pictures = {"SAM": label.masks[k], "refined": label.refined[k]}
        both = pictures["SAM"] | pictures["refined"]
        trials.append([_picture(image, None, both), *(_picture(image, pictures[who], both) for who in order)])
        rows.append((trial, name, k, *order))
    study = hashlib.sha256("".join(source for trial in trials for source in trial).encode()).hexdigest()[:12]
    key = pd.DataFrame(rows, columns=["trial", "image", "mask", "a", "b"])
    key.insert(0, "study", study)
    write_text(folder / "study.html", _page(trials, study))
    write_text(folder / "key.csv", key.to_csv(index=False, lineterminator="\n"))
    return key


def _picture(image: np.ndarray, mask: np.ndarray | None, around: np.ndarray) -> str:
    """The surroundings of ``around`` at a size to look at, the mask's outline drawn, as a data URL."""
    rows, columns = np.flatnonzero(around.any(1)), np.flatnonzero(around.any(0))
    margin = max(4, (max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1) // 3)
    window = tuple(slice(max(0, line[0] - margin), line[-1] + margin + 1) for line in (rows, columns))
    part, side = image[window], max(image[window].shape[:2])
    scale = min(1.0, _SIDES[1] / side) if side >= _SIDES[0] else -(-_SIDES[0] // side)
    size = tuple(max(1, round(scale * length)) for length in part.shape[1::-1])
    picture = cv2.resize(
        np.ascontiguousarray(part), size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    if mask is not None:
        shown = cv2.resize(mask[window].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(shown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, (0, 0, 0), 4)
        cv2.drawContours(picture, contours, -1, (255, 235, 60), 2)
    code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    return "data:image/jpeg;base64," + base64.b64encode(code.tobytes()).decode("ascii")


def _page(trials: Sequence[Sequence[str]], study: str) -> str:
    """The page for raters from each trial's pictures (data URLs of the image, A and B)."""
    template = Environment(autoescape=True).from_string(
        (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        trials=[list(zip(("image", "A", "B"), pictures)) for pictures in trials],
        choices=[(column, text, _options(column)) for column, text in _texts().items()],
        columns=list(ANSWERS),
        study=study,
    )


def _texts() -> dict[str, str]:
    """Column of an answer -> what a rater is asked, in the order of the page."""
    texts = {f"{side}_{key}": f"{side.upper()}: {text}" for side in "ab" for key, text in QUESTIONS.items()}
    return texts | {"better": "Which is better?"}


def _options(column: str) -> list[tuple[str, str]]:
    """(value, as the page writes it) of a column's answers."""
    return [(value, value.upper() if value in ("a", "b") else value) for value in ANSWERS[column]]


# ---- answers
# -----------------------------------------------------------------------------------------------------------


def read_answers(folder: Path) -> pd.DataFrame:
    """All ``answers-*.csv`` of a study's folder: rater, trial and the columns of `ANSWERS`.

    Raises:
        FileNotFoundError: no key, or no answers. ValueError: a file cannot be read as CSV, lacks a column,
        holds no answer, is of another study, answers a trial twice
            or one that there is not, or has another value; the message names file, line and remedy.
    """
    folder = Path(folder)
    key = read_key(folder)
    paths = sorted(folder.glob("answers-*.csv"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no answers-*.csv there; put what the raters saved beside key.csv")
    answers = pd.concat([_read_rater(path, key) for path in paths], ignore_index=True)
    if (twice := answers.duplicated(["rater", "trial"])).any():
        first = answers[twice].iloc[0]
        files = ", ".join(path.name for path in paths)
        raise ValueError(
            f"{folder}: rater {first['rater']!r} answers trial {first['trial']} twice ({files}); keep one "
            "file of each "
            "rater"
        )
    return answers


def _read_rater(path: Path, key: pd.DataFrame) -> pd.DataFrame:
    """One rater's answers, every value checked."""
    study, trials = str(key["study"].iloc[0]), set(key["trial"])
    frame = _read_csv(path, {"study", "rater", "trial", *ANSWERS}, "use the file that study.html saved")
    for line, row in enumerate(frame.to_dict("records"), start=2):
        if row["study"] != study:
            raise ValueError(
                f"{path}, line {line}: answers to study {row['study']!r}, but key.csv is of {study!r}; move "
                "the file to "
                "its own study's folder"
            )
        if not re.fullmatch("[0-9]{1,9}", row["trial"]) or int(row["trial"]) not in trials:
            raise ValueError(
                f"{path}, line {line}: no trial {row['trial']!r} in key.csv; use the file as study.html "
                "saved it"
            )
        if not row["rater"].strip():
            raise ValueError(f"{path}, line {line}: no rater; write the rater's name into this column")
        for column, allowed in ANSWERS.items():
            if row[column] not in allowed:
                raise ValueError(
                    f"{path}, line {line}: {column} is {row[column]!r}; allowed are {', '.join(allowed)}: "
                    "ask the rater "
                    "to save the answers again"
                )
    return frame.astype({"trial": int})[["rater", "trial", *ANSWERS]]


def _read_csv(path: Path, columns: set[str], remedy: str) -> pd.DataFrame:
    """A CSV file as text, with at least one row and these columns; ValueError names the file and
    ``remedy``."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error}); {remedy}") from None
    if missing := columns - set(frame):
        raise ValueError(f"{path}: lacks the columns {', '.join(sorted(missing))}; {remedy}")
    if frame.empty:
        raise ValueError(f"{path}: holds no row; {remedy}")
    short = frame[sorted(columns)].map(lambda value: not isinstance(value, str)).any(axis=1)
    if short.any():
        raise ValueError(f"{path}, line {short.idxmax() + 2}: too few values; {remedy}")
    return frame


def read_key(folder: Path) -> pd.DataFrame:
    """The key that `write_study` wrote: study, trial, image, mask, a, b.

    Raises FileNotFoundError if there is none, ValueError where it is not as `write_study` wrote it.
    """
    path, remedy = Path(folder) / "key.csv", "restore it, or make a new study in another folder"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no study there; make one with sumlib.analysis.human_study.write_study"
        )
    key = _read_csv(path, {"study", "trial", "image", "mask", "a", "b"}, remedy)
    for line, row in enumerate(key.to_dict("records"), start=2):
        numbers = all(re.fullmatch("[0-9]{1,9}", row[column]) for column in ("trial", "mask"))
        if not numbers or {row["a"], row["b"]} != set(MASKS) or row["study"] != key["study"].iloc[0]:
            raise ValueError(f"{path}, line {line}: not as it was written ({row}); {remedy}")
    if key["trial"].duplicated().any():
        raise ValueError(
            f"{path}: trial {key['trial'][key['trial'].duplicated()].iloc[0]} stands twice; {remedy}"
        )
    return key.astype({"trial": int, "mask": int})


def answers_by_score(
    key: pd.DataFrame,
    masks: pd.DataFrame,
    rater: str,
    *,
    covered: float,
    sharp: float,
    errors: float,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Answers of a made-up rater who knows the truth (``masks``: as
    `sumlib.analysis.label_quality.compare_all`), and gets a share ``errors`` of the answers wrong.

    For trying a study out before anybody has answered it.
    """
    scores = masks.set_index(["image", "mask"])
    rows = []
    for trial in key.itertuples():
        one = scores.loc[(trial.image, trial.mask)]
        prefix = {"a": "" if trial.a == "SAM" else "refined_", "b": "" if trial.b == "SAM" else "refined_"}
        row = {"study": trial.study, "rater": rater, "trial": trial.trial}
        for side, name in prefix.items():
            row |= {
                f"{side}_boundary": "yes" if one[name + "biou"] >= sharp else "no",
                f"{side}_coverage": "yes" if one[name + "iou"] >= covered else "no",
            }
        gap = one[prefix["a"] + "biou"] - one[prefix["b"] + "biou"]
        row["better"] = "same" if gap == 0 else "a" if gap > 0 else "b"
        for column, allowed in ANSWERS.items():
            if generator.random() < errors:
                row[column] = str(generator.choice([value for value in allowed if value != row[column]]))
        rows.append(row)
    return pd.DataFrame(rows)


def unblind(answers: pd.DataFrame, key: pd.DataFrame) -> pd.DataFrame:
    """One row a rater, trial and mask: rater, trial, image, who ("SAM", "refined"), boundary, coverage, both,
    better (bool; "same" is neither's)."""
    joined = answers.merge(key, on="trial", validate="many_to_one")
    parts = []
    for side in "ab":
        part = joined[["rater", "trial", "image"]].assign(who=joined[side])
        for question in QUESTIONS:
            part[question] = joined[f"{side}_{question}"] == "yes"
        parts.append(part.assign(both=part["boundary"] & part["coverage"], better=joined["better"] == side))
    return pd.concat(parts).sort_values(["rater", "trial", "who"], ignore_index=True)


def agreement(answers: pd.DataFrame) -> pd.DataFrame:
    """How far raters agree: question, agreement (mean share of equal answers over pairs of raters), kappa
    (mean of Cohen's), pairs.

    ``answers`` as `read_answers`; over the trials that both of a pair answered. NaN for a single rater, and
    kappa where a pair gives one answer only.
    """
    rows = []
    for column in ANSWERS:
        table = answers.pivot(index="trial", columns="rater", values=column)
        pairs = [table[list(pair)].dropna() for pair in combinations(table.columns, 2)]
        pairs = [pair for pair in pairs if len(pair)]
        equal = [float((pair.iloc[:, 0] == pair.iloc[:, 1]).mean()) for pair in pairs]
        chance = [
            float(
                sum(
                    (pair.iloc[:, 0] == value).mean() * (pair.iloc[:, 1] == value).mean()
                    for value in ANSWERS[column]
                )
            )
            for pair in pairs
        ]
        kappas = [(e - c) / (1 - c) for e, c in zip(equal, chance) if c < 1]
        rows.append(
            (
                column,
                float(np.mean(equal)) if equal else np.nan,
                float(np.mean(kappas)) if kappas else np.nan,
                len(pairs),
            )
        )
    return pd.DataFrame(rows, columns=["question", "agreement", "kappa", "pairs"])
