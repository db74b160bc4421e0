import pytest

from interp.errors import ConfigError
from training.config import PromptsConfig
from training.prompts import first_words, load_prompts, read_texts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.txt").write_text(
        'One two  three. "Four five!" Six seven eight\n\nNine ten eleven\n', encoding="utf-8"
    )
    (tmp_path / "latin.txt").write_bytes("caf\xe9 noir serr\xe9\n".encode("latin-1"))
    (tmp_path / "t.csv").write_text('label,text\n0,"a, b c"\n1,d e f\n')
    (tmp_path / "t.tsv").write_text('say "hi to them\t3\tx1\nsome other text\t4\tx2\n')
    return tmp_path


def test_lines_sentences_and_latin_1(folder):
    assert read_texts(folder / "a.txt") == ['One two  three. "Four five!" Six seven eight', "Nine ten eleven"]
    assert read_texts(folder / "a.txt", unit="sentence") == [
        "One two  three.",
        '"Four five!',
        "Six seven eight",
        "Nine ten eleven",
    ]
    assert read_texts(folder / "latin.txt") == ["caf\xe9 noir serr\xe9"]


def test_columns(folder):
    assert read_texts(folder / "t.csv", "text") == ["a, b c", "d e f"]
    assert read_texts(folder / "t.tsv", "0") == ['say "hi to them', "some other text"]


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("t.csv", "body", "no column 'body'; it has label, text"),
        ("t.csv", None, "needs prompts.column"),
        ("t.csv", "5", "fewer than 6 columns"),
        ("a.txt", "text", "needs a .csv or .tsv"),
        ("absent.txt", None, "No such file"),
    ],
)
def test_bad_files(folder, name, column, words):
    with pytest.raises(ConfigError, match=words):
        read_texts(folder / name, column)


def test_first_words():
    assert first_words(" a  b c ", 2) == "a b"
    assert first_words("a b", 3) == ""
    assert first_words(" a  b ", 0) == "a b"


def test_split_is_seeded_disjoint_and_without_repeats(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"the film {i % 30} {i}\n" for i in range(90)) + "short one\n")
    config = PromptsConfig(files=(str(tmp_path / "p.txt"),), words=3, heldout=8)
    split = load_prompts(config, seed=1)
    assert len(split.heldout) == 8 and len(split.train) == 22
    assert set(split.train) | set(split.heldout) == {f"the film {i}" for i in range(30)}
    assert load_prompts(config, seed=1) == split
    assert load_prompts(config, seed=2) != split
    fewer = load_prompts(PromptsConfig(files=config.files, words=3, heldout=8, train=5), seed=1)
    assert fewer.train == split.train[:5] and fewer.heldout == split.heldout


@pytest.mark.parametrize("content", ["", "only short\n", "the film was\n" * 5])
def test_too_few_prompts(tmp_path, content):
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(ConfigError, match="different prompts, prompts.heldout = 1 leaves none"):
        load_prompts(PromptsConfig(files=(str(tmp_path / "p.txt"),), words=3, heldout=1), seed=0)
