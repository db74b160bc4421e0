"""What a sweep's analysis costs, beside comparing each pair by itself.

    python benchmarks/sweep.py              28 pairs of stories3M (about 3 minutes; INTERP_DATA, or ../shared/data)
    python benchmarks/sweep.py --quick      tiny sizes: that it runs, not how fast
    python benchmarks/sweep.py --json out.json

28 distinct copies of the base, each with noise of its own on all weights, are compared with it: together by
`interp.compare_many`, and each by itself by `interp.compare`. Both load base from its folder, nothing is kept between
calls, and a batch has as many prompts as in the sweep. The unit is processor time of this process on one thread, in
turn, several times over; shown are the median of the ratios and their range. Both must give the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LIMIT = 0.6
Row = dict[str, Any]


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def changed(folder: str, seed: int) -> Any:
    """A copy of the model with noise on every weight."""
    import torch

    from interp.models import load_model

    model = load_model(folder)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn(parameter.shape, generator=noise))
    return model


def tiny(folder: str) -> str:
    from benchmarks.compare import gpt2, small, word_tokenizer

    gpt2(0, **small(True)).save_pretrained(folder)
    word_tokenizer(300).save_pretrained(folder)
    return folder


def measure(folder: str, texts: list[str], pairs: int, repeats: int, more: tuple[str, ...]) -> Row:
    """The ratio for the default measures and `more`."""
    import torch

    import interp
    from analyses.sweep.work import BATCH

    torch.set_num_threads(1)
    tokenizer = interp.Policy.load(folder).tokenizer
    models = {f"pair {seed}": changed(folder, seed) for seed in range(pairs)}
    prompts = interp.Prompts(texts)
    names = [name for name in interp.DEFAULT_MEASURES if name != "logit_diff"]
    options: dict[str, Any] = {"tokenizer": tokenizer, "measures": [*names, *more], "batch_size": BATCH}

    def together() -> Any:
        return interp.compare_many(folder, models, prompts, **options)

    def apart() -> Any:
        return {name: interp.compare(folder, model, prompts, **options) for name, model in models.items()}

    interp.compare(folder, models["pair 0"], prompts, **options)  # warms up
    ratios, both = [], []
    for repeat in range(repeats):
        print(f"round {repeat + 1} of {repeats}", file=sys.stderr)
        many, found = seconds(together)
        each, alone = seconds(apart)
        for name in models:
            if not found[name].dataset.identical(alone[name].dataset):
                raise SystemExit(f"compare_many gave other numbers than compare for {name}")
        ratios.append(many / each)
        both.append((many, each))
    middle = statistics.median(ratios)
    return {
        "what": f"{pairs} pairs by compare_many over as many compares, {' and '.join(['default set', *more])}",
        "figure": f"{middle:.3f}",
        "limit": "" if more else str(LIMIT),
        "range": f"{min(ratios):.3f} to {max(ratios):.3f}; {both[-1][0]:.1f} s and {both[-1][1]:.1f} s of processor,"
        f" {len(texts)} prompts; the same numbers",
        "value": middle,
    }


EXTRA: tuple[tuple[str, ...], ...] = ((), ("completions", "weights"))


def main() -> None:
    from benchmarks.compare import data_folder, real_prompts, show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=28)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="interp-bench-") as folder:
            texts = [" ".join(f"t{(7 * row + i) % 300}" for i in range(8)) for row in range(12)]
            rows = [measure(tiny(folder), texts, 4, 1, more) for more in EXTRA]
    else:
        folder = str(data_folder() / "stories3M-hf")
        if not Path(folder).is_dir():
            raise SystemExit(f"no {folder}; set INTERP_DATA, or pass --quick")
        from interp import Policy

        texts = real_prompts(options.prompts, Policy.load(folder).tokenizer)
        rows = [measure(folder, texts, options.pairs, options.repeats, more) for more in EXTRA]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
