"""Classes added to a classifier, the page's pieces, and methods that have less to show."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.added_classes import MOST_CLASSES, MOST_PHOTOS, Extension
from fgvpl_jax.serving import server
from fgvpl_jax.serving.answer_view import answer_html, place_of, problem_html
from fgvpl_jax.serving.page import build_page
from fgvpl_jax.serving.service import Limits, Service

SIZES = (1, 4)


@pytest.fixture(scope="module")
def service(classifier):
    made = Service(classifier, Limits(), SIZES)
    yield made
    made.close()


@pytest.fixture
def photos(photos_dir):
    """Three of green squares, that shall be a new class."""
    folder = photos_dir / "train" / "green square"
    return [(f.name, f.read_bytes()) for f in sorted(folder.glob("*.png"))[:3]]


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_an_added_class_counts_as_eq_19_says(service, classifier, photos, photos_dir):
    """All classes' logits against a float64 recomputation over the joined cache and names."""
    data = (photos_dir / "test" / "green square" / "001.png").read_bytes()
    extension, squares = asyncio.run(service.with_class(None, "lawn_green", photos))
    assert extension.class_names == ("lawn green",)
    assert len(squares) == 3
    seen = asyncio.run(service.ask(data, "x", 10, extension))
    found = dict(
        zip(seen.answer.prediction.class_names, seen.answer.prediction.logits, strict=True)
    )
    assert found.keys() == {*classifier.class_names, "lawn green"}
    assert sum(seen.answer.prediction.probabilities) == pytest.approx(1, abs=1e-5)

    from flax import nnx

    from fgvpl_jax.inference.programs import padded_batch

    inference = classifier.inference
    features, _ = inference.encode(
        padded_batch([classifier.crop(photos_dir / "test" / "green square" / "001.png", "x")], 1)
    )
    flat = nnx.to_flat_state(inference.weights.state)
    states = {"/".join(map(str, path)): leaf[...] for path, leaf in flat}
    get = lambda end: next(np.asarray(v, np.float64) for k, v in states.items() if k.endswith(end))  # noqa: E731

    def adapt(which, x, ratio):
        kernel, bias = get(f"{which}/kernel"), get(f"{which}/bias")
        return unit(ratio * np.maximum(unit(x) @ kernel + bias, 0) + unit(x))

    cache = inference.weights.cache
    texts = np.concatenate([get("1/text_features"), [extension.text_features[0]]])
    labels = np.concatenate([cache.labels, [3, 3, 3]])
    counts = np.bincount(labels)
    expected = 0.0
    for weight, query, keys, added in (
        (1.0, features.image[0], cache.image, [p.image for p in extension.photos]),
        (
            get("object_logit_weight"),
            features.object[0],
            cache.object,
            [p.object for p in extension.photos],
        ),
    ):
        path1 = (
            get("logit_scale")
            * adapt("text_adapter", texts, get("text_residual_ratio"))
            @ unit(query)
        )
        votes = np.exp(
            adapt("visual_adapter", np.concatenate([keys, added]), 1.0)
            @ adapt("visual_adapter", query, 1.0)
            - 1
        )
        path2 = np.bincount(labels, votes) / counts * counts.mean()
        expected = expected + weight * (
            path1 + classifier.results.choices["cache_logit_weight"] * path2
        )
    names = [*classifier.class_names, "lawn green"]
    np.testing.assert_allclose([found[n] for n in names], expected, rtol=1e-4, atol=1e-4)


def test_a_photo_of_the_new_class_is_most_similar_to_itself(service, photos):
    extension, squares = asyncio.run(service.with_class(None, "<b>new</b>", photos))
    seen = asyncio.run(service.ask(photos[1][1], "x", 1, extension, with_square=True))
    nearest = seen.answer.prediction.similar[0]
    assert nearest.similarity == pytest.approx(1, abs=1e-4)
    assert nearest.class_name in ("<b>new</b>", "green square")  # it may be a training photo too
    html = answer_html(seen, service, extension.class_names, squares)
    assert "<b>new" not in html


