"""The good-vs-bad study, step by step; see the module `study`."""

from analyses.good_vs_bad.study import (
    Study,
    commonest_length,
    published_table,
    run,
    scale_error,
    strongest_mlps,
    top_heads,
)
from analyses.good_vs_bad.subjects import Subject, prompts_of, subject

__all__ = [
    "Study",
    "Subject",
    "commonest_length",
    "prompts_of",
    "published_table",
    "run",
    "scale_error",
    "strongest_mlps",
    "subject",
    "top_heads",
]
