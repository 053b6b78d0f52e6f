"""What is good and what is not in a user's project, before an hour is spent on it.

Every labelled image and every mask is read once, and remembered; of the unlabeled images some. What is bad
is left out and listed, what is good is kept.
"""

import csv
import io
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sumlib.base.files import write_text
from sumlib.base.parallel import processes
from sumlib.pipeline.own.checkpoints import Recognised, recognise
from sumlib.pipeline.own.data import OwnData, open_own, open_sets
from sumlib.pipeline.own.dataset import OwnDataset, OwnEntry
from sumlib.pipeline.own.project import Project, read_project
from sumlib.pipeline.own.reading.files import nfc
from sumlib.pipeline.own.reading.problems import LEFT_OUT, NOTED, Problem
from sumlib.pipeline.own.sheet import write_contact_sheet

FOLDER = "check"
"""Below the project's: the whole list of problems and a picture."""
LOOKED_AT = 100
"""Unlabeled images that are read, evenly spaced, unless all are asked for."""
SHOWN = 3
"""Examples of each kind of problem."""
QUIET = ("without mask", "spaced name")
"""Kinds that need no examples."""
BAD = 3
"""Exit status where too much is bad to go on."""
LABELS_PER_IMAGE, LABEL_BYTES, EMBEDDING_BYTES = 100, 25_000, 256 * 64 * 64 * 2
"""Pseudo-labels of an image, bytes of each with both maps, and bytes of an embedding of 16 bits."""
MODELS = 8
"""Copies of the model that a project writes: trained ones, what a killed run needs, exported forms."""


@dataclass
class CheckReport:
    """What `check` found."""

    folder: Path
    project: Project
    data: OwnData | None = None
    """None if nothing could be opened; `fatal` says why."""
    problems: list[Problem] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    """Why the project cannot be run at all."""
    images: int = 0
    """Labelled images that are good, those held out included."""
    held_out: int = 0
    masks: int = 0
    """Good masks."""
    bad: int = 0
    """Masks that are left out."""
    unlabeled: int = 0
    sets: dict[str, int] = field(default_factory=dict)
    """Good images of each extra evaluation set."""
    sizes: Counter = field(default_factory=Counter)
    """(height, width) of the labelled images."""
    shares: list[float] = field(default_factory=list)
    """Part of its image that each mask covers."""
    checkpoint: Recognised | None = None
    needed: int = 0
    """Bytes that the project will write at most, estimated."""
    free: int = 0
    """Bytes that are free on its disk."""
    listing: Path | None = None
    """File with every problem; None where there is none, or it could not be written."""
    sheet: Path | None = None
    """Picture of some images with their masks."""

    @property
    def share(self) -> float:
        """Part of the masks that is left out."""
        return self.bad / max(1, self.bad + self.masks)

    @property
    def status(self) -> int:
        """0, or `BAD`: more is left out than the project allows, or it cannot be run at all."""
        return BAD if self.fatal or self.share > self.project.bad_share else 0

    @property
    def plan(self) -> str:
        """One line that says what there is and what will be done."""
        one, found = self.project, self.checkpoint
        what = found.model if found and found.model else one.model
        what = "no checkpoint yet" if one.checkpoint is None else f"{what} from {one.checkpoint.name}"
        count = f"{self.images} images, {self.masks} masks ({self.held_out} images held out)"
        problems = sum(problem.left_out for problem in self.problems)
        wrong = f"; {problems} problem{'s' * (problems != 1)}" if problems else ""
        tasks = ", ".join(self.data.tasks) if self.data else "?"
        plan = f"{what}, task {tasks}, tuning {one.tuning}, recipe {one.recipe}"
        return f"{count}, {self.unlabeled} unlabeled{wrong}; plan: {plan}"

    def text(self) -> str:
        """The report for people to read."""
        lines = [f"{self.folder}", self.plan, ""]
        lines += [f"CANNOT RUN: {reason}" for reason in self.fatal]
        if self.data:
            lines += ["Understood:", *(f"  {line}" for line in [*self.data.understood, *self._seen()])]
        lines += self._groups("Left out:", LEFT_OUT) + self._groups("Worth knowing:", NOTED)
        if self.share > self.project.bad_share:
            lines.append(
                f"TOO MUCH IS BAD: {self.bad} of {self.bad + self.masks} masks ({self.share:.1%}) "
                "are left out, more than "
                f"bad_share allows ({self.project.bad_share:.0%}); mend them or raise bad_share"
            )
        elif self.bad:
            total = self.bad + self.masks
            lines.append(f"{self.bad} of {total} masks ({self.share:.1%}) are left out, the others are kept")
        if self.listing:
            lines.append(f"The whole list: {self.listing}")
        if self.sheet:
            lines.append(f"Images with their masks, to see that they belong together: {self.sheet}")
        return "\n".join(lines) + "\n"

    def _seen(self) -> list[str]:
        """Sizes of images and masks, and the disk, in words."""
        lines = []
        if self.sizes:
            common = [f"{h} x {w} ({n})" for (h, w), n in self.sizes.most_common(3)]
            more = f" and {len(self.sizes) - 3} more sizes" if len(self.sizes) > 3 else ""
            lines.append(f"images (height x width): {', '.join(common)}{more}")
        if self.shares:
            low, middle, high = np.percentile(self.shares, [0, 50, 100])
            lines.append(
                f"masks cover {low:.2%} to {high:.1%} of their image, half of them below {middle:.1%}"
            )
        if self.sets:
            lines.append(
                "also scored: " + ", ".join(f"{n} ({count} images)" for n, count in self.sets.items())
            )
        if self.needed:
            lines.append(
                f"disk: at most about {_bytes(self.needed)} will be written, {_bytes(self.free)} are free"
            )
        return lines

    def _groups(self, title: str, kinds: dict[str, str]) -> list[str]:
        """Problems by kind, with examples."""
        lines = []
        for kind, text in kinds.items():
            own = [problem for problem in self.problems if problem.kind == kind]
            if own:
                lines.append(f"  {len(own)} {text}")
                shown = own[:SHOWN] if kind not in QUIET else []
                lines += [f"    {self._relative(problem.path)}: {problem.reason}" for problem in shown]
                if len(own) > len(shown) > 0:
                    lines.append(f"    ... and {len(own) - len(shown)} more")
        return [title, *lines] if lines else []

    def _relative(self, path: Path) -> Path:
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else path


