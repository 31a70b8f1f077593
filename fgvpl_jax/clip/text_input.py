"""From texts to token ids, with the checkpoint's tokenizer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from fgvpl_jax.clip.config import TextConfig
from fgvpl_jax.errors import UserError


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keeps transformers from warning about special ids in SigLIP's configs, which are unused."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class Tokenizer:
    """The checkpoint's byte-pair tokenizer, checked against its config.

    Args:
        directory: Folder that holds tokenizer.json, or vocab.json and merges.txt.
        config: Config of the text tower that takes the ids.
    Raises:
        UserError: If the files are missing or belong to another vocabulary.

    Attributes:
        file_sets: Sets of files of which a checkpoint must have one.
        share_of_vocabulary: Least share of the config's vocabulary that the files must hold.
    """

    file_sets: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("tokenizer.json",),
        ("vocab.json", "merges.txt"),
    )
    share_of_vocabulary: ClassVar[float] = 1.0

    def __init__(self, directory: Path, config: TextConfig):
        have = {file.name for file in directory.iterdir()}
        if not any(have.issuperset(files) for files in self.file_sets):
            sets = " nor ".join(" and ".join(files) for files in self.file_sets)
            raise UserError(
                f"{directory} has no tokenizer: neither {sets}; download the checkpoint's small "
                "files too"
            )
        try:
            self._tokenizer = self._load(directory)
        except UserError:
            raise
        except Exception as error:  # the Rust tokenizers raise bare Exceptions
            raise UserError(
                f"the tokenizer files in {directory} are damaged "
                f"({' '.join(str(error).split())}): download them again"
            ) from error
        self._config = config
        # transformers silently builds a vocabulary of few tokens from files that it cannot use.
        size = len(self._tokenizer)
        if not self.share_of_vocabulary * config.vocab_size <= size <= config.vocab_size:
            raise UserError(
                f"the tokenizer in {directory} has {size} tokens, its config says "
                f"{config.vocab_size}: the files do not belong together"
            )
        eos = self._tokenizer.eos_token_id
        if config.eos_token_id not in (None, eos):
            raise UserError(
                f"the tokenizer in {directory} ends texts with token {eos}, its config says "
                f"{config.eos_token_id}: the files do not belong together"
            )
        padding = self._tokenizer.pad_token_id
        self._padding = eos if padding is None else padding

    def _load(self, directory: Path) -> Any:
        """Returns transformers' tokenizer."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(str(directory))

    def _canonical(self, text: str) -> str:
        """Returns a text as the tokenizer expects it."""
        return text

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "b c"]:
        """Returns ids padded to the context length.

        Raises:
            UserError: If a text does not fit the context; texts are never truncated silently.
        """
        if isinstance(texts, str):
            raise TypeError(f"tokenize takes a list of texts: pass [{texts!r}]")
        context = self._config.context_length
        given = [self._canonical(text) for text in texts]
        # Not verbose: texts that are too long are reported below.
        rows = self._tokenizer(given, verbose=False)["input_ids"] if given else []
        for text, row in zip(texts, rows, strict=True):
            if len(row) > context:
                raise UserError(
                    f"the text {text!r} has {len(row)} tokens, this backbone reads {context}: "
                    "shorten the class name or the template"
                )
        ids = np.full((len(rows), context), self._padding, np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[: len(row)] = row
        return ids


class AutoTokenizer(Tokenizer):
    """The tokenizer that transformers chooses by the checkpoint's files, such as XLM-R's.

    Args:
        directory: Folder that holds one of the file sets.
        config: Config of the text tower that takes the ids.
    """

    file_sets = (("tokenizer.json",), ("sentencepiece.bpe.model",))
    share_of_vocabulary = 0.5  # the embedding may have rows that no token uses

    def _load(self, directory: Path) -> Any:
        if not (directory / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
            raise UserError(
                f"{directory} has no tokenizer.json, and its {self.file_sets[1][0]} needs "
                "sentencepiece: pip install 'fgvpl_jax[siglip]'"
            )
        import transformers

        with without_warnings():
            return transformers.AutoTokenizer.from_pretrained(str(directory))
