"""Twenty-eight emotions: what is common to what RLHF changes for each, and what is each one's own?

    python -m analyses.emotions emotions --out SWEEP

does what `interp sweep` does.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of the sweep."""
    import sys

    from interp.cli import main as interp

    sys.argv[1:1] = ["sweep"]
    interp()


if __name__ == "__main__":
    main()
