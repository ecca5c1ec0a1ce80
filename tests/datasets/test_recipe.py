import dataclasses
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.datasets import loading, recipe
from htnet_jax.errors import UserError

VARIANTS = ("", "hs", "vis", "nir")


def _excluded(found):
    return (found.landmarks == "template" and found.align != "none") or (
        found.landmarks == "csv" and found.align == "head"
    )


@st.composite
def recipes(draw):
    choices = {key: draw(st.sampled_from(values)) for key, values in recipe.CHOICES.items()}
    if choices["landmarks"] == "template":
        choices["align"] = "none"
    elif choices["landmarks"] == "csv" and choices["align"] == "head":
        choices["align"] = "onset"
    if choices["clip"] != "0":
        choices["frames"] = draw(st.sampled_from(("2", "8", "16")))
        if choices["align"] == "head":
            choices["align"] = "onset"
    return recipe.make(**choices, variant=draw(st.sampled_from(VARIANTS)))


@settings(max_examples=300, deadline=None)
@given(recipes())
def test_a_name_gives_its_recipe_back(chosen):
    assert recipe.parse(chosen.name) == chosen
    assert isinstance(chosen.size, int)
    assert isinstance(chosen.clip, int)
    # Usable as a folder's name and as TFDS's `dataset/config`.
    assert re.fullmatch(r"[\w+-]+", chosen.name)


@settings(max_examples=200, deadline=None)
@given(recipes(), recipes())
def test_what_differs_has_another_name_text_and_hash(one, other):
    assert (one == other) == (one.name == other.name)
    assert (one == other) == (one.canonical == other.canonical)
    assert (one == other) == (one.hash == other.hash)


def test_every_combination_is_a_recipe_with_its_own_name_or_refused():
    names, refused, count = set(), 0, 0
    kinds = {key: values for key, values in recipe.CHOICES.items() if key != "clip"}
    for values in itertools.product(*kinds.values()):
        choices = dict(zip(kinds, values, strict=True))
        if _excluded(recipe.Recipe(**choices)):
            refused += 1
            with pytest.raises(UserError, match=r"^recipe: "):
                recipe.make(**choices)
        else:
            count += 1
            names.add(recipe.make(**choices).name)
    assert len(names) == count
    # Of nine pairs of align and landmarks, three are refused.
    assert refused * 2 == count


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(recipe.Recipe)])
def test_each_choice_counts(key):
    default = recipe.Recipe()
    for value in recipe.CHOICES.get(key, VARIANTS):
        value = int(value) if key in ("size", "clip") else value
        other = dataclasses.replace(default, **{key: value})
        same = value == getattr(default, key)
        assert (other.name == default.name) == same
        assert (other.canonical == default.canonical) == same
        assert (other.hash == default.hash) == same


def test_the_default_is_spelt_out():
    default = recipe.Recipe()
    assert default.name == "tvl1_28"
    assert default.canonical == (
        "flow=tvl1,size=28,align=onset,landmarks=dlib,order=crop,strain=green_lagrange_small,"
        "apex=midpoint,variant=,frames=none"
    )
    # sha256sum's; a data set that somebody built must stay recognisable.
    assert default.hash == "755b2da73b30ce73"
    assert recipe.parse("") == recipe.make() == default


def test_only_what_differs_is_in_the_name():
    chosen = recipe.make(flow="dis", size=56, align="none", frames="pair", variant="nir")
    assert chosen.name == "dis_56+align-none+variant-nir+frames-pair"


