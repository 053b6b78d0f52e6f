"""What the commands share: exit statuses, the error of wrong usage, arguments."""

import argparse
import sys
from pathlib import Path

OK, FAILED, USAGE, BAD, STOPPED = 0, 1, 2, 3, 130
"""Exit statuses: fine, failed, wrong usage, more bad items than the stated share, stopped by Ctrl-C."""


class UsageError(ValueError):
    """The command was called in a wrong way; the message says what to change."""


def add_command(commands, name: str, text: str, example: str, run) -> argparse.ArgumentParser:
    """The parser of a new command: ``text`` starts with the one line of the list of commands."""
    first = text.splitlines()[0]
    parser = commands.add_parser(
        name,
        help=first[0].lower() + first[1:].rstrip("."),
        description=text,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which model computes, for which task, and where."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="SAM's own checkpoint (.pth; vit_b, vit_l or vit_h is recognised), one that was fine-tuned here "
        "(.safetensors), or a folder that `sumlib export --form huggingface` wrote",
    )
    add_task(group)
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 ... (default: the GPU where there is one)"
    )


def add_task(parser) -> None:
    """The argument --task."""
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="kind of mask that is meant: salient, entity, part, another of the model's own, or its number "
        "(default: no task prompt)",
    )


def add_max_bad(parser: argparse.ArgumentParser) -> None:
    """The argument --max-bad."""
    parser.add_argument(
        "--max-bad",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="share of bad items, 0 to 1, above which the exit status is 3 (default: 0, not one); the good "
        "ones are used all the same",
    )


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def count(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def status_of(bad: int, total: int, most: float) -> int:
    """The exit status of ``bad`` items of ``total``, of which a share of ``most`` is accepted.

    >>> status_of(0, 9, 0.0), status_of(1, 9, 0.0), status_of(1, 10, 0.1), status_of(1, 1, 0.5)
    (0, 3, 0, 3)
    """
    return BAD if bad > most * total else OK


def counted(number: int, noun: str) -> str:
    """A number of things in words.

    >>> counted(1, "mask"), counted(0, "image")
    ('1 mask', '0 images')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def note(text: str) -> None:
    """Print to the standard error, where progress is, so that results can be piped."""
    print(text, file=sys.stderr)
