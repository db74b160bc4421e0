"""What token attribution of a reward model costs, each figure beside its limit.

    python benchmarks/reward.py --model runs/goemotions     both tables (about 10 minutes on a quiet core)
    python benchmarks/reward.py --only roberta              goemotions, roberta, or both (the default)
    python benchmarks/reward.py --json out.json
    python benchmarks/reward.py --quick                     tiny sizes: that it runs, not how fast

Integrated gradients of 32 texts of 32 tokens from the padding token, whose embedding is zero:
`interp.reward.attribute` beside captum's LayerIntegratedGradients (its default rule, Gauss-Legendre) at the fewest
steps with which every text meets the same completeness error, 1 % of the score's range. Both have the same texts,
baseline and target, a logit; captum is given attention mask and position ids, as padding would change them. It runs all
points in one pass or in passes of 32 rows, whichever is the faster in the first round. Times are CPU time of one
thread, in turn in one process, several times over; shown are the median of the ratios and their range.

goemotions  the reward model that `interp train-reward goemotions_reward` makes (--model), texts of
            test.tsv (INTERP_DATA, or ../shared/data beside the repository), range of the logit over its first 1,000.
            Also the error over those 1,000 texts at 1 % and at 0.1 %, and all 28 labels in one pass beside one label.
roberta     RoBERTa-base's shape with random weights and texts of random words; range over 256 of them.

attribute is timed without its comparison with patching (patched_texts=0), as captum has none; a row without a limit
says what the comparison adds.

The limits hold on a machine that does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

TEXTS, TOKENS, TOLERANCE, MOST_STEPS = 32, 32, 0.01, 64
Row = dict[str, Any]


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def data_folder() -> Path:
    return Path(os.environ.get("INTERP_DATA", ROOT.parent / "shared" / "data"))


class Captum:
    """captum's integrated gradients of the same texts."""

    def __init__(self, model: Any, texts: list[str]) -> None:
        from captum.attr import LayerIntegratedGradients

        from interp.models.running import forward_inputs
        from interp.reward.texts import read_texts

        read = read_texts(model, texts)
        self.batch = read.batch(range(len(texts)))
        given = forward_inputs(model.parts, self.batch)
        self.rest = {name: value for name, value in given.items() if name != "input_ids"}
        self.names = [name for name, value in self.rest.items() if hasattr(value, "shape")]
        self.ids = self.batch.input_ids
        self.baseline = self.ids.clone()
        for row, special in enumerate(read.special):
            for place, mark in enumerate(special):
                if not mark:
                    self.baseline[row, place] = model.tokenizer.pad_token_id
        self.target = model.labels.index(model.label)

        def forward(ids: Any, *rest: Any) -> Any:
            return model.model(input_ids=ids, **dict(zip(self.names, rest, strict=True))).logits

        self.method = LayerIntegratedGradients(forward, model.parts.embed)

    def sums(self, steps: int, *, rows: int | None = None) -> Any:
        found = self.method.attribute(
            self.ids,
            baselines=self.baseline,
            target=self.target,
            additional_forward_args=tuple(self.rest[name] for name in self.names),
            n_steps=steps,
            internal_batch_size=rows,
        )
        return found.sum((1, 2)).detach().double().numpy()


def side_by_side(name: str, model: Any, texts: list[str], span: float, repeats: int) -> list[Row]:
    """Both methods at the same completeness error."""
    import numpy as np

    from interp import reward

    ours: Callable[[], Any] = lambda: reward.attribute(  # noqa: E731
        model, texts, baseline="zero", score_range=span, patched_texts=0
    )
    mine = ours()
    change = (mine["score"] - mine["baseline_score"]).values[:, 0]
    peer = Captum(model, texts)
    errors: dict[int, float] = {}
    for steps in range(1, MOST_STEPS + 1):
        errors[steps] = float(np.abs(peer.sums(steps, rows=TEXTS) - change).max() / span)
        print(f"{name}: captum with {steps} steps, error {100 * errors[steps]:.2f} % of the range", file=sys.stderr)
        if errors[steps] <= TOLERANCE:
            break
    ratios: list[float] = []
    units: list[float] = []
    ours()  # the first warms up
    taken = {rows: seconds(lambda: peer.sums(steps, rows=rows)) for rows in (None, TEXTS)}  # noqa: B023
    best = min(taken, key=lambda rows: taken[rows])
    for _ in range(repeats):
        units.append(seconds(lambda: peer.sums(steps, rows=best)))  # noqa: B023
        ratios.append(seconds(ours) / units[-1])
    with_patching = seconds(lambda: reward.attribute(model, texts, baseline="zero", score_range=span))
    error = float((mine["completeness_error"] / mine["score_range"]).max())
    points = mine["points"].values
    return [
        {
            "what": f"{name}: captum, {steps} steps for every text",
            "figure": f"{statistics.median(units):.2f} s",
            "limit": "",
            "range": f"worst completeness error {100 * errors[steps]:.2f} % of the range {span:.3g}",
        },
        {
            "what": f"{name}: interp.reward.attribute over captum",
            "figure": f"{statistics.median(ratios):.3f} x",
            "limit": "0.5",
            "range": f"{min(ratios):.3f} to {max(ratios):.3f}; {points.mean():.1f} points a text ({points.min()} to"
            f" {points.max()}), worst error {100 * error:.2f} %",
            "value": statistics.median(ratios),
        },
        {
            "what": f"{name}: the same with 8 texts patched token by token, over captum",
            "figure": f"{with_patching / statistics.median(units):.2f} x",
            "limit": "",
            "range": "the default of attribute; measured once",
            "value": with_patching / statistics.median(units),
        },
    ]


