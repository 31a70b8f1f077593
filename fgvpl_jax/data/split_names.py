"""Names under which people store training, validation and test photos."""

import re
import unicodedata

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
    folded = unicodedata.normalize("NFKC", name).casefold()
    if " ".join(re.split(r"[\W_]+", folded)).strip() == "held out":
        return "test"
    words = [word for word in re.split(r"[\W\d_]+", folded) if word and word not in FILLERS]
    return ROLE_OF.get(words[0]) if len(words) == 1 else None
