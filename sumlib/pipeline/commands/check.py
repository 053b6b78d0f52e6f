"""`sumlib check`: is a project's data in order?"""

from dataclasses import replace
from pathlib import Path

from sumlib.pipeline.commands.common import add_command, share

TEXT = """\
Check the images and masks of a project.

Reads every image with masks once and says what is there, how it was understood, what is left out and why.
DATA is the project's folder, with images/, masks/ or a COCO file, and perhaps project.yaml. The whole list of
problems and a picture of images with their masks go to DATA/check/, else nothing is changed.
"""
EXAMPLE = "  sumlib check leaves/ --max-bad 0.05"


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "check", TEXT, EXAMPLE, run)
    parser.add_argument("data", type=Path, metavar="DATA", help="the project's folder")
    parser.add_argument("--every", action="store_true", help="read every unlabeled image, too")
    parser.add_argument(
        "--max-bad",
        type=share,
        metavar="SHARE",
        help="share of bad masks, 0 to 1, above which the exit status is 3 (default: project.yaml's)",
    )


def run(options) -> int:
    """The report goes to the standard output."""
    from sumlib.pipeline.own.check import check
    from sumlib.pipeline.own.project import read_project

    project = read_project(options.data)
    if options.max_bad is not None:
        project = replace(project, bad_share=options.max_bad)
    report = check(project, every=options.every)
    print(report.text(), end="")
    return report.status
