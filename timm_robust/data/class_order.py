"""Class order: matches the classes of one data set to those of another, or of a network, by name.

Class numbers mean nothing by themselves: in another order every label is wrong, and only the result shows it. This is
the one matcher of evaluation, transfer, distillation, teachers, extra data and submission. Torch-free.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Sequence

from timm_robust.errors import UserError, nearest


def match_classes(
    known: Sequence[str] | None,
    wanted: Sequence[str] | None,
    *,
    owner: str,
    data: str,
    remedy: str,
    used: Collection[int] | None = None,
) -> list[int] | None:
    """For each wanted class its number among the known ones; None: class numbers are the same on both sides.

    By name, in any order, and the known classes may be more. Names must be equal to the letter: two classes of one data
    set may differ in case alone, so ignoring case could silently match the wrong one, and renaming a folder is cheap.
    ImageNet's classes may have their WordNet numbers (n01440764) on one side and descriptions ("tench, Tinca tinca") on
    the other.

    By number if one side has no names, or names that only repeat the class numbers ("0", "1", ... in order, as for
    arrays). Folders "3" and "5", which are classes 0 and 1, do have names.

    Args:
        known: class names of the network or data set to match against, in its order; None or empty: no names.
        wanted: class names to find there, in their order; None or empty: no names.
        owner: owner of the known classes, for the message ("observer 'resnet18'").
        data: owner of the wanted classes, for the message ("data 'cifar10'").
        remedy: advice that ends the message.
        used: numbers of the wanted classes that are needed; default: all. Others that are unknown are -1.

    Raises:
        UserError: names differ (the message has the first pair and their number), or one side has no names and the
            counts do not allow matching by number.
    """
    if not known or not wanted:
        return None
    needed = set(range(len(wanted)) if used is None else used)
    known_names, wanted_names = _in_one_language(known, wanted)
    if known_names == wanted_names:  # names may come twice, as crane in ImageNet
        return list(range(len(wanted)))
    times = Counter(known_names)
    numbers = {name: number for number, name in enumerate(known_names) if times[name] == 1}
    missing = [number for number in sorted(needed) if wanted_names[number] not in numbers]
    if not missing:
        return [numbers.get(name, -1) for name in wanted_names]
    if _only_numbers(known) or _only_numbers(wanted):
        if len(wanted) == len(known) or (_only_numbers(wanted) and len(wanted) < len(known)):
            return None
        raise UserError(
            f"{owner} has {len(known)} classes and {data} {len(wanted)}, and without names on both sides only equal "
            f"numbers can be matched: {remedy}"
        )
    raise _differ(known_names, wanted_names, missing, owner, data, remedy)


def _only_numbers(names: Sequence[str]) -> bool:
    """Whether the names say nothing beyond the class numbers."""
    return all(name.isdecimal() and int(name) == number for number, name in enumerate(names))


def _in_one_language(known: Sequence[str], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both unchanged, or ImageNet's as descriptions if only one side has WordNet numbers."""
    sides = [list(known), list(wanted)]
    synsets = [all(re.fullmatch(r"n\d{8}", name) for name in names) for names in sides]
    if synsets[0] != synsets[1]:
        from timm.data import ImageNetInfo  # here, because it imports torch and few need it

        info = ImageNetInfo()
        place = synsets.index(True)
        with contextlib.suppress(KeyError):  # unknown WordNet numbers stay as they are
            sides[place] = [info.label_name_to_description(name) for name in sides[place]]
    return sides[0], sides[1]


def _differ(
    known: Sequence[str], wanted: Sequence[str], missing: Sequence[int], owner: str, data: str, remedy: str
) -> UserError:
    """Error with the first unknown name beside the one that was probably meant."""
    first = missing[0]
    name = wanted[first]
    twin = next((one for one in known if _folded(one) == _folded(name)), None)
    if known.count(name) > 1:
        return UserError(f"{owner} has {known.count(name)} classes named {name!r}, a class of {data}: {remedy}")
    meant = twin or next(iter(nearest(name, known, n=1)), known[min(first, len(known) - 1)])
    spelling = ", and case and spacing count" if twin else ""
    return UserError(
        f"{owner} has {meant!r} where {data} has {name!r}{spelling}, and {len(missing) - 1} more of {len(wanted)} "
        f"classes differ: {remedy}"
    )


def _folded(name: str) -> str:
    """The name without case, spaces and punctuation."""
    return re.sub(r"[\W_]", "", name).casefold()