@pytest.mark.parametrize(
    ("choices", "messages"),
    [
        ({"flow": "tvl2"}, ["flow='tvl2' is unknown; use tvl1, farneback, dis"]),
        ({"size": 29}, ["size=29 is unknown; use 28, 56, 112"]),
        ({"colour": "red"}, ["unknown choice 'colour'", "align, apex, clip, flow"]),
        ({"apex": "last", "order": "no", "x": 1}, ["apex='last'", "order='no'", "choice 'x'"]),
        ({"landmarks": "template"}, ["landmarks=template cannot align", "align=none"]),
        ({"landmarks": "template", "align": "head"}, ["landmarks=template cannot align"]),
        ({"landmarks": "csv", "align": "head"}, ["use landmarks=dlib"]),
        ({"clip": 30, "frames": 16}, ["clip=30 is unknown; use 0, 28, 56, 112"]),
        ({"clip": 56}, ["clip=56 needs a number of frames", "add frames=16"]),
        ({"clip": 56, "frames": "pair"}, ["clip=56 needs a number of frames"]),
        ({"frames": "sixteen", "align": "head"}, ["use align=onset with frames=16"]),
    ],
)
def test_wrong_choices_are_reported_together(choices, messages):
    with pytest.raises(UserError) as caught:
        recipe.make(**choices)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("tvl1", "tvl1_", "_28", "28_tvl1", "tvl1_028", "tvl1_28.0", "tvl1_28_", "TVL1_28", "+"),
        *("tvl1_28+", "tvl1_28+align", "tvl1_28+align-", "tvl1_28+none", "tvl1_28+align=none"),
        # What is a default, in another order, or twice, would be a second name.
        *("tvl1_28+align-onset", "tvl1_28+size-28", "tvl1_28+variant-"),
        *("tvl1_28+labels-own",),
        *("tvl1_28+frames-pair+align-none", "tvl1_28+align-none+align-none", " tvl1_28"),
        *("tvl1_28+frames-16+clip-0", "tvl1_28+frames-sixteen+clip-112", "tvl1_28+clip-56"),
        "tvl1_28+align-head+align-none",
    ],
)
def test_a_recipe_has_one_name(name):
    with pytest.raises(UserError, match="recipe"):
        recipe.parse(name)


def test_any_number_of_frames_is_a_choice():
    assert recipe.make(frames=16).frames == "16"
    chosen = recipe.parse("tvl1_28+frames-16")
    assert chosen == recipe.make(frames="16")
    assert chosen.name == "tvl1_28+frames-16"
    assert chosen.canonical.endswith(",frames=16")
    for frames in ("1", "all", "016"):
        with pytest.raises(UserError, match=f"frames='{frames}' is unknown; use none, pair, neigh"):
            recipe.make(frames=frames)
    with pytest.raises(UserError, match="align=head finds points on onset and apex alone"):
        recipe.make(frames=16, align="head")


def test_a_clip_of_frames_with_flow():
    chosen = recipe.make(frames=8, clip="56")
    assert (chosen.clip, chosen.frame_side) == (56, 56)
    assert chosen.name == "tvl1_28+frames-8+clip-56"
    assert chosen.canonical.endswith(",frames=8,clip=56")
    assert "frame_flow" in chosen.frame_keys
    assert recipe.parse(chosen.name) == chosen
    # The short form is spelt out in the name, and so in the folder.
    sixteen = recipe.make(frames="sixteen", align="none")
    assert sixteen == recipe.make(frames=16, clip=112, align="none")
    assert sixteen == recipe.parse("tvl1_28+align-none+frames-sixteen")
    assert sixteen.name == "tvl1_28+align-none+frames-16+clip-112"
    assert recipe.make(frames="sixteen", clip=56).name == "tvl1_28+frames-16+clip-56"


@pytest.mark.parametrize(
    ("name", "known"),
    [
        # Of commit e5e456a, when there were no clips.
        ("farneback_56", "1c173d0c44c6a92b"),
        ("tvl1_28+align-head+frames-pair", "ad60127da7a14177"),
        ("dis_112+align-none+landmarks-template+frames-neighbours", "1054b821ac76df71"),
        ("tvl1_28+variant-vis+frames-16", "a2ee4cda0adb845f"),
    ],
)
def test_older_recipes_keep_their_hashes(name, known):
    chosen = recipe.parse(name)
    assert "clip" not in chosen.canonical
    assert (chosen.hash, chosen.frame_side) == (known, 224)


@pytest.mark.parametrize(
    "name",
    [
        *["..", "../../x", "/x", "a\0b", "tvl1_28/..", "tvl1_28+", "x" * 300],
        *[f"tvl1_28+variant-{v}" for v in ("..", "../x", "/x", "a\nb", "\x1b[2J", "x" * 300)],
        *["tvl1_28+variant-\udcff", "tvl1_28+variant-é", "tvl1_28+frames-" + "9" * 5000],
        *["tvl1_28+frames-999999999", "tvl1_28+frames-٣"],
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_made(name, tmp_path):
    with pytest.raises(UserError):
        recipe.parse(name)
    for dataset in ("casme2", "megc2019", "synthetic"):
        with pytest.raises(UserError):
            loading.build(
                dataset, config=name, manual_dir=str(tmp_path), data_dir=str(tmp_path / "data")
            )
    assert not list(tmp_path.iterdir())
