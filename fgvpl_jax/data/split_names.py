"""Names under which people store training, validation and test photos."""

import re
import unicodedata
from collections.abc import Sequence

ROLES = {
    "train": {"train", "training", "trainset", "traindata", "trn"},
    "validation": {"val", "valid", "validation", "validate", "valset", "dev", "devset"}
    | {"development", "validationset"},
    "test": {"test", "testing", "tests", "testset", "testdata", "tst", "eval", "evaluation"}
    | {"evalset", "holdout"},
}
ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
# Words that do not change what a split's name says, as in "training_set" and "seg_train".
FILLERS = {"data", "dataset", "folder", "image", "images", "img", "imgs", "photo", "photos"}
FILLERS |= {"pictures", "pics", "samples", "seg", "set", "sets", "split", "splits", "the"}


def split_role(name: str) -> str | None:
    """Returns "train", "validation" or "test" if a name is that of a split, in any usual spelling.

    Case, separators, digits at the end (`train2017`) and words such as "set" do not matter. The
    name of anything else, such as "test tube", returns None.
    """
    role, rest = role_and_rest(name)
    return None if rest else role


def split_roles(names: Sequence[str]) -> dict[str, str]:
    """Maps the names that are those of splits to their roles.

    Words that all names share, such as "birds" in `birds_train` and `birds_test`, do not matter if
    each name has another role.
    """
    found = {name: role_and_rest(name) for name in names}
    roles = [role for role, _ in found.values()]
    share_rest = len({rest for _, rest in found.values()}) == 1
    share_rest = share_rest and None not in roles and 1 < len(roles) == len(set(roles))
    return {name: role for name, (role, rest) in found.items() if role and (share_rest or not rest)}


def role_and_rest(name: str) -> tuple[str | None, tuple[str, ...]]:
    """Returns the role that one word of a name says, and the other words that matter."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))  # BirdsTrain
    folded = apart.casefold()
    words = [word for word in re.split(r"[\W\d_]+", folded) if word and word not in FILLERS]
    if words[:2] in (["held", "out"], ["hold", "out"]):
        words[:2] = ["holdout"]
    said = [word for word in words if word in ROLE_OF]
    if len(said) != 1:
        return None, tuple(words)
    return ROLE_OF[said[0]], tuple(word for word in words if word not in ROLE_OF)