def check(project: Project | str | Path, *, every: bool = False, write: bool = True) -> CheckReport:
    """Check a project, or a folder that may have no `project.yaml`.

    ``every``: read all unlabeled images. ``write``: put the whole list of problems and a contact sheet into
    `FOLDER`, where that folder can be written. Raises what `read_project` raises; all else is in the report.
    """
    if not isinstance(project, Project):
        project = read_project(project)
    report = CheckReport(project.folder, project)
    _look_at_checkpoint(report)
    try:
        report.data = open_own(project)
    except (ValueError, OSError) as error:
        report.fatal.append(str(error))
        return report
    report.problems += report.data.problems
    report.bad = sum(problem.masks for problem in report.data.problems if problem.left_out)
    side = (report.checkpoint and report.checkpoint.side) or 1024
    for dataset in (report.data.train, report.data.held_out):
        _look_at_masks(report, dataset, side)
    report.held_out = len(report.data.held_out.good())
    _look_at_unlabeled(report, every)
    _look_at_sets(report)
    _look_at_names(report)
    _look_at_disk(report)
    if not report.masks:
        report.fatal.append("no usable mask is left")
    elif report.held_out == report.images:
        report.fatal.append("all images are held out; nothing is left to train on")
    report.problems = list(dict.fromkeys(report.problems))
    if write:
        _write(report)
    return report


def _look_at_checkpoint(report: CheckReport) -> None:
    path = report.project.checkpoint
    if path is not None:
        report.checkpoint = recognise(path, report.project.model)
        if report.checkpoint.problem:
            report.fatal.append(f"{path}: {report.checkpoint.problem}")
    start = report.project.init_from
    if start is not None and not start.exists():
        report.fatal.append(f"{start}: there is no such file or folder; correct init_from")


def _look_at_masks(report: CheckReport, dataset: OwnDataset, side: int) -> None:
    """Read the labelled images, and gather what is bad and what is worth knowing."""
    dataset.check()
    for one, fact in zip(dataset.entries, dataset.facts.of(dataset.entries)):
        for kind, text in fact["notes"]:
            report.problems.append(Problem(kind, one.name, one.path, text))
        for name, (path, reason, kind) in fact["left_out"].items():
            report.problems.append(Problem(kind, f"{one.name}#{name}", Path(path), reason))
        report.bad += len(fact["left_out"])
        if fact["bad"]:
            path, reason, kind = fact["bad"]
            report.problems.append(Problem(kind, one.name, Path(path), reason))
            report.bad += masks_of(one)
            continue
        report.images += 1
        report.masks += len(fact["areas"])
        report.sizes[tuple(fact["size"])] += 1
        pixels = fact["size"][0] * fact["size"][1]
        report.shares += [area / pixels for area in fact["areas"]]
        gone = sum(not 0 < smallest <= side for smallest in fact["sides"])
        if gone:
            text = f"{gone} of {len(fact['sides'])} masks vanish at {side} pixels; they are not drawn"
            report.problems.append(Problem("tiny", one.name, one.path, text))


