from training.batches import by_length, pad_right
from training.seeding import derive, permutation


def test_every_text_once_and_little_padding():
    lengths = [permutation(40, i)[0] + 1 for i in range(1000)]
    batches = by_length(lengths, 16, seed=3)
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    assert max(map(len, batches)) == 16
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths), "random batches pad by three quarters here"
    assert batches == by_length(lengths, 16, seed=3) != by_length(lengths, 16, seed=4)
    firsts = [min(lengths[i] for i in batch) for batch in batches]
    assert firsts != sorted(firsts)


def test_pad_right():
    ids, mask = pad_right([[5, 6, 7], [8]], pad_id=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_seeds_of_each_purpose_differ_and_are_fixed():
    seeds = {derive(0, "a"), derive(0, "b"), derive(1, "a"), derive(0, "a", 1)}
    assert len(seeds) == 4 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "a") == derive(0, "a")
    assert sorted(permutation(9, 1)) == list(range(9)) and permutation(9, 1) != permutation(9, 2)
