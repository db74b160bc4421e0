from dataclasses import replace

import pytest

from interp.errors import ConfigError
from training.config import PromptsConfig
from training.prompts import first_words, load_prompts, not_fetched, read_texts


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
        ("a.txt", "text", "needs a .csv, .tsv, .jsonl, .jsonl.gz or .parquet file"),
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


def lines(count=12):
    return [f"the film {i} goes on" for i in range(count)]


def test_prefix_stands_before_every_prompt_and_counts_as_no_word(tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(lines()))
    split = load_prompts(PromptsConfig(files=(str(tmp_path / "p.txt"),), words=3, heldout=2, prefix="Go on: "), seed=0)
    assert set(split.train + split.heldout) == {f"Go on: the film {i}" for i in range(12)}


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet", "p.csv"])
def test_columns_of_every_format_give_the_same_split(tmp_path, name):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": lines(), "other": range(12)})
    write = {
        "p.jsonl": lambda path: frame.to_json(path, orient="records", lines=True),
        "p.parquet": frame.to_parquet,
        "p.csv": lambda path: frame.to_csv(path, index=False),
    }
    write[name](tmp_path / name)
    (tmp_path / "p.txt").write_text("\n".join(lines()))
    config = PromptsConfig(files=(str(tmp_path / name),), column="text", words=3, heldout=2)
    assert load_prompts(config, seed=0) == load_prompts(
        PromptsConfig(files=(str(tmp_path / "p.txt"),), words=3, heldout=2), seed=0
    )
    if name != "p.csv":
        with pytest.raises(ConfigError, match="prompts.column holds a int in row 1, not a text"):
            read_texts(tmp_path / name, "other")


def test_datasets_in_memory_and_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {"train": datasets.Dataset.from_dict({"text": lines(8)}),
             "test": datasets.Dataset.from_dict({"text": lines(12)[8:]})}  # fmt: skip
    both = datasets.DatasetDict(parts)
    config = PromptsConfig(splits=("train", "test"), words=3, heldout=2)
    given = load_prompts(config, seed=0, dataset=both)
    assert set(given.train + given.heldout) == {f"the film {i}" for i in range(12)}
    assert load_prompts(config, seed=0, dataset=datasets.concatenate_datasets(list(parts.values()))) == given
    both.save_to_disk(tmp_path / "saved")
    assert load_prompts(replace(config, dataset=str(tmp_path / "saved")), seed=0) == given
    for name, part in parts.items():
        part.to_json(tmp_path / "files" / f"{name}.jsonl")
    assert load_prompts(replace(config, dataset=str(tmp_path / "files")), seed=0) == given
    with pytest.raises(ConfigError, match="no column 'body'; it has text; set prompts.column"):
        load_prompts(replace(config, column="body"), seed=0, dataset=both)
    with pytest.raises(ConfigError, match="no split 'dev'; it has train, test"):
        load_prompts(replace(config, splits=("dev",)), seed=0, dataset=both)
    with pytest.raises(ConfigError, match="must be a datasets.Dataset, not a"):
        load_prompts(config, seed=0, dataset=3)


def test_what_would_be_fetched(tmp_path):
    config = PromptsConfig(dataset="google/emotions", dataset_config="simple", splits=("train", "test"), column="text")
    assert not_fetched(config) == (
        "dataset google/emotions, configuration simple, train and test, column text: not fetched"
    )
    assert not_fetched(PromptsConfig(files=("a.txt",))) is None
    assert not_fetched(PromptsConfig(dataset=str(tmp_path))) is None


def test_an_unreachable_dataset_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("no network\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigError, match="cannot load prompts.dataset 'some/name' .no network.; correct"):
        load_prompts(PromptsConfig(dataset="some/name"), seed=0)


def test_goemotions_as_the_exercise_cuts_it(real_data):
    files = tuple(str(real_data / "goemotions" / name) for name in ("train.tsv", "test.tsv"))
    split = load_prompts(PromptsConfig(files=files, column="0", words=4, heldout=64), seed=0)
    assert len(split.train) > 40_000 and all(len(prompt.split()) == 4 for prompt in split.train)
    assert not set(split.train) & set(split.heldout)
