"""`sumlib export`: a model in the form that other tools read."""

from pathlib import Path

from sumlib.pipeline.commands.common import OK, add_command, add_task

FORMS = ("pth", "safetensors", "huggingface", "onnx", "adapter")
TEXT = """\
Write a model in the form that other tools read.

  pth          SAM's own checkpoint, for everything that loads segment-anything's
  safetensors  the same weights with metadata
  huggingface  a folder for transformers' SamModel
  onnx         encoder and decoder, the decoder with the interface of SAM's own export
  adapter      the low-rank updates or adapters alone; needs --base

With --task the task goes into the weights: the first prompt has it, and later ones with a mask have none.
"""
EXAMPLE = "  sumlib export sum.safetensors --form pth --task entity --out sum_vit_b.pth"


def add(commands) -> None:
    """Add the command's arguments."""
    parser = add_command(commands, "export", TEXT, EXAMPLE, run)
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model's file")
    parser.add_argument("--form", choices=FORMS, required=True, help="see above")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="file or folder to write")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FILE",
        help="SAM's checkpoint that was tuned; an adapter file as MODEL needs it, too",
    )
    add_task(parser)


def run(options) -> int:
    """The files written go to the standard output, one a line."""
    from sumlib.model.export import export_model
    from sumlib.pipeline.commands.models import open_model, task_of

    model, notes = open_model(options.model, "cpu", options.base)
    task = task_of(options.task, model, notes)
    names = {"task_names": notes["tasks"]} if notes.get("tasks") and options.form != "pth" else {}
    base = options.base if options.form == "adapter" else None
    for path in export_model(model, options.out, options.form, task=task, base=base, **names):
        print(path)
    return OK
