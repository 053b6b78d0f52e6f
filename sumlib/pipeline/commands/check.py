"""`sumlib check`: is a project's data in order?"""

from pathlib import Path

from sumlib.pipeline.commands.common import add_command, add_max_bad, note, status_of

TEXT = """\
Check the images and masks of a project.

Reads every image and mask once and says what is there, what is left out and why. Nothing is changed.
DATA is the project's folder, with images/, masks/ or a COCO file, and project.yaml.
"""
EXAMPLE = "  sumlib check leaves/ --max-bad 0.05"


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "check", TEXT, EXAMPLE, run)
    parser.add_argument("data", type=Path, metavar="DATA", help="the project's folder")
    add_max_bad(parser)


def run(options) -> int:
    """What is there goes to the standard output, what is left out to the standard error."""
    from sumlib.pipeline.own.data import open_own
    from sumlib.pipeline.own.project import read_project

    own = open_own(read_project(options.data))
    parts = {name: len(getattr(own, name) or ()) for name in ("train", "held_out", "unlabeled")}
    for problem in own.problems:
        note(f"left out: {problem}")
    words = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in parts.items())
    print(f"{options.data}: images: {words}; left out: {len(own.problems)}")
    return status_of(len(own.problems), sum(parts.values()) + len(own.problems), options.max_bad)
