"""Prompts from files and data sets."""

import json
from pathlib import Path

import pandas as pd
import pytest

from interp.errors import PromptError
from interp.prompts import Prompts

TEXTS = ("this movie was", 'a "great", boring film', "the plot\nwas very")
ANSWERS = ((" bad", " good"), (" boring", " fun"), (" bad", " great"))
CHATS = [
    [{"role": "user", "content": "was it bad"}],
    [{"role": "user", "content": "was it"}, {"role": "assistant", "content": "it was"}],
]
FRAME = pd.DataFrame(
    {
        "number": [1, 2, 3],
        "text": TEXTS,
        "answer": [first for first, _ in ANSWERS],
        "alternative": [second for _, second in ANSWERS],
        "continuation": [" and bad", " and good", " and fun"],
        "group": ["a", "b", "a"],
    }
)


def as_csv(path):
    FRAME.to_csv(path, index=False)


def as_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in FRAME.to_dict("records")) + "\n\n")


def as_json(path):
    path.write_text(json.dumps(FRAME.to_dict("records"), indent=2))


def as_parquet(path):
    FRAME.to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("p.csv", as_csv),
        ("p.jsonl", as_jsonl),
        ("p.json", as_json),
        ("lines.json", as_jsonl),
        ("p.PARQUET", as_parquet),
    ],
)
def test_every_format_gives_the_same_prompts(tmp_path, name, write):
    write(tmp_path / name)
    prompts = Prompts.from_file(tmp_path / name)
    assert prompts == Prompts(
        TEXTS, answers=ANSWERS, continuations=FRAME["continuation"].tolist(), groups=FRAME["group"].tolist()
    )


def test_a_frame_a_dataset_and_a_dict_give_them_too():
    from datasets import Dataset

    expected = Prompts.from_dataset(FRAME)
    assert expected.texts == TEXTS and expected.answers == ANSWERS
    assert Prompts.from_dataset(Dataset.from_pandas(FRAME)) == expected
    assert Prompts.from_dataset(FRAME.to_dict("list")) == expected


def test_tab_separated_texts_may_hold_bare_quotation_marks(tmp_path):
    (tmp_path / "p.tsv").write_text('text\tgroup\n"great film, it was\tx\nbad\ty\n')
    assert Prompts.from_file(tmp_path / "p.tsv").texts == ('"great film, it was', "bad")


def test_a_text_file_has_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeffthis movie\r\n\r\n the plot \u2028was \n".encode())
    assert Prompts.from_file(tmp_path / "p.txt").texts == ("this movie", " the plot \u2028was ")


def test_chats_and_ids_from_json_and_parquet(tmp_path):
    from datasets import Dataset

    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": chat}) for chat in CHATS))
    pd.DataFrame({"messages": CHATS}).to_parquet(tmp_path / "chats.parquet")
    (tmp_path / "bare.json").write_text(json.dumps(CHATS))
    dataset = Dataset.from_dict({"messages": CHATS})
    for prompts in (
        Prompts.from_file(tmp_path / "chats.jsonl"),
        Prompts.from_file(tmp_path / "chats.parquet"),
        Prompts.from_file(tmp_path / "bare.json"),
        Prompts.from_dataset(dataset),
        Prompts.from_dataset(pd.read_parquet(tmp_path / "chats.parquet")),
        Prompts.from_dataset({"messages": [{key: [m[key] for m in chat] for key in chat[0]} for chat in CHATS]}),
    ):
        assert prompts.kind == "chat" and [list(chat) for chat in prompts.texts] == CHATS
    pd.DataFrame({"ids": [[1, 2], [3]]}).to_parquet(tmp_path / "ids.parquet")
    (tmp_path / "ids.jsonl").write_text("[1, 2]\n[3]\n")
    for name in ("ids.parquet", "ids.jsonl"):
        assert Prompts.from_file(tmp_path / name).texts == ((1, 2), (3,))


