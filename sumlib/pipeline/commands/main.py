"""Entry point of the command line."""

import argparse
import sys

from sumlib.pipeline.commands import check, export, masks, predict, report
from sumlib.pipeline.commands.common import FAILED, STOPPED, USAGE, UsageError

EPILOG = """\
examples:
  sumlib check leaves/                                          is my data in order?
  sumlib masks photos/ --model sam_vit_b_01ec64.pth --out out/  all masks of all photographs
  sumlib predict cat.jpg --model sum.safetensors --point 210,140 --task entity
  sumlib export sum.safetensors --form pth --task entity --out sum_vit_b.pth
  sumlib report leaves/                                         better or not, on one page

`sumlib COMMAND --help` says more and shows an example.

exit status: 0 fine, 1 failed, 2 wrong usage, 3 more bad items than --max-bad allows (the good ones are
done), 130 stopped by Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    """Parser of all commands; the parsed options hold the command's function as ``run``."""
    parser = argparse.ArgumentParser(
        prog="sumlib",
        description="Your SAM, your masks: segment pictures with SAM and with models tuned from it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (check, masks, predict, export, report):
        module.add(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit status (`sumlib.pipeline.commands.common`)."""
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit as stop:  # --help, or wrong usage, which argparse has explained
        return int(stop.code or 0)
    try:
        return options.run(options)
    except UsageError as error:
        return _failed(options, f"{error}\nsee `sumlib {options.command} --help`", USAGE)
    except KeyboardInterrupt:
        return _failed(options, "stopped; the same command goes on where it stopped", STOPPED)
    except (ValueError, OSError) as error:
        return _failed(options, str(error), FAILED)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = getattr(options, "memory_advice", "use a smaller model or image")
        return _failed(options, f"out of memory: {advice} ({str(error).splitlines()[0]})", FAILED)


def _failed(options: argparse.Namespace, message: str, status: int) -> int:
    print(f"sumlib {options.command}: {message}", file=sys.stderr)
    return status


def _is_out_of_memory(error: Exception) -> bool:
    """Of the main memory or a GPU's: torch raises RuntimeError for both."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