def goemotions(folder: Path | None, quick: bool, repeats: int) -> list[Row]:
    from interp import reward
    from interp.models import RewardModel

    source = data_folder() / "goemotions" / "test.tsv"
    if folder is None or not folder.is_dir() or not source.is_file():
        print(f"goemotions: no --model folder or no {source}; left out", file=sys.stderr)
        return []
    model = RewardModel.load(str(folder), label="joy", output="logit")
    lines = [line.split("\t")[0] for line in source.read_text(encoding="utf-8").splitlines()]
    every = [text for text in lines if text.strip()]
    chosen = [text for text in every if len(model.tokenizer(text)["input_ids"]) == TOKENS][:TEXTS]
    if len(chosen) < TEXTS:
        raise SystemExit(f"{source} has {len(chosen)} texts of {TOKENS} tokens, {TEXTS} are needed")
    many = every[: 50 if quick else 1000]
    span = reward.score_range(model, many)
    rows = side_by_side("GoEmotions, joy", model, chosen, span["joy"], repeats)
    for tolerance in (TOLERANCE, TOLERANCE / 10):
        found = reward.attribute(model, many, baseline="zero", score_range=span, tolerance=tolerance, patched_texts=0)
        error = float((found["completeness_error"] / found["score_range"]).max())
        points = found["points"].values
        rows.append(
            {
                "what": f"GoEmotions, joy: worst completeness error over {len(many)} texts",
                "figure": f"{100 * error:.4f} % of the range",
                "limit": f"{100 * tolerance:g} %",
                "range": f"range {span['joy']:.2f} logits, {points.mean():.1f} points a text (most {points.max()}),"
                f" {len(found.unconverged)} not reached",
                "value": error,
            }
        )
    spans = reward.score_range(model, many, labels="all")
    one = seconds(lambda: reward.attribute(model, chosen, baseline="zero", score_range=spans, patched_texts=0))
    all_ = seconds(
        lambda: reward.attribute(model, chosen, labels="all", baseline="zero", score_range=spans, patched_texts=0)
    )
    rows.append(
        {
            "what": "GoEmotions: all 28 labels in one pass, over one label",
            "figure": f"{all_ / one:.1f} x",
            "limit": "",
            "range": "",
            "value": all_ / one,
        }
    )
    return rows


def roberta(quick: bool, repeats: int) -> list[Row]:
    import torch
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from interp import reward
    from interp.models import RewardModel

    torch.manual_seed(0)
    vocabulary = 300 if quick else 50265
    shape = dict(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64) if quick else {}
    config = RobertaConfig(vocab_size=vocabulary, max_position_embeddings=514, num_labels=2, **shape)
    network = RobertaForSequenceClassification(config).eval()
    model = RewardModel.load(network, tokenizer=word_tokenizer(vocabulary), label="LABEL_1", output="logit")
    ids = torch.randint(5, vocabulary, (256, TOKENS - 2), generator=torch.Generator().manual_seed(0))
    texts = [" ".join(f"t{i}" for i in row) for row in ids.tolist()]
    span = reward.score_range(model, texts[: 2 * TEXTS if quick else 256])["LABEL_1"]
    return side_by_side("RoBERTa-base's shape", model, texts[:TEXTS], span, repeats)


def word_tokenizer(vocab: int) -> Any:
    """One word a token, between <s> and </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    raw = Tokenizer(models.WordLevel({**words, **{f"t{i}": i for i in range(5, vocab)}}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, words[name]) for name in ("<s>", "</s>")]
    )
    names = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>")
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def main() -> None:
    from benchmarks.compare import show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of the GoEmotions reward model")
    parser.add_argument("--only", default="goemotions,roberta", help="which tables, separated by commas")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    wanted = options.only.split(",")
    repeats = 1 if options.quick else options.repeats
    rows: list[Row] = []
    if "goemotions" in wanted:
        rows += goemotions(options.model, options.quick, repeats)
    if "roberta" in wanted:
        rows += roberta(options.quick, repeats)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
