"""The mask-refinement module: itself, its training pairs, its measure (docs/method.md section 3)."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "module": ["Refiner", "load_refiner", "refine", "save_refiner"],
        "training": ["train_refiner"],
        "pairs": ["Pairs", "make_pairs"],
        "measure": ["measure_refinement"],
    },
)
