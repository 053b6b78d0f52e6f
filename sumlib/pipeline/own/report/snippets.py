"""How to load each form of the weights: short pieces of code that work as they stand."""

import json

from sumlib.model.checkpoint import MODEL_TYPES
from sumlib.pipeline.own.report.document import Block, Code, Section, Table, Text
from sumlib.pipeline.own.report.particulars import size
from sumlib.pipeline.own.report.results import Results, Weights

OFFICIAL = ("vit_b", "vit_l", "vit_h")
TITLES = {
    "safetensors": "sumlib, with all tasks",
    "pth": "Segment Anything, and tools that read its checkpoints",
    "huggingface": "Hugging Face transformers",
    "onnx": "onnxruntime and annotation tools",
    "adapter": "passing on the change alone, with SAM's own file",
}
"""Forms of `sumlib.model.export` in the order in which they are shown."""


def weights_section(results: Results) -> Section | None:
    """The files, and a snippet for each form that is there."""
    if not results.weights:
        return None
    ordered = sorted(results.weights, key=lambda one: [*TITLES, one.form].index(one.form))
    rows = [
        [
            f"`{one.path}`",
            TITLES.get(one.form, one.form),
            one.task or "–",
            size(one.bytes) if one.bytes else "–",
        ]
        for one in ordered
    ]
    blocks: list[Block] = [
        Text("Paths are relative to the project. A task that stands here is folded into the file."),
        Table(["file", "for", "task", "size"], rows, text=(0, 1, 2)),
    ]
    done: set[str] = set()
    for one in ordered:
        if one.form in done or one.form not in TITLES:
            continue
        done.add(one.form)
        blocks.append(Code(_snippet(one, results), title=f"For {TITLES[one.form]}"))
    return Section("The weights and how to load them", blocks)


def _snippet(weights: Weights, results: Results) -> str:
    model_type = str(results.about.get("model_type") or "vit_b")
    task = next(iter(results.tasks.values()), None)
    match weights.form:
        case "safetensors":
            return _sumlib(weights.path, results.tasks)
        case "pth":
            return _official(weights.path, model_type)
        case "huggingface":
            return _transformers(weights.path)
        case "onnx":
            return _onnx(weights.path)
    base = results.about.get("checkpoint") or "sam.pth"
    told = "" if task is None else f"\n# then SumPredictor(model) as above, with task={task}"
    return (
        "from sumlib.model.export import import_model\n\n"
        f"model = import_model({_quoted(weights.path)}, base={_quoted(str(base))}){told}"
    )


def _quoted(text: str) -> str:
    """As a text in Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _sumlib(path: str, tasks: dict[str, int]) -> str:
    known = ", ".join(f"{number} {name}" for name, number in tasks.items())
    task = next(iter(tasks.values()), None)
    note = f"# task: {known}; it is told in the first round only\n" if known else ""
    return (
        "import numpy as np\n"
        "from PIL import Image\n\n"
        "from sumlib.model import SumPredictor, load_sum\n\n"
        f"predictor = SumPredictor(load_sum({_quoted(path)}))\n"
        'predictor.set_image(np.array(Image.open("photo.jpg").convert("RGB")))\n'
        "point, label = np.array([[200, 150]]), np.array([1])  # x, y in pixels; 1 inside, 0 outside\n"
        f"{note}masks, scores, logits = predictor.predict(point, label, task={task})\n"
        "mask = masks[scores.argmax()]  # (H, W) bool"
    )


def _official(path: str, model_type: str) -> str:
    load = (
        f"from segment_anything import SamPredictor, sam_model_registry\n\n"
        f"sam = sam_model_registry[{_quoted(model_type)}](checkpoint={_quoted(path)})\n"
    )
    if model_type in MODEL_TYPES and model_type not in OFFICIAL:  # the micro models are in no registry
        load = (
            "from segment_anything import SamPredictor\n\n"
            "from sumlib.model import load_sam\n\n"
            f"sam = load_sam({_quoted(model_type)}, {_quoted(path)})\n"
        )
    return (
        f"import numpy as np\nfrom PIL import Image\n{load}"
        "predictor = SamPredictor(sam.eval())\n"
        'predictor.set_image(np.array(Image.open("photo.jpg").convert("RGB")))\n'
        "masks, scores, logits = predictor.predict(np.array([[200, 150]]), np.array([1]))"
    )


def _transformers(path: str) -> str:
    return (
        "import torch\n"
        "from PIL import Image\n"
        "from transformers import SamModel, SamProcessor\n\n"
        f"model = SamModel.from_pretrained({_quoted(path)})\n"
        f"processor = SamProcessor.from_pretrained({_quoted(path)})\n"
        'image = Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(image, input_points=[[[200, 150]]], return_tensors="pt")\n'
        "with torch.no_grad():\n"
        "    outputs = model(**inputs)\n"
        "masks = processor.image_processor.post_process_masks(\n"
        '    outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]\n'
        ")"
    )


def _onnx(path: str) -> str:
    folder = path.rstrip("/")
    return (
        "import onnxruntime\n\n"
        f"encoder = onnxruntime.InferenceSession({_quoted(f'{folder}/encoder.onnx')})\n"
        f"decoder = onnxruntime.InferenceSession({_quoted(f'{folder}/decoder.onnx')})\n"
        "print([(one.name, one.shape) for one in [*encoder.get_inputs(), *decoder.get_inputs()]])\n"
        f"# {folder}/README.md says what each input holds; the decoder has SAM's official interface"
    )
