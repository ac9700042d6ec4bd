"""Hashes and seeds that stand in run folders: they must not change between versions."""

from fastprompt._utils.hashing import digest_json, digest_texts
from fastprompt._utils.seeds import numbered_seed


def test_digests_are_as_in_saved_runs():
    facts = {"b": [1, 2.5, None], "a": {"é": "ß", "x": True}}
    wanted = "01c475ab53d03b8b1f0c818f705fdf0a5891c3587f4fe0bff98760e788d45723"
    assert digest_json(facts) == wanted
    assert digest_json(dict(reversed(facts.items()))) == wanted
    assert digest_json({**facts, "b": [1, 2.5, 0]}) != wanted


def test_digests_of_texts_are_as_in_saved_runs():
    wanted = "30eb5e2cf1102e0611f70c363b34d2b2253b1d64a988bc71f5c2c5c5f61c926e"
    assert digest_texts("a", "é", "3") == wanted
    assert digest_texts("aé", "3") != wanted


def test_numbered_seeds_are_as_in_saved_runs():
    assert numbered_seed(0, 5) == 5
    assert numbered_seed(7, 2) == 7_000_023
