"""The prompt options of `interp compare`."""

import json

import pytest

import interp
from interp.cli.prompts import prompts_from
from interp.errors import PromptError
from tests.interp.test_cli import models, shell  # noqa: F401 - fixtures

NONE = dict(
    column=None, answer=None, against=None, multi_token="error", chat_template=None, decoder_prefix=None
)  # what a shell gives for options that were not named


def test_prompts_answers_and_sums_from_a_table(shell, models, tmp_path):  # noqa: F811
    rows = [
        {"question": f"this movie was {word}", "answer": " very bad", "alternative": " very good and fun", "group": "a"}
        for word in ("really", "boring")
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ("--prompts", "p.jsonl", "--column", "question", "--multi-token", "sum", "--measure", "logit_diff")
    code, out, err = shell("compare", models / "base", models / "tuned", *options, "--out", "out")
    assert (code, err) == (0, "")
    assert "log P(' very bad') - log P(' very good and fun'): tuned minus base" in out
    loaded = interp.Comparison.load(tmp_path / "out")
    assert loaded["text"].values.tolist() == [row["question"] for row in rows]
    assert loaded["logprob_diff"].shape == (2, 2) and loaded["group"].values.tolist() == [0, 0]


def test_chats_with_a_template_from_a_file(shell, models, tmp_path):  # noqa: F811
    (tmp_path / "chats.json").write_text(json.dumps([[{"role": "user", "content": "was this movie bad"}]]))
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m['content'] }}?{% endfor %} it was")
    options = ("--prompts", "chats.json", "--measure", "next_token", "--out", "out")
    code, _, err = shell("compare", models / "base", models / "tuned", *options)
    assert code == 2 and "base's tokenizer has no chat template; pass chat_template=" in err and err.count("\n") == 1
    code, _, err = shell("compare", models / "base", models / "tuned", *options, "--chat-template", "t.jinja")
    assert (code, err) == (0, "")
    assert interp.Comparison.load(tmp_path / "out")["text"].item() == "was this movie bad? it was"


@pytest.mark.parametrize(
    ("texts", "name", "changes", "message"),
    [
        ([], None, {}, "there are no prompts; give --prompt TEXT, or --prompts FILE"),
        (["a"], "p.txt", {}, "--prompt and --prompts were both given"),
        (["a"], None, {"column": "text"}, "--column names a column of --prompts"),
        (["a"], None, {"against": " good"}, "--answer and --against go together"),
        (["a"], None, {"answer": " bad", "against": ""}, "is empty; give both"),
        (["a"], None, {"multi_token": "last"}, 'multi_token is "error", "first" or "sum"'),
        (["a"], None, {"chat_template": "absent.jinja"}, "cannot read the chat template absent.jinja .No such file"),
        (["a"], None, {"chat_template": "base"}, "chat_template is for chats, and these prompts are not"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, as_a_user, texts, name, changes, message):
    (tmp_path / "p.txt").write_text("this movie\n")
    with pytest.raises(PromptError, match=message) as caught:
        prompts_from(texts, None if name is None else tmp_path / name, **{**NONE, **changes})
    assert "\n" not in str(caught.value)


def test_options_become_prompts(tmp_path):
    (tmp_path / "p.txt").write_text("this movie\nthe plot\n")
    prompts = prompts_from(None, tmp_path / "p.txt", **{**NONE, "answer": " bad", "against": " good"})
    assert prompts == interp.Prompts(["this movie", "the plot"], answers=(" bad", " good"))
    prefixed = prompts_from(["this movie"], None, **{**NONE, "decoder_prefix": "it was"})
    assert prefixed == interp.Prompts(["this movie"], decoder_prefixes="it was")