def test_users_do_not_see_each_others_classes(service, photos):
    async def both():
        mine, _ = await service.with_class(None, "mine", photos)
        theirs, _ = await service.with_class(None, "theirs", photos)
        data = photos[0][1]
        return await asyncio.gather(
            *(service.ask(data, "x", 9, e) for e in (mine, None, theirs, mine, None, theirs))
        )

    names = [
        {*seen.answer.prediction.class_names} - {*service.classifier.class_names}
        for seen in asyncio.run(both())
    ]
    assert names == [{"mine"}, set(), {"theirs"}] * 2


def test_additions_that_do_not_do_are_refused():
    one = ("a.png", np.ones(4), np.ones(4))
    extension = Extension(("red square",))
    for name, count, message in (
        ("Red_Square", 1, "a class 'red square' already"),
        ("  ", 1, "at least one letter"),
        ("x" * 61, 1, "61 letters"),
        ("new", 0, "no photo"),
        ("new", MOST_PHOTOS + 1, f"at most {MOST_PHOTOS}"),
    ):
        with pytest.raises(UserError, match=message):
            extension.check(name, count)
    for i in range(MOST_CLASSES):
        extension = extension.with_class(f"class {i}", np.ones(4), [one])
    with pytest.raises(UserError, match="added already"):
        extension.check("one more", 1)
    with pytest.raises(UserError, match="a class 'class 3' already"):
        extension.check("CLASS 3", 1)


def test_no_new_class_or_photo_compiles_anything(service, photos):
    sizes = service.classifier.inference._recognise._cache_size()
    extension = None
    for i in range(3):
        extension, _ = asyncio.run(service.with_class(extension, f"class {i}", photos[: i + 1]))
        asyncio.run(service.ask(photos[0][1], "x", 5, extension))
    assert service.classifier.inference._recognise._cache_size() == sizes


def test_names_are_escaped(service, photos):
    evil = '"><script>alert(1)</script>'
    seen = asyncio.run(service.ask(photos[0][1], evil, 3, with_square=True))
    html = answer_html(seen, service, (), ())
    assert "<script" not in html and "&lt;script" in html
    assert "<script" not in problem_html(evil)


@pytest.mark.parametrize(
    ("corner", "words"),
    [((0, 0), "top left"), ((2, 4), "bottom right"), ((1, 2), "centre"), ((1, 0), "left")],
)
def test_a_place_is_told_in_words(corner, words):
    weights = np.zeros((3, 5))
    weights[corner] = 1
    assert place_of(weights) == words
    assert place_of(weights > 0) == words


def test_the_page_shows_only_what_the_method_has(make_classifier, photos, service):
    zero_shot = Service(make_classifier("zero_shot"), Limits(), (1,))
    seen = asyncio.run(zero_shot.ask(photos[0][1], "x", 3, with_square=True))
    html = answer_html(seen, zero_shot, (), ())
    zero_shot.close()
    assert "fg-bars" in html
    for part in ("fg-layer", "similar", "training photos"):
        assert part not in html
    assert set(seen.answer.prediction.contributions) == {"image"}
    labels = lambda page: {b.label for b in page.blocks.values() if hasattr(b, "label")}  # noqa: E731
    assert "New class" not in labels(build_page(zero_shot, ()))
    assert "New class" in labels(build_page(service, ()))


def test_examples_are_training_photos_where_none_are_named(classifier, tmp_path):
    found = server.training_photos(classifier, tmp_path)
    assert [file.parent for file in found] == [Path(tmp_path)] * 3
    for label, file in enumerate(found):
        (prediction,) = classifier.predict(file)
        assert prediction.similar[0].similarity == pytest.approx(1, abs=1e-4)
        assert prediction.similar[0].class_name == classifier.class_names[label]


def test_an_address_that_cannot_be_had_is_said():
    with server.listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}.*in use"):
            server.listen("127.0.0.1", port)
    for host, port in (("192.0.2.1", 7860), ("127.0.0.1", 70000), ("no.such.host.invalid", 1)):
        with pytest.raises(UserError, match="cannot listen"):
            server.listen(host, port)


def test_loopback_is_told_from_other_addresses():
    hosts = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "example.org")
    assert [server.is_loopback(h) for h in hosts] == [True, True, True, False, False, False]
