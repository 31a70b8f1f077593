"""From texts to token ids, with the checkpoint's tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from fgvpl_jax.clip.config import LEGACY_EOS_TOKEN_ID, TextConfig
from fgvpl_jax.errors import UserError


class Tokenizer:
    """The checkpoint's byte-pair tokenizer, checked against its config.

    Args:
        directory: Folder that holds tokenizer.json, or vocab.json and merges.txt.
        config: Config of the text tower that takes the ids.
    Raises:
        UserError: If the files are missing or belong to another vocabulary.
    """

    def __init__(self, directory: Path, config: TextConfig):
        have = {file.name for file in directory.iterdir()}
        if "tokenizer.json" not in have and not {"vocab.json", "merges.txt"} <= have:
            raise UserError(
                f"{directory} has no tokenizer: neither tokenizer.json nor vocab.json and "
                "merges.txt; download the checkpoint's small files too"
            )
        from transformers import CLIPTokenizer

        try:
            self._tokenizer: Any = CLIPTokenizer.from_pretrained(str(directory))
        except Exception as error:  # the Rust tokenizers raise bare Exceptions
            raise UserError(
                f"the tokenizer files in {directory} are damaged "
                f"({' '.join(str(error).split())}): download them again"
            ) from error
        self._config = config
        # transformers silently builds a vocabulary of two tokens from files that it cannot use.
        if len(self._tokenizer) != config.vocab_size:
            raise UserError(
                f"the tokenizer in {directory} has {len(self._tokenizer)} tokens, its config.json "
                f"says {config.vocab_size}: the files do not belong together"
            )
        eos = self._tokenizer.eos_token_id
        if config.eos_token_id not in (eos, LEGACY_EOS_TOKEN_ID):
            raise UserError(
                f"the tokenizer in {directory} ends texts with token {eos}, its config.json says "
                f"{config.eos_token_id}: the files do not belong together"
            )
        padding = self._tokenizer.pad_token_id
        self._padding = eos if padding is None else padding

    def __call__(self, texts: Sequence[str]) -> Int[np.ndarray, "b c"]:
        """Returns ids padded to the context length.

        Raises:
            UserError: If a text does not fit the context; texts are never truncated silently.
        """
        if isinstance(texts, str):
            raise TypeError(f"tokenize takes a list of texts: pass [{texts!r}]")
        context = self._config.context_length
        # Not verbose: texts that are too long are reported below.
        rows = self._tokenizer(list(texts), verbose=False)["input_ids"] if len(texts) else []
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