def test_a_column_can_be_named_and_settings_take_the_place_of_columns(tmp_path):
    as_csv(tmp_path / "p.csv")
    prompts = Prompts.from_file(tmp_path / "p.csv", column="continuation", answers=(" bad", " fun"), bos=True)
    assert prompts.texts == (" and bad", " and good", " and fun") and prompts.continuations is None
    assert prompts.answers == ((" bad", " fun"),) * 3 and prompts.bos is True


def test_words_for_nothing_are_words(tmp_path):
    (tmp_path / "p.csv").write_text("text\nNA\nnull\nnan\n1.50\n")
    assert Prompts.from_file(tmp_path / "p.csv").texts == ("NA", "null", "nan", "1.50")


def test_a_cell_of_a_million_characters(tmp_path):
    (tmp_path / "p.csv").write_text("text\n" + "a " * 500_000 + "\n")
    assert len(Prompts.from_file(tmp_path / "p.csv").texts[0]) == 1_000_000


WIDE = b"a " * 500 + b"," + b",".join(b"%d" % number for number in range(500))
FILES = [
    ("absent.txt", None, None, "cannot read prompts from .*absent.txt .No such file"),
    ("p.txt", b"caf\xe9\n", None, "it is not UTF-8 text.; give a UTF-8 text file"),
    ("p.xlsx", b"PK\x03\x04\xff\xfe", None, "it is not UTF-8 text"),
    ("p.txt", b"\n  \n", None, "p.txt holds no prompts"),
    ("p.txt", b"a\n", "text", "p.txt has no column 'text'; it has no columns"),
    ("p.txt", b"a\n\xed\xa0\x80", None, "not UTF-8"),
    ("p.csv", b"", None, "p.csv is empty; its first line names the columns"),
    ("p.csv", b"text\n", None, "p.csv holds no prompts"),
    ("p.csv", b"txt,answer\na,b\n", None, "has no column text, prompt, messages or ids; name one .*it has txt, answer"),
    ("p.csv", b"text,prompt\na,b\n", None, r"has several columns of prompts \(text, prompt\); name one"),
    ("p.csv", b"text,group\na,b\n", "question", "has no column 'question'; it has text, group"),
    ("p.csv", WIDE + b"\n" + WIDE, None, "it has a a a a a a a a a a a a a a a ..., 0, 1, 2, .*, 10, ..."),
    ("p.csv", b"text,text\na,b\n", None, "has two columns 'text'"),
    ("p.csv", b"text,answer\na,b\n", None, "has a column 'answer' and none 'alternative'"),
    (
        "p.csv",
        b"text,group\na,b\nthis, or that,b\n",
        None,
        "line 3 has 3 cells, its first line 2 columns .text, group.; quote",
    ),
    ("p.csv", b"text,group\na\n", None, "line 2 has 1 cells"),
    ("p.csv", b'text\n"a\n', None, "line 2: unexpected end of data"),
    ("p.csv", b"text\na\n \n", None, "line 3 is empty"),
    ("p.csv", b"text,answer,alternative\na,b,c\na,,c\n", None, "line 3 has an empty answer"),
    ("p.csv", b"messages\nhello\n", None, r"column 'messages' is for chats \(lists of messages\) and holds texts"),
    ("p.csv", b"ids\n1 2\n", None, "column 'ids' is for lists of token ids and holds texts"),
    ("p.tsv", b"text\tgroup\na\tb\tc\n", None, "line 2 has 3 cells.*hold tabs in a .csv file"),
    ("p.jsonl", b'{"text": "a"}\n{"text": \n', None, "line 2 is no JSON .Expecting value."),
    ("p.jsonl", b'{"text": "a"}\n"b"\n', None, "line 2 is no object, unlike the rows before it"),
    ("p.jsonl", b'"b"\n{"text": "a"}\n', None, "line 2 is an object, unlike the rows before it"),
    ("p.jsonl", b'{"text": "a"}\n{"group": "b"}\n', None, "line 2 has no text; fill it in or drop the row"),
    ("p.jsonl", b'{"text": 3}\n', None, "line 1 is int '3'"),
    ("p.jsonl", b'{"text": "a"}\n{"text": [1]}\n', None, "line 1 is a text and .*line 2 is token ids"),
    ("p.jsonl", b'{"text": "a", "continuation": 4}\n', None, "line 1: continuation is int '4', not a text"),
    ("p.jsonl", b'{"messages": [{"role": "user"}]}\n', None, "line 1, message 0 has no 'content'"),
    ("p.jsonl", b'"\\ud800"\n', None, "line 1 is no valid Unicode"),
    ("p.jsonl", b"[" * 100_000, None, "line 1 is no JSON .nested too deeply."),
    ("p.json", b'{"texts": ["a"], "answers": 3}', None, "holds an object with texts, answers; give a list of rows"),
    ("p.json", b"3", None, "holds int; give a list of rows"),
    ("p.json", b"[]", None, "p.json holds no prompts"),
    ("p.json", b"[\n{,\n]", None, "line 1 is no JSON"),
    ("p.parquet", b"PAR1 and no more", None, "it is no Parquet file, or a damaged one"),
    ("absent.parquet", None, None, "cannot read prompts from .*absent.parquet .No such file"),
]


