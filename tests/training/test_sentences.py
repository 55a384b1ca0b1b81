import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data.phrases import LEXICONS
from skyreels_rt.training.data.sentences import (
    clause_split,
    sample_clauses,
    sample_sentence,
    sample_syllables,
)
from skyreels_rt.training.data.speech import LANGUAGES, Voice, synthesise


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_clause_is_in_both_splits(language):
    spoken = {
        split: {
            clause.lower()
            for seed in range(60)
            for clause, _ in sample_clauses(seed, language, split)
        }
        for split in ("train", "held_out")
    }
    assert len(spoken["train"]) > 50 and len(spoken["held_out"]) > 30
    assert not spoken["train"] & spoken["held_out"]
    for split, clauses in spoken.items():
        assert {clause_split(clause) for clause in clauses} == {split}


def test_one_clause_in_five_is_held_out():
    share = sum(clause_split(f"clause {i}") == "held_out" for i in range(4000)) / 4000
    assert 0.17 < share < 0.23
    assert clause_split("Good Morning ") == clause_split("good morning")


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_vary_and_have_pauses_questions_and_numbers(language):
    texts = [sample_sentence(seed, language, "train") for seed in range(80)]
    assert texts == [sample_sentence(seed, language, "train") for seed in range(80)]
    assert len(set(texts)) > 75
    assert any("?" in t for t in texts) and any("," in t for t in texts)
    assert any(c.isdigit() for t in texts for c in t)
    assert all(t[-1] in ".?!" and "{" not in t and "  " not in t for t in texts)
    assert all(t[0].isupper() or t[0].isdigit() for t in texts)


def test_lengths_go_from_one_to_fifteen_seconds():
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed")
    for language in ("en-us", "fr", "ru", "tr"):
        ratios = []
        for duration_s in (1.0, 4.0, 8.0, 15.0):
            for seed in range(4):
                text = sample_sentence(seed, language, "train", duration_s=duration_s)
                spoken_s = synthesise(text, Voice(language)).duration_s
                assert spoken_s < 20.0
                if duration_s >= 4.0:
                    ratios.append(spoken_s / duration_s)
                else:
                    assert spoken_s < 4.0
        assert min(ratios) > 0.5 and max(ratios) < 1.7
        assert 0.8 < sum(ratios) / len(ratios) < 1.25


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_syllables_cover_bilabials_and_vowels(split):
    for seed in range(20):
        text = sample_syllables(seed, split, duration_s=1.0 + 0.7 * seed)
        assert text == sample_syllables(seed, split, duration_s=1.0 + 0.7 * seed)
        words = text.rstrip(".?").replace(",", "").lower().split()
        assert {clause_split(word) for word in words} == {split}
        for pair in (c + v for c in "pbm" for v in "aeiou"):
            assert any(pair in word for word in words)
    assert len({sample_syllables(seed, split) for seed in range(50)}) == 50


def test_lexicons_are_clean():
    for lexicon in LEXICONS.values():
        for row in (
            lexicon.subject,
            lexicon.predicate,
            lexicon.tail,
            lexicon.thing,
            lexicon.link,
            lexicon.cry,
        ):
            assert len(row) >= 4 and len(set(row)) == len(row)
            assert all(p == p.strip() and p and "{" not in p for p in row)
        assert all("{x}" in question for question in lexicon.question)
        assert all("{n}" in number for number in lexicon.number)


def test_bad_arguments():
    with pytest.raises(InvalidArgument, match="language"):
        sample_sentence(1, "xx", "train")
    with pytest.raises(InvalidArgument, match="split"):
        sample_sentence(1, "de", "test")
    with pytest.raises(InvalidArgument, match="split"):
        sample_syllables(1, "test")
    for duration_s in (0.5, 16.0, float("nan")):
        with pytest.raises(InvalidArgument, match="duration_s"):
            sample_sentence(1, "de", "train", duration_s=duration_s)
