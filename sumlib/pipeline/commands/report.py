"""`sumlib report`: a project's page, from what its stages left."""

from pathlib import Path

from sumlib.pipeline.commands.common import OK, add_command

TEXT = """\
Write a project's report from what its runs left.

Masks before and after on held-out images, what was forgotten, best and worst examples. Nothing is trained.
PROJECT is the project's folder.
"""
EXAMPLE = "  sumlib report leaves/"


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "report", TEXT, EXAMPLE, run)
    parser.add_argument("project", type=Path, metavar="PROJECT", help="the project's folder")


def run(options) -> int:
    """The files written go to the standard output, one a line."""
    from sumlib.pipeline.own.project import read_project
    from sumlib.pipeline.own.report import write_report

    for path in write_report(read_project(options.project)):
        print(path)
    return OK
