"""SAM with a task prompt: the model, its predictor and mask generator, its files."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "sum": ["NUM_TASKS", "Sum"],
        "predictor": ["SumPredictor"],
        "generator": ["SumMaskGenerator"],
        "checkpoint": ["CheckpointError", "load_sam", "load_sum", "read_metadata", "save_sam", "save_sum"],
        "foundation": ["load_foundation", "load_labeller"],
    },
)
