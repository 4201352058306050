"""Class order: one matcher with one policy, by name; by number only where names say nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from timm_robust.data.class_order import match_classes
from timm_robust.errors import UserError

ARRAYS = [str(number) for number in range(10)]
WORDNET = ["n01440764", "n01443537", "n02012849"]
"""tench, goldfish and one of the two cranes."""


def match(known, wanted, **settings):
    return match_classes(known, wanted, owner="network 'x'", data="data 'y'", remedy="do this", **settings)


def sentence(known, wanted, **settings) -> str:
    with pytest.raises(UserError) as caught:
        match(known, wanted, **settings)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(": do this")
    return str(caught.value)


def test_by_name_in_any_order_and_a_part_of_them() -> None:
    assert match(["cat", "dog"], ["cat", "dog"]) == [0, 1]
    assert match(["cat", "dog", "owl"], ["owl", "cat"]) == [2, 0]
    assert match(ARRAYS, ["3", "8"]) == [3, 8]
    # folders are sorted as text: the names are right where the numbers are not
    assert match(sorted(map(str, range(11))), list(map(str, range(11))))[2] == 3


def test_by_number_without_names() -> None:
    for known, wanted in ((None, ["cat"]), ((), ["cat"]), (["cat"], None), (["cat"], ())):
        assert match(known, wanted) is None
    assert match(ARRAYS, [*"abcdefghij"]) is None and match([*"abcdefghij"], ARRAYS) is None
    assert match([*"abcdefghij"], ARRAYS[:7]) is None, "labels of arrays are class numbers, of however many classes"


def test_numbers_do_not_decide_where_the_counts_forbid_it() -> None:
    assert "network 'x' has 10 classes and data 'y' 2, and without names on both sides" in sentence(ARRAYS, ["a", "b"])
    assert "has 2 classes and data 'y' 10" in sentence(["a", "b"], ARRAYS)


def test_folders_named_by_other_numbers_than_their_own_do_have_names() -> None:
    """`3` and `8` would be classes 0 and 1; `1` to `10` would be 0 and 9 only where nothing is missing."""
    assert "has 'cat' where data 'y' has '3'" in sentence(["cat", "dog"], ["3", "8"])
    assert "has 'b' where data 'y' has '1'" in sentence([*"bcdefghijk"], sorted(map(str, range(1, 11))))


def test_other_names_are_refused_with_the_first_pair() -> None:
    told = sentence(["Cat", "Dog", "owl"], ["fox", "owl", "hen"])
    assert told == "network 'x' has 'Cat' where data 'y' has 'fox', and 1 more of 3 classes differ: do this"
    assert "has 'bee' where data 'y' has 'be'" in sentence(["ant", "cow", "bee"], ["ant", "be", "cow"])
    assert "has 'owl' where data 'y' has 'wolverine', and 0 more" in sentence(
        ["cat", "owl"], ["cat", "owl", "wolverine"]
    )


def test_case_and_spacing_count_and_are_pointed_out() -> None:
    told = sentence(["Cat", "Dog"], ["dog", "cat"])
    assert "has 'Dog' where data 'y' has 'dog', and case and spacing count, and 1 more of 2 classes differ" in told
    assert "has 'polar bear' where data 'y' has 'polar_bear', and case" in sentence(["a", "polar bear"], ["polar_bear"])


def test_only_the_classes_that_are_used_must_be_known() -> None:
    assert match(["cat", "dog"], ["fox", "dog"], used=[1]) == [-1, 1]
    assert "has 'dog' where data 'y' has 'fox'" in sentence(["dog"], ["fox", "dog"], used=[0, 1])


def test_a_name_that_comes_twice_decides_nothing_unless_all_are_equal() -> None:
    twice = ["crane", "tench", "crane"]
    assert match(twice, twice) == [0, 1, 2]
    assert "has 2 classes named 'crane', a class of data 'y'" in sentence(twice, ["crane", "tench"])
    assert match(twice, ["tench"]) == [1]


def test_imagenets_classes_have_two_names() -> None:
    described = ["goldfish, Carassius auratus", "tench, Tinca tinca"]
    assert match(WORDNET, described) == [1, 0]
    assert match(described, WORDNET[:2]) == [1, 0]
    assert match(WORDNET, ["crane"]) == [2]
    assert "has 'tench, Tinca tinca' where data 'y' has 'tench'" in sentence(WORDNET, ["tench"])
    assert match(["n00000000", "a"], ["a"]) == [1], "not WordNet's"


def test_both_cranes_of_imagenet_keep_their_numbers() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    wordnet = [info.index_to_label_name(number) for number in range(1000)]
    described = [info.index_to_description(number) for number in range(1000)]
    assert described.count("crane") == 2
    assert match(wordnet, described) == match(described, wordnet) == match(described, described) == list(range(1000))
    assert "has 2 classes named 'crane'" in sentence(wordnet, ["crane"])


def test_matching_loads_nothing_heavy() -> None:
    code = (
        "import sys; from timm_robust.data.class_order import match_classes as match; "
        "match(['a', 'b'], ['b'], owner='', data='', remedy=''); print('torch' in sys.modules or 'timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
