"""Draw the README's pictures from the embedded pair: python docs/make_figures.py (after interp demo --out demo)."""

from pathlib import Path

import interp

HERE = Path(__file__).parent
cmp = interp.Comparison.load(HERE.parent / "demo")
for name in ("lens", "attribution", "movers"):
    getattr(cmp.plot, name)().savefig(HERE / f"{name}.png", dpi=110, metadata={"Software": None})
