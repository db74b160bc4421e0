"""Prompts: texts, chats or token ids, the answers that are contrasted after them, the responses that may follow."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from interp.errors import PromptError
from interp.prompts.answers import AnswerPair, answer_pairs, read_answers, with_answers
from interp.prompts.files import arguments_of, read_table, table_of
from interp.prompts.kinds import (
    Kind,
    Prompt,
    check_prompt,
    check_template,
    check_text,
    own_template,
    render_chats,
    same_kind,
)
from interp.prompts.remarks import remarks_on
from interp.prompts.tokens import TokenizedPrompts, encode_after_all, encode_all


@dataclass(frozen=True, repr=False)
class Prompts:
    """What two models are compared on.

    Attributes:
        texts: the prompts, of one kind: strings; chats, each a list of messages {"role": ..., "content": ...}; or
            token ids, each a list of whole numbers, read as they are.
        answers: for each prompt the pair (answer, alternative) whose logits are contrasted at its last token; one
            pair alone holds for all prompts. None: no logit difference, and attribution's target is tuned's top token
            minus base's likeliest other.
        continuations: for each prompt the response that follows it, or None.
        multi_token: what to do with an answer of several tokens: "error"; "first" to contrast first tokens; or "sum"
            to contrast the summed log-probabilities of whole answers. With "sum" lens and attribution contrast the
            first tokens at which the two answers differ; tokens before that, which both share, are read as the end of
            the prompt (in the difference of the sums they cancel).
        bos: put the tokenizer's BOS token before each prompt: None, the tokenizer's own habit, and before chats what
            their template says; True, always; False, never. Never twice.
        groups: for each prompt the name of the template it was made from: prompts of one group are resampled together
            in intervals. None: prompts with the same text form a group.
        decoder_prefixes: for encoder-decoder models what the decoder has said already: one string for all prompts or
            one for each; None is nothing beyond its start token. Answers and continuations follow it.
        chat_template: how chats become text: None, each model's own template; "base" or "tuned", that model's for
            both; or a jinja template for both. After a last message of the assistant the models go on with it, else
            they begin an answer.

        corrupted: for each prompt a counterpart of as many tokens (checked when they are tokenised) in which what
            matters is changed, say a name: the corrupted prompts of patching and of circuits. Answers, continuations
            and decoder's prefixes stay those of the prompt. None: there are none.

    Raises:
        PromptError: no prompts, an empty one, two kinds, or answers, continuations or corrupted prompts that do not fit
            them.
    """

    texts: Sequence[Prompt]
    answers: AnswerPair | Sequence[AnswerPair] | None = field(default=None, kw_only=True)
    continuations: Sequence[str] | None = field(default=None, kw_only=True)
    multi_token: Literal["error", "first", "sum"] = field(default="error", kw_only=True)
    bos: bool | None = field(default=None, kw_only=True)
    groups: Sequence[str] | None = field(default=None, kw_only=True)
    decoder_prefixes: str | Sequence[str] | None = field(default=None, kw_only=True)
    chat_template: str | None = field(default=None, kw_only=True)
    corrupted: Sequence[Prompt] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        checked = [check_prompt(text, f"prompt {index}") for index, text in enumerate(_listed(self.texts))]
        if not checked:
            raise PromptError("there are no prompts; give at least one text, as Prompts(['This movie was really'])")
        kind = same_kind([each for each, _ in checked])
        set_field(self, "texts", tuple(text for _, text in checked))
        if self.multi_token not in ("error", "first", "sum"):
            raise PromptError(f'multi_token is "error", "first" or "sum", not {self.multi_token!r}')
        if self.bos not in (None, True, False) or (self.bos and kind == "ids"):
            hint = "; with token ids put it among them" if kind == "ids" else ""
            raise PromptError(f"bos is None, True or False, not {self.bos!r}{hint}")
        check_template(self.chat_template)
        if self.chat_template is not None and kind != "chat":
            raise PromptError("chat_template is for chats, and these prompts are not; leave it out")
        set_field(self, "answers", answer_pairs(self.answers, len(self)))
        if isinstance(self.decoder_prefixes, str):
            set_field(self, "decoder_prefixes", (self.decoder_prefixes,) * len(self))
        for name in ("continuations", "groups", "decoder_prefixes"):
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, _strings(value, name))
                if len(value) != len(self):
                    raise PromptError(f"{len(self)} prompts but {len(value)} {name}; give one for each prompt")
        if self.groups is None:
            same = (text if isinstance(text, str) else json.dumps(text, default=str) for text in self.texts)
            set_field(self, "groups", tuple(same))
        if self.corrupted is not None:
            set_field(self, "corrupted", _counterparts(self.corrupted, self.texts, kind))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        """How many prompts there are, how the first begins, and what else they carry."""
        names = {"text": ("text", "texts"), "chat": ("chat", "chats"), "ids": ("list of ids", "lists of ids")}
        first = textwrap.shorten(str(self.texts[0]), 40, placeholder=" ...")
        parts = [f"{len(self)} {names[self.kind][len(self) > 1]}: {first!r}{' ...' if len(self) > 1 else ''}"]
        pairs = set(self.answers or ())
        if pairs:
            parts.append("answers " + " / ".join(map(repr, pairs.pop())) if len(pairs) == 1 else "answers of their own")
        parts += [name for name in ("continuations", "corrupted") if getattr(self, name) is not None]
        groups = len(set(self.groups or ()))
        parts += [f"{groups} groups"] if groups < len(self) else []
        return f"Prompts({'; '.join(parts)})"

    @property
    def kind(self) -> Kind:
        """What the prompts are: "text", "chat" or "ids"."""
        return check_prompt(self.texts[0], "prompt 0")[0]

    @property
    def corrupt(self) -> Prompts:
        """The corrupted prompts, with the answers and all else of these.

        Raises:
            PromptError: there are none.
        """
        if self.corrupted is None:
            raise PromptError(
                "these prompts have no corrupted counterparts; give one for each, as Prompts(texts, corrupted=[...])"
            )
        return replace(self, texts=self.corrupted, corrupted=None)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, column: str | None = None, **settings: Any) -> Prompts:
        """Read prompts, and what goes with them, from a file.

        A .csv, .tsv, .jsonl, .json or .parquet file has columns: one of `text`, `prompt` (texts), `messages` (chats)
        or `ids` (token ids), and, where they are there, `answer` and `alternative`, `continuation`, `group`,
        `decoder_prefix` and `corrupted`; others are left unread. A JSON file may also hold bare strings, chats or lists
        of ids. Any other file is text with one prompt a line; its blank lines are skipped.

        Args:
            path: the file, UTF-8.
            column: the column of the prompts, where its name is another or several are there.
            settings: fields of `Prompts`; one that is given takes the place of the file's column.

        Raises:
            PromptError: the file cannot be read, has no such column, or a row does not fit, with the row's number.
        """
        return cls(**arguments_of(read_table(path), column, settings))

    @classmethod
    def from_dataset(cls, data: Any, *, column: str | None = None, **settings: Any) -> Prompts:
        """Take prompts from a `datasets.Dataset`, a pandas frame, or a dict of columns.

        Columns, `column` and `settings` are those of `from_file`.

        Raises:
            PromptError: there is no such column, or a row does not fit, with the row's number from 0.
        """
        return cls(**arguments_of(table_of(data), column, settings))

    def for_models(self, tokenizers: Sequence[Any], *, apart: bool = False) -> Prompts:
        """The same prompts with the one chat template by which every model reads them; texts and ids stay as they are.

        Measures of tokens compare the two models at the same tokens, so a chat must become the same text for both.

        Args:
            tokenizers: tokenizers of base, of tuned, and of the models beside them.
            apart: the models may read a chat in different words, as where only their responses are compared. Where
                they do, `chat_template` stays None, and each model's prompts are tokenised by its own tokenizer.

        Raises:
            PromptError: the models' own templates make different texts of a chat, or one has none.
        """
        if self.kind != "chat" or (self.chat_template is not None and self.chat_template not in ("base", "tuned")):
            return self
        names = ["base", "tuned", *(f"model {index}" for index in range(2, len(tokenizers)))]
        if self.chat_template is not None:
            owner = tokenizers[names.index(self.chat_template)]
            return replace(self, chat_template=own_template(owner, f"{self.chat_template}'s"))
        templates = [own_template(each, f"{name}'s") for each, name in zip(tokenizers, names, strict=True)]
        rendered = [render_chats(each, self.texts, None) for each in tokenizers]
        for name, texts in zip(names, rendered, strict=True):
            for index, (ours, theirs) in enumerate(zip(rendered[0], texts, strict=True)):
                if ours != theirs and apart:
                    return self
                if ours != theirs:
                    raise PromptError(
                        f"base's chat template reads prompt {index} as {_near(ours, theirs)!r}, {name}'s as"
                        f' {_near(theirs, ours)!r}; pass chat_template= (--chat-template): "base", "tuned"'
                        " or a template; or ask for completions alone, where each model reads its own"
                    )
        return replace(self, chat_template=templates[0])

    def tokenize(self, tokenizer: Any, *, decoder_start: int | None = None) -> TokenizedPrompts:
        """Tokenise every prompt, answer and continuation once.

        An answer or continuation is tokenised in the context of its prompt, so that a leading space means the same
        for every kind of tokenizer. Chats are read by `chat_template`, else by the tokenizer's own.

        Args:
            tokenizer: a tokenizer of transformers.
            decoder_start: for encoder-decoder models the token that the decoder starts with: `texts` go to the encoder
                with the special tokens that the tokenizer adds (T5's end token), and the prompt becomes the start
                token and the decoder's prefix. None: the models are causal.

        Raises:
            PromptError: an answer is not one token (its tokens are listed) or unknown to the tokenizer, the two
                answers of a pair share their token, a prompt has no tokens or ids beyond the vocabulary, a chat does
                not fit the template, a corrupted prompt has more or fewer tokens than its prompt, or decoder prefixes
                came for a causal model.
        """
        if decoder_start is None and self.decoder_prefixes is not None:
            raise PromptError("decoder_prefixes are for encoder-decoder models, and these are causal; leave them out")
        texts, given, bos = self._as_texts(tokenizer)
        encoder_ids, contexts = None, texts
        if decoder_start is None:
            befores = encode_all(tokenizer, contexts, bos)
            prompt_ids = given if given is not None else befores
        else:
            encoder_ids = given if given is not None else [_encoder_ids(tokenizer, text, bos) for text in texts]
            contexts, bos = list(cast(Sequence[str], self.decoder_prefixes or [""] * len(self))), False
            befores = encode_all(tokenizer, contexts, bos)
            prompt_ids = [[decoder_start, *ids] for ids in befores]
        for index, ids in enumerate(prompt_ids if encoder_ids is None else encoder_ids):
            if not ids:
                raise PromptError(f"prompt {index} ({texts[index]!r}) has no tokens; drop it or pass bos=True")
        responses = None
        if self.continuations is not None:
            responses = encode_after_all(tokenizer, contexts, self.continuations, bos, befores=befores)
        tokens = TokenizedPrompts(
            prompt_ids=tuple(map(tuple, prompt_ids)),
            response_ids=tuple(map(tuple, responses)) if responses is not None else None,
            answer_ids=None,
            encoder_ids=tuple(map(tuple, encoder_ids)) if encoder_ids is not None else None,
            texts=tuple(texts),
        )
        pairs = cast(tuple[AnswerPair, ...] | None, self.answers)
        if pairs is not None:
            answers = read_answers(tokenizer, contexts, befores, pairs, bos)
            tokens = with_answers(tokens, answers, pairs, self.multi_token, tokenizer)
        if self.corrupted is not None:
            corrupt = self.corrupt.tokenize(tokenizer, decoder_start=decoder_start)
            _check_lengths(tokens, corrupt)
            tokens = replace(tokens, corrupt=corrupt)
        return replace(tokens, remarks=remarks_on(tokens, contexts, pairs, tokenizer))

    def _as_texts(self, tokenizer: Any) -> tuple[list[str], list[list[int]] | None, bool | None]:
        """The prompts as a person reads them, their ids where these were given, and how BOS goes before them."""
        if self.kind == "text":
            return [str(text) for text in self.texts], None, self.bos
        if self.kind == "chat":
            if self.chat_template in ("base", "tuned"):
                raise PromptError(
                    f'chat_template="{self.chat_template}" names a model; call for_models([base, tuned]) with both'
                    " tokenizers first, as compare() does"
                )
            return render_chats(tokenizer, self.texts, self.chat_template), None, bool(self.bos)
        ids = [list(cast(Sequence[int], each)) for each in self.texts]
        for index, row in enumerate(ids):
            if max(row) >= len(tokenizer):
                raise PromptError(
                    f"prompt {index} holds the token id {max(row)}, the tokenizer has {len(tokenizer)} tokens (from 0);"
                    " give ids of this model's tokenizer"
                )
        return [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids], ids, False


def _listed(texts: Any) -> Sequence[Any]:
    found = texts.tolist() if hasattr(texts, "tolist") else texts
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
        raise PromptError(
            f"texts must be a list of strings, of chats or of lists of token ids, not {type(texts).__name__}"
            f" {str(texts)[:40]!r}"
        )
    return found


def _strings(value: Any, name: str) -> tuple[str, ...]:
    found = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(found, str) or not isinstance(found, Sequence) or not all(isinstance(v, str) for v in found):
        raise PromptError(f"{name} must be a list of strings, not {type(value).__name__} {str(value)[:40]!r}")
    return tuple(check_text(text, f"{name} {index}") for index, text in enumerate(found))


def _counterparts(value: Any, texts: Sequence[Prompt], kind: Kind) -> tuple[Prompt, ...]:
    """Corrupted prompts, checked against the prompts that they belong to."""
    given = _listed(value)
    if len(given) != len(texts):
        raise PromptError(f"{len(texts)} prompts but {len(given)} corrupted ones; give one for each prompt")
    found = [check_prompt(each, f"corrupted prompt {index}") for index, each in enumerate(given)]
    odd = next((index for index, (each, _) in enumerate(found) if each != kind), None)
    if odd is not None:
        raise PromptError(f"corrupted prompt {odd} is of another kind ({found[odd][0]}) than the prompts ({kind})")
    return tuple(each for _, each in found)


def _check_lengths(tokens: TokenizedPrompts, corrupt: TokenizedPrompts) -> None:
    """Refuse a corrupted prompt whose positions are not those of its prompt."""
    for name in ("encoder_ids", "prompt_ids"):
        rows, others = getattr(tokens, name), getattr(corrupt, name)
        for index, (row, other) in enumerate(zip(rows or (), others or (), strict=True)):
            if len(row) != len(other):
                raise PromptError(
                    f"prompt {index} has {len(row)} tokens and its corrupted counterpart {len(other)}"
                    f" ({tokens.texts[index][:60]!r}, {corrupt.texts[index][:60]!r}); change it so that both have the"
                    " same number, as positions are compared one with one"
                )


def _encoder_ids(tokenizer: Any, text: str, bos: bool | None) -> list[int]:
    """Ids for an encoder, with every special token that the tokenizer adds by itself."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    if not bos:
        return ids
    start = encode_all(tokenizer, [""], True)[0]
    return ids if ids[:1] == start else [*start, *ids]


def _near(text: str, other: str) -> str:
    """A few characters from where two texts part."""
    start = len(os.path.commonprefix([text, other]))
    return text[max(0, start - 10) : start + 20]