def masks_of(one: OwnEntry) -> int:
    """Mask files, or annotations, of an entry."""
    arguments = one.load.args[0].args
    listed = next((value for value in arguments if isinstance(value, (list, tuple))), ())
    return max(1, len(listed))


def _look_at_unlabeled(report: CheckReport, every: bool) -> None:
    """Read some of the unlabeled images; all that cannot be read are no masks, so they are only listed."""
    images = report.data.unlabeled
    report.unlabeled = len(images)
    if not len(images):
        text = "there is none beside the held-out images; training has no pseudo-labels"
        report.problems.append(Problem("unlabeled", images.name, report.folder, text))
        return
    step = 1 if every else max(1, len(images) // LOOKED_AT)
    entries = images.entries[::step]
    facts = images.facts.of(entries, processes())
    bad = [(one, fact["bad"]) for one, fact in zip(entries, facts) if fact["bad"]]
    for one, (path, reason, kind) in bad:
        report.problems.append(Problem(kind, one.name, Path(path), f"unlabeled: {reason}"))
    for one, fact in zip(entries, facts):
        report.problems += [Problem(kind, one.name, one.path, text) for kind, text in fact["notes"]]
    report.unlabeled -= len(bad)
    if len(bad) == len(entries):
        report.fatal.append(f"none of {len(entries)} unlabeled images that were looked at can be read")


def _look_at_sets(report: CheckReport) -> None:
    """Read the extra evaluation sets; what is bad there is listed, but is no part of the share."""
    try:
        sets = open_sets(report.project, report.data.tasks)
    except (ValueError, OSError) as error:
        report.fatal.append(f"evaluate: {error}")
        return
    for name, dataset in sets.items():
        for one, fact in zip(dataset.entries, dataset.facts.of(dataset.entries, processes())):
            if fact["bad"]:
                path, reason, kind = fact["bad"]
                report.problems.append(Problem(kind, f"{name}/{one.name}", Path(path), reason))
        good = len(dataset.good())
        report.sets[name] = good
        if not good:
            report.fatal.append(f"evaluate: {name} has no image with a usable mask")


def _look_at_names(report: CheckReport) -> None:
    for dataset in (report.data.train, report.data.held_out):
        for one in dataset.entries:
            name = nfc(one.path.name)
            if " " in name or not name.isascii():
                report.problems.append(Problem("spaced name", one.name, one.path, "is read as it is"))


def _look_at_disk(report: CheckReport) -> None:
    """Estimate what will be written: models, pseudo-labels with their maps, embeddings."""
    path = report.project.checkpoint
    model = path.stat().st_size if path is not None and path.is_file() else 0
    labels = len(report.data.unlabeled) * LABELS_PER_IMAGE * LABEL_BYTES
    frozen = report.project.tuning in ("auto", "decoder")
    images = len(report.data.unlabeled) + len(report.data.train)
    small = report.checkpoint is not None and 0 < report.checkpoint.side < 256
    report.needed = MODELS * model + (labels + images * EMBEDDING_BYTES * frozen) // (64 if small else 1)
    report.free = shutil.disk_usage(report.folder).free
    if report.needed > report.free:
        report.fatal.append(
            f"{report.folder}: about {_bytes(report.needed)} may be written, but {_bytes(report.free)} are "
            "free; move the project to a larger disk, or use fewer unlabeled images"
        )


def _bytes(number: int) -> str:
    """A size in words.

    >>> _bytes(2_500_000_000), _bytes(3_000)
    ('2.5 GB', '0.0 MB')
    """
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _write(report: CheckReport) -> None:
    """The whole list and the picture; a folder that cannot be written to is no error."""
    with suppress(OSError):
        folder = report.folder / FOLDER
        if report.problems:
            report.listing = folder / "problems.csv"
            write_text(report.listing, _table(report.problems))
        if report.masks:
            report.sheet = write_contact_sheet(report.data, folder / "contact_sheet.png")
        write_text(folder / "report.txt", report.text())


def _table(problems: Sequence[Problem]) -> str:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["left_out", "kind", "name", "file", "reason"])
    table.writerows(
        [problem.left_out, problem.kind, problem.name, problem.path, problem.reason] for problem in problems
    )
    return file.getvalue()
