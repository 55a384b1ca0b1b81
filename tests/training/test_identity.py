"""People are drawn by seed alone, differ from each other, and are described truthfully."""

import dataclasses
import itertools

import numpy as np
import pytest

from skyreels_rt.errors import InvalidArgument
from skyreels_rt.training.data import identity as people


def test_the_same_seed_is_the_same_person_and_leaves_the_global_state_alone():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    assert people.sample_identity(5) == people.sample_identity(5)
    assert people.sample_identity(5) != people.sample_identity(6)
    assert np.array_equal(np.random.get_state()[1], before)


def test_a_thousand_people_differ_in_what_can_be_seen():
    seen = set()
    for seed in range(1000):
        person = people.sample_identity(seed)
        seen.add(
            (
                person.sex, round(person.skin * 2), person.hair_style, person.hair_color,
                person.eye_color, person.glasses, person.beard, person.background_color,
                person.background_kind, person.clothing_color, round(person.face_width * 50),
            )
        )  # fmt: skip
    assert len(seen) == 1000


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("hair_color", people.HAIR_COLORS),
        ("background_color", people.BACKGROUND_COLORS),
        ("clothing_color", people.CLOTHING_COLORS),
    ],
)
def test_colour_classes_are_all_used_and_about_equally_often(field, names):
    assert len(names) >= 6
    found = [getattr(people.sample_identity(seed), field) for seed in range(700)]
    counts = {name: found.count(name) for name in names}
    assert min(counts.values()) > 0.6 * 700 / len(names)


@pytest.mark.parametrize("colors", [people.HAIR_COLORS, people.BACKGROUND_COLORS])
def test_colour_classes_are_well_separated(colors):
    for one, other in itertools.combinations(colors.values(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 60


def test_captions_name_what_is_drawn():
    for seed in range(60):
        person = people.sample_identity(seed)
        for phrasing in range(8):
            text = people.caption(person, "smiling", seed=phrasing)
            assert person.sex in text.split()
            assert person.background_color in text
            assert "smiling" in text
            assert ("glasses" in text) == (person.glasses != "none")
            if person.hair_style == "bald":
                assert "bald" in text
                assert " hair" not in text
            else:
                assert person.hair_color in text


def test_captions_have_several_phrasings_and_repeat_by_seed():
    person = people.sample_identity(3)
    texts = [people.caption(person, "neutral", seed=seed) for seed in range(40)]
    assert len(set(texts)) >= 4
    assert texts == [people.caption(person, "neutral", seed=seed) for seed in range(40)]


def test_skin_follows_its_tone():
    person = people.sample_identity(3)
    tones = [
        sum(people.skin_color(dataclasses.replace(person, skin=skin))) for skin in (0.0, 2.5, 5, 7)
    ]
    assert tones == sorted(tones, reverse=True)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "3"])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(InvalidArgument, match="seed"):
        people.sample_identity(seed)


def test_an_unknown_expression_is_refused():
    with pytest.raises(InvalidArgument, match="expression"):
        people.caption(people.sample_identity(0), "furious")
