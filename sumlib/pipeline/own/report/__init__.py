"""The report of a project: what it became, what it forgot, and how to use it."""

from sumlib.base.lazy import face

__getattr__, __dir__, __all__ = face(
    __name__,
    {
        "results": ["HUMAN", "Example", "Results", "Weights", "keep_fields", "read_results", "save_results"],
        "lead": ["headline"],
        "write": ["report_document", "write_report"],
        "pictures": ["draw_examples", "draw_uncertainty"],
    },
)
