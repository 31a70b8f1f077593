"""SigLIP's texts: lower case, padding up to the context length, sentencepiece models."""

import numpy as np
import pytest

from fgvpl_jax import load_clip
from fgvpl_jax.clip import text_input
from fgvpl_jax.clip.config import TextConfig
from fgvpl_jax.clip.families import siglip
from fgvpl_jax.errors import UserError
from tests.tiny_backbones import write_tiny_backbone

TEXTS = ["A photo of a Dog.", "x", "two words, and more!"]


@pytest.fixture
def directory(tmp_path):
    write_tiny_backbone(tmp_path, "siglip")
    return tmp_path


def test_texts_are_lower_cased_and_padded_behind_their_end(directory):
    clip = load_clip(directory)
    ids = clip.tokenize(TEXTS)
    np.testing.assert_array_equal(ids, clip.tokenize([text.lower() for text in TEXTS]))
    ends = (ids == 1).argmax(axis=1)
    for row, end, text in zip(ids, ends, TEXTS, strict=True):
        assert end == len(text)  # one token per letter
        assert (row[end + 1 :] == 0).all()


def test_padding_is_attended_to(directory):
    """Checks the opposite of CLIP: features depend on the tokens behind the end of a text."""
    clip = load_clip(directory)
    ids = clip.tokenize(["dog"])
    other = ids.copy()
    other[0, 40] = 5
    assert np.abs(clip.encode_text(ids) - clip.encode_text(other)).max() > 1e-4


def test_a_sentencepiece_model_needs_its_package(directory, monkeypatch):
    (directory / "spiece.model").write_bytes(b"not read")
    monkeypatch.setattr(siglip, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"spiece\.model needs sentencepiece: pip install"):
        load_clip(directory)


def test_the_sentencepiece_model_of_metaclip_2_needs_the_package(tmp_path, monkeypatch):
    write_tiny_backbone(tmp_path, "metaclip_2")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"not read")
    monkeypatch.setattr(text_input, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"sentencepiece\.bpe\.model needs sentencepiece: pip"):
        load_clip(tmp_path)


def test_tokens_of_a_sentencepiece_model_are_transformers(directory):
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import SiglipTokenizer

    (directory / "corpus.txt").write_text("\n".join([*TEXTS, "dogs and cats, a lot of them"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "corpus.txt"),
        model_prefix=str(directory / "spiece"),
        vocab_size=40,
        pad_id=-1,
        eos_id=1,
        unk_id=2,
        bos_id=0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    theirs = SiglipTokenizer.from_pretrained(str(directory))
    sizes = TextConfig(24, 2, 2, 48, vocab_size=len(theirs), context_length=64, eos_token_id=None)
    ours = siglip.SiglipTokenizer(directory, sizes)(TEXTS)
    expected = theirs(TEXTS, padding="max_length", max_length=64)["input_ids"]
    np.testing.assert_array_equal(ours, expected)
