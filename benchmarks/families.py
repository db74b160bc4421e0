"""Every architecture that a row covers, and its worst errors against the bare model of transformers.

    python -m benchmarks.families

One tiny random model each (norms and biases moved from their initial values), float32, on the CPU; what the columns
mean is said by `interp.models.check_fidelity`. The limits are 1e-6 for logits and 1e-5 for the others.
"""

from __future__ import annotations

import warnings

from interp.families import Parts
from interp.models.fidelity import fidelity
from tests.interp.architectures import CONFIGS, build


def main() -> None:
    print(f"{'architecture':46}" + "".join(f"{name:>13}" for name in KINDS))
    worst = dict.fromkeys(KINDS, 0.0)
    for name in CONFIGS:
        errors = fidelity(Parts(build(name)))
        worst = {kind: max(worst[kind], errors[kind]) for kind in KINDS}
        print(f"{name:46}" + "".join(f"{errors[kind]:13.1e}" for kind in KINDS))
    print(f"{'worst':46}" + "".join(f"{worst[kind]:13.1e}" for kind in KINDS))


KINDS = ("logits", "padding", "residual", "heads", "attribution")

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
