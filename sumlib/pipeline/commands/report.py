"""`sumlib report`: a project's page, from what its stages left."""

from pathlib import Path

from sumlib.pipeline.commands.common import OK, add_command

RESULTS = "results"
"""Folder of a project that holds its report."""
TEXT = """\
Write a project's report again from what its run left.

Masks before and after on held-out images, what was forgotten, best and worst examples: PROJECT/results/
report.md and report.html. Nothing is computed anew. PROJECT is the project's folder.
"""
EXAMPLE = "  sumlib report leaves/"


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "report", TEXT, EXAMPLE, run)
    parser.add_argument("project", type=Path, metavar="PROJECT", help="the project's folder")


def run(options) -> int:
    """The files written go to the standard output, one a line."""
    from sumlib.pipeline.own.report import write_report

    for path in write_report(options.project / RESULTS):
        print(path)
    return OK