@pytest.mark.parametrize(("name", "content", "column", "message"), FILES, ids=[message[:50] for *_, message in FILES])
def test_a_file_that_does_not_fit_is_one_line(tmp_path, name, content, column, message, as_a_user):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        Prompts.from_file(tmp_path / name, column=column)
    assert "\n" not in str(caught.value) and len(str(caught.value).replace(str(tmp_path), "")) < 300


def test_a_folder_is_no_file_of_prompts(tmp_path):
    with pytest.raises(PromptError, match="Is a directory"):
        Prompts.from_file(tmp_path)


def test_a_damaged_parquet_file_is_one_line(tmp_path):
    pd.DataFrame({"text": ["this movie was"] * 5000}).to_parquet(tmp_path / "p.parquet", compression=None)
    raw = bytearray((tmp_path / "p.parquet").read_bytes())
    raw[4:60] = bytes(56)
    (tmp_path / "p.parquet").write_bytes(raw)
    with pytest.raises(PromptError, match="it is no Parquet file, or a damaged one"):
        Prompts.from_file(tmp_path / "p.parquet")


def test_missing_cells_of_a_frame():
    frame = FRAME.assign(text=["a", None, "b"])
    with pytest.raises(PromptError, match="the data set, row 1 has no text"):
        Prompts.from_dataset(frame)
    with pytest.raises(PromptError, match="the data set, row 2 has no answer"):
        Prompts.from_dataset(FRAME.assign(answer=[" bad", " bad", float("nan")]))


def test_what_is_no_data_set(as_a_user):
    from datasets import Dataset, DatasetDict

    splits = DatasetDict({"train": Dataset.from_dict({"text": ["a"]}), "test": Dataset.from_dict({"text": ["b"]})})
    with pytest.raises(PromptError, match=r"has the splits train, test; pass one of them, as data\['train'\]"):
        Prompts.from_dataset(splits)
    with pytest.raises(PromptError, match="take a part of a stream"):
        Prompts.from_dataset(splits["train"].to_iterable_dataset())
    with pytest.raises(PromptError, match="not list"):
        Prompts.from_dataset(["a"])
    with pytest.raises(PromptError, match=r"differ in length \(text 2, group 1\)"):
        Prompts.from_dataset({"text": ["a", "b"], "group": ["c"]})
    with pytest.raises(PromptError, match="has two columns 'text'"):
        Prompts.from_dataset(pd.concat([FRAME[["text"]], FRAME[["text"]]], axis=1))


def test_real_sentences_come_through_every_format(real_data, tmp_path):
    reviews = Path(real_data) / "imdb-sample"
    source = next(iter(sorted(reviews.glob("*.csv"))))
    prompts = Prompts.from_file(source, column="text")
    frame = pd.read_csv(source)
    assert prompts.texts == tuple(frame["text"])
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    assert Prompts.from_file(tmp_path / "p.parquet") == Prompts.from_file(tmp_path / "p.jsonl") == prompts
