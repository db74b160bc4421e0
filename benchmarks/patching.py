"""What patching costs beside TransformerLens: every head's z of GPT-2-small's shape, across two models.

    python benchmarks/patching.py                 (a few minutes on one quiet core)
    python benchmarks/patching.py --json out.json
    python benchmarks/patching.py --quick         a small model, one round: that it runs, not how fast

Random weights in GPT-2-small's shape (12 layers of 12 heads, width 768, vocabulary 50257) and a second model a little
away from them; 8 prompts of 16 tokens; one thread; the metric is a logit difference. TransformerLens 4.3 runs its own
loop, `transformer_lens.patching.get_act_patch_attn_head_out_all_pos`, over its bridge of the recipient, with the cache
of its bridge of the source at hand. Ours is the part of `activation_patching` that does the same work, from two loaded
models to the metric of every prompt under every patch, the source's pass and the check of the recording included.
Attribution patching is timed likewise, from loaded models to the map, without the exact patches beside it. Each
round times both before and after the loop, by processor time; shown are the median of the rounds' ratios and their
range. The exact result is compared with a plain loop of hooks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

PROMPTS, TOKENS = 8, 16
LIMITS = {"activation": 3.0, "attribution": 40.0, "error": 1e-5}


def models(quick: bool) -> tuple[Any, Any, Any]:
    """Recipient, source, and a tokenizer of theirs."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    shape: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 999} if quick else {}
    config = GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
    raw = Tokenizer(kinds.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="w0", bos_token="w0", pad_token="w0")
    torch.manual_seed(0)
    recipient = GPT2LMHeadModel(config).eval()
    source = GPT2LMHeadModel(config).eval()
    source.load_state_dict(recipient.state_dict())
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return recipient, source, tokenizer


def peer(recipient: Any, source: Any, tokenizer: Any, ids: Any, answers: Any) -> Callable[[], Any]:
    """TransformerLens's loop over the heads; its result is the mean of the metric, [layer, head]."""
    import torch
    import transformer_lens.patching as patching

    from benchmarks.peer import boot

    to, of = boot(recipient, tokenizer), boot(source, tokenizer)
    rows = torch.arange(len(ids))

    def metric(logits: Any) -> Any:
        last = logits[:, -1]
        return (last[rows, answers[:, 0]] - last[rows, answers[:, 1]]).mean()

    def run() -> Any:
        with torch.no_grad():
            _, cache = of.run_with_cache(ids, prepend_bos=False, names_filter=lambda name: name.endswith("hook_z"))
            return patching.get_act_patch_attn_head_out_all_pos(to, ids, cache, metric)

    return run


def plain_loop(recipient: Any, source: Any, ids: Any, answers: Any) -> Any:
    """The same by hooks of torch on the output projections of GPT-2, one forward pass a head: [prompt, head of all]."""
    import torch

    z: dict[int, Any] = {}
    blocks, size = source.transformer.h, source.config.n_embd // source.config.n_head
    handles = [
        block.attn.c_proj.register_forward_pre_hook(lambda _, args, layer=layer: z.__setitem__(layer, args[0]))
        for layer, block in enumerate(blocks)
    ]
    rows, columns = torch.arange(len(ids)), []
    with torch.no_grad():
        source(ids)
        for handle in handles:
            handle.remove()
        for layer, block in enumerate(recipient.transformer.h):
            for head in range(source.config.n_head):
                part = slice(head * size, (head + 1) * size)

                def hook(_: Any, args: Any, layer: int = layer, part: slice = part) -> Any:
                    changed = args[0].clone()
                    changed[..., part] = z[layer][..., part]
                    return (changed,)

                handle = block.attn.c_proj.register_forward_pre_hook(hook)
                last = recipient(ids).logits[:, -1].double()
                handle.remove()
                columns.append(last[rows, answers[:, 0]] - last[rows, answers[:, 1]])
    return torch.stack(columns, dim=1)


def timed(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """The table's rows."""
    import torch

    from interp import Policy, Prompts
    from interp.patching import attribution_map, patch_runs, runs_of

    torch.set_num_threads(1)
    recipient, source, tokenizer = models(quick)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, recipient.config.vocab_size, (PROMPTS, TOKENS), generator=generator)
    answers = torch.tensor([[5, 9]] * PROMPTS)
    prompts = Prompts([" ".join(f"w{i}" for i in row) for row in ids.tolist()], answers=(" w5", " w9"), bos=False)
    policies = [Policy.load(model, tokenizer=tokenizer) for model in (recipient, source)]
    runs = runs_of(*policies, prompts)

    def exact() -> Any:
        return patch_runs(runs, sites="z")

    def attributed() -> Any:
        return attribution_map(runs, sites="z")

    loop = peer(recipient, source, tokenizer, ids, answers)
    expected = plain_loop(recipient, source, ids, answers)
    found = exact()
    patched = torch.tensor((found["effect"] + found["recipient"]).values)
    error = float((patched - expected).abs().max() / expected.abs().max())
    theirs = loop().double().flatten()
    apart = float((patched.mean(0) - theirs).abs().max() / theirs.abs().max())
    ratios: dict[str, list[float]] = {"activation": [], "attribution": []}
    attributed()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        before = [timed(exact), *(timed(attributed) for _ in range(3))]
        slow = timed(loop)
        after = [timed(exact), *(timed(attributed) for _ in range(3))]
        ratios["activation"].append(slow / statistics.mean([before[0], after[0]]))
        ratios["attribution"].append(slow / statistics.median([*before[1:], *after[1:]]))
    rows = []
    for name, label in (("activation", "every head, exact"), ("attribution", "every head, attribution patching")):
        values = ratios[name]
        spread = f"{min(values):.2f} to {max(values):.2f} over {rounds} rounds"
        rows.append({"what": label, "figure": f"{statistics.median(values):.2f} x", "limit": f"{LIMITS[name]:.0f}",
                     "detail": spread, "value": statistics.median(values), "values": values})  # fmt: skip
    rows.append({"what": "exact against a plain loop of hooks", "figure": f"{error:.1e}", "limit": "1e-05",
                 "detail": f"of the largest; TransformerLens's means are {apart:.1e} apart",
                 "value": error})  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """The table as text."""
    keys = ("what", "figure", "limit", "detail")
    table = [keys, *(tuple(str(row[key]) for key in keys) for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(keys))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = measure(chosen.quick, 1 if chosen.quick else chosen.rounds)
    print(show(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
