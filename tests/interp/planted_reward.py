"""Tiny reward models: one whose score is planted by its weights, and random ones with tokenizers of their own."""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast

from interp.models import RewardModel
from tests.interp.architectures import build

SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
WORDS = (
    "the a of and to it that this is was not very so really i me you he she they john mary great good terrible bad"
    " film book day dog story plot time people thing way think say made said there what here are smart but use utilize"
).split()
MARKS = list("!?.,:")


def word_tokenizer(size: int = 80) -> PreTrainedTokenizerFast:
    """Words and marks one token each, lower-cased, between [CLS] and [SEP]."""
    from tokenizers.normalizers import Lowercase

    names = [*SPECIAL, *MARKS, *WORDS]
    assert len(names) <= size
    raw = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    raw.normalizer = Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\s+"), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), raw.pre_tokenizer])
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL[name]) for name in ("[CLS]", "[SEP]")]
    )
    keys = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **keys)


def random_model(
    name: str = "DistilBertForSequenceClassification", output: str = "logit", seed: int = 0
) -> RewardModel:
    """A tiny random classifier of three labels."""
    return RewardModel.load(build(name, seed), tokenizer=word_tokenizer(), label="LABEL_1", output=output)


def planted(context: int = 64) -> RewardModel:
    """A GPT-2 classifier whose logit is the number of "!", by its weights.

    [SEP], the last token, attends to [CLS] with a large logit, to "!" with 0 and to other tokens hardly at all, so that
    the attention to "!" grows in proportion to their number while it is small. Its value vector reads "!" alone.
    """
    tokenizer = word_tokenizer()
    width, large = 8, 6.0
    config = GPT2Config(
        n_layer=1, n_head=1, n_embd=width, n_inner=8, n_positions=context, vocab_size=len(tokenizer), pad_token_id=0,
        num_labels=1, id2label={0: "exclamation"}, label2id={"exclamation": 0}, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).eval()
    kinds = {SPECIAL["[CLS]"]: 1, SPECIAL["[SEP]"]: 2, tokenizer.convert_tokens_to_ids("!"): 0}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for index in range(len(tokenizer)):
            kind = kinds.get(index, 3)
            model.transformer.wte.weight[index, 2 * kind] = 1.0
            model.transformer.wte.weight[index, 2 * kind + 1] = -1.0
        for norm in (model.transformer.h[0].ln_1, model.transformer.h[0].ln_2, model.transformer.ln_f):
            norm.weight.fill_(1.0)  # of every embedding the variance is 1/4: the norm doubles it
        attention = model.transformer.h[0].attn
        attention.c_attn.bias[0] = 1.0  # every query
        scale = width**0.5 / 2
        attention.c_attn.weight[2, width] = large * scale  # the key of [CLS]
        attention.c_attn.weight[6, width] = -2 * large * scale  # the key of a word
        attention.c_attn.weight[4, width] = -2 * large * scale  # the key of [SEP]
        attention.c_attn.weight[0, 2 * width] = 0.5  # the value of "!" is 1 in the first dimension
        attention.c_proj.weight[0, 0], attention.c_proj.weight[0, 1] = 1.0, -1.0
        slope = torch.exp(torch.tensor(large))  # one "!" has attention exp(-large); the last norm doubles its write
        model.score.weight[0, 0] = slope / 2
    return RewardModel.load(model, tokenizer=tokenizer, output="logit")
