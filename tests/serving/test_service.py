"""Added classes, the page's parts, and methods with fewer results to show."""

import asyncio
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import MOST_CLASSES, MOST_PHOTOS, ClassChanges
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.inference.predictions import Belonging, ObjectLocation
from fgvpl_jax.inference.regions import areas
from fgvpl_jax.serving import server
from fgvpl_jax.serving.answer_view import answer_html, layers_of, place_of, problem_html
from fgvpl_jax.serving.data_address import thumbnail_of
from fgvpl_jax.serving.page import build_page
from fgvpl_jax.serving.service import Limits, Service
from fgvpl_jax.serving.sessions import Sessions

SIZES = (1, 4)


@pytest.fixture(scope="module")
def service(classifier):
    made = Service(classifier, Limits(), SIZES)
    yield made
    made.close()


@pytest.fixture
def photos(photos_dir):
    """Three photos of green squares for a new class."""
    folder = photos_dir / "train" / "green square"
    return [(f.name, f.read_bytes()) for f in sorted(folder.glob("*.png"))[:3]]


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_an_added_class_counts_as_eq_19_says(service, classifier, photos, photos_dir):
    """Compares all logits with a float64 recomputation over the joined cache and names."""
    data = (photos_dir / "test" / "green square" / "001.png").read_bytes()
    added, squares = asyncio.run(service.with_class(None, "lawn_green", photos))
    assert added.added_names == ("lawn green",)
    assert len(squares) == 3
    photo = asyncio.run(service.recognise(data, "x", 10, added))
    found = dict(
        zip(photo.response.prediction.class_names, photo.response.prediction.logits, strict=True)
    )
    assert found.keys() == {*classifier.class_names, "lawn green"}
    assert sum(photo.response.prediction.probabilities) == pytest.approx(1, abs=1e-5)

    from flax import nnx

    from fgvpl_jax.inference.programs import padded_batch

    inference = classifier.inference
    encoded, _ = inference.encode(
        padded_batch([classifier.crop(photos_dir / "test" / "green square" / "001.png", "x")], 1)
    )
    features = encoded.method
    flat = nnx.to_flat_state(inference.weights.state)
    states = {"/".join(map(str, path)): leaf[...] for path, leaf in flat}
    get = lambda end: next(np.asarray(v, np.float64) for k, v in states.items() if k.endswith(end))  # noqa: E731

    def adapt(which, x, ratio):
        kernel, bias = get(f"{which}/kernel"), get(f"{which}/bias")
        return unit(ratio * np.maximum(unit(x) @ kernel + bias, 0) + unit(x))

    cache = inference.weights.cache
    texts = np.concatenate([get("1/text_features"), [added.text_features[0]]])
    labels = np.concatenate([cache.labels, [3, 3, 3]])
    counts = np.bincount(labels)
    expected = 0.0
    for weight, query, keys, added_keys in (
        (1.0, features.image[0], cache.image, [p.image for p in added.photos]),
        (
            get("object_logit_weight"),
            features.object[0],
            cache.object,
            [p.object for p in added.photos],
        ),
    ):
        path1 = (
            get("logit_scale")
            * adapt("text_adapter", texts, get("text_residual_ratio"))
            @ unit(query)
        )
        votes = np.exp(
            adapt("visual_adapter", np.concatenate([keys, added_keys]), 1.0)
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
    added, squares = asyncio.run(service.with_class(None, "<b>new</b>", photos))
    photo = asyncio.run(service.recognise(photos[1][1], "x", 1, added, with_square=True))
    nearest = photo.response.prediction.similar[0]
    assert nearest.similarity == pytest.approx(1, abs=1e-4)
    assert nearest.class_name in ("<b>new</b>", "green square")  # it may be a training photo too
    html = answer_html(photo, service, added.added_names, [thumbnail_of(one) for one in squares])
    assert "<b>new" not in html


def test_users_do_not_see_each_others_classes(service, photos):
    async def both():
        mine, _ = await service.with_class(None, "mine", photos)
        theirs, _ = await service.with_class(None, "theirs", photos)
        data = photos[0][1]
        return await asyncio.gather(
            *(service.recognise(data, "x", 9, e) for e in (mine, None, theirs, mine, None, theirs))
        )

    names = [
        {*photo.response.prediction.class_names} - {*service.classifier.class_names}
        for photo in asyncio.run(both())
    ]
    assert names == [{"mine"}, set(), {"theirs"}] * 2


def test_unusable_additions_are_refused():
    one = ("a.png", np.ones(4), np.ones(4))
    added = ClassChanges(("red square",))
    for name, message in (
        ("Red_Square", "a class 'red square' already"),
        ("  ", "at least one letter"),
        ("x" * 61, "61 letters"),
    ):
        with pytest.raises(UserError, match=message):
            added.checked_name(name)
    for count, message in ((0, "no photo"), (MOST_PHOTOS + 1, f"at most {MOST_PHOTOS}")):
        with pytest.raises(UserError, match=message):
            added.check_photos(count)
    for i in range(MOST_CLASSES):
        added = added.with_class(f"class {i}", np.ones(4), [one])
    with pytest.raises(UserError, match="added already"):
        added.check_photos(1)
    with pytest.raises(UserError, match="a class 'class 3' already"):
        added.checked_name("CLASS 3")


def test_no_new_class_or_photo_compiles_anything(service, photos):
    sizes = service.classifier.inference.programs.recognise._cache_size()
    added = None
    for i in range(3):
        added, _ = asyncio.run(service.with_class(added, f"class {i}", photos[: i + 1]))
        asyncio.run(service.recognise(photos[0][1], "x", 5, added))
    assert service.classifier.inference.programs.recognise._cache_size() == sizes


def test_the_first_regions_compile_nothing(service):
    compiled = []

    def listener(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    values = np.random.default_rng(0).random(service.classifier.clip.vision.grid, np.float32)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        found = areas(ObjectLocation(values, values == values.max()), 2)
        assert len(found) > 1
        assert compiled == []
        jax.jit(lambda x: x + 2)(values)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_names_are_escaped(service, photos):
    evil = '"><script>alert(1)</script>'
    photo = asyncio.run(service.recognise(photos[0][1], evil, 3, with_square=True))
    html = answer_html(photo, service, (), ())
    assert "<script" not in html and "&lt;script" in html
    assert "<script" not in problem_html(evil)


@pytest.mark.parametrize(
    ("corner", "words"),
    [((0, 0), "top left"), ((2, 4), "bottom right"), ((1, 2), "centre"), ((1, 0), "left")],
)
def test_a_place_is_described_in_words(corner, words):
    weights = np.zeros((3, 5))
    weights[corner] = 1
    assert place_of(weights) == words
    assert place_of(weights > 0) == words


def test_the_evidence_for_an_added_class_is_shown_first(service, photos):
    added, squares = asyncio.run(service.with_class(None, "lawn", photos))
    thumbnails = [thumbnail_of(square) for square in squares]
    photo = asyncio.run(service.recognise(photos[0][1], "x", 3, added, with_square=True))
    evidence = service.classifier.evidence_in(photo.crop, "lawn", added)
    names = [layer.name for layer in layers_of(photo.response.prediction, evidence)]
    assert names == ["evidence", "attention", "object"]
    html = answer_html(photo, service, ("lawn",), thumbnails, evidence)
    assert "Evidence for lawn: strongest" in html
    assert "fg-layer-evidence" not in answer_html(photo, service, ("lawn",), thumbnails)


@pytest.mark.parametrize("found", [False, True])
def test_the_page_says_when_no_object_stands_out(service, photos, found):
    photo = asyncio.run(service.recognise(photos[0][1], "x", 3, with_square=True))
    mask = np.ones((4, 4), bool)
    mask[0, 0] = not found
    prediction = replace(photo.response.prediction, location=ObjectLocation(np.eye(4), mask))
    photo = replace(photo, response=replace(photo.response, prediction=prediction))
    html = answer_html(photo, service, (), ())
    assert ("No object stands out" in html) != found
    assert ("because nothing stands out" in html) != found


def test_the_page_shows_only_what_the_method_has(make_classifier, photos, service):
    zero_shot = Service(make_classifier("zero_shot"), Limits(), (1,))
    photo = asyncio.run(zero_shot.recognise(photos[0][1], "x", 3, with_square=True))
    html = answer_html(photo, zero_shot, (), ())
    zero_shot.close()
    assert "fg-bars" in html
    for part in ("fg-layer", "similar", "training photos"):
        assert part not in html
    assert set(photo.response.prediction.contributions) == {"image"}
    evidence = ClassEvidence("a <class>", np.eye(4))
    assert [layer.name for layer in layers_of(photo.response.prediction, evidence)] == ["evidence"]
    assert "Evidence for a &lt;class&gt;: " in answer_html(photo, zero_shot, (), (), evidence)
    labels = lambda page: {b.label for b in page.blocks.values() if hasattr(b, "label")}  # noqa: E731
    assert "New class" not in labels(build_page(zero_shot, Sessions(1), ()))
    assert "New class" in labels(build_page(service, Sessions(1), ()))


def test_examples_are_training_photos_where_none_are_named(classifier, tmp_path):
    found = server.training_photos(classifier, tmp_path)
    assert [file.parent for file in found] == [Path(tmp_path)] * 3
    for label, file in enumerate(found):
        (prediction,) = classifier.predict(file)
        assert prediction.similar[0].similarity == pytest.approx(1, abs=1e-4)
        assert prediction.similar[0].class_name == classifier.class_names[label]


def test_an_unusable_address_is_reported():
    with server.listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port={port}.*in use"):
            server.listen("127.0.0.1", port)
    for host, port in (("192.0.2.1", 7860), ("127.0.0.1", 70000), ("no.such.host.invalid", 1)):
        with pytest.raises(UserError, match="cannot listen"):
            server.listen(host, port)


def test_loopback_addresses_are_recognised():
    hosts = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1", "example.org")
    assert [server.is_loopback(h) for h in hosts] == [True, True, True, False, False, False]


@pytest.mark.parametrize("score", [-2.0, -0.5, None])
def test_the_page_says_that_a_photo_is_none_of_these(service, photos, score):
    photo = asyncio.run(service.recognise(photos[0][1], "x", 3, with_square=True))
    belonging = None if score is None else Belonging(score, -1.0)
    prediction = replace(photo.response.prediction, belonging=belonging)
    photo = replace(photo, response=replace(photo.response, prediction=prediction))
    html = answer_html(photo, service, (), ())
    assert ("none of these</strong>" in html) == (score == -2.0)
    assert ("Score of belonging" in html) == (score is not None)


def test_added_classes_leave_the_score_out(service, photos):
    added, _ = asyncio.run(service.with_class(None, "new", photos))
    alone = asyncio.run(service.recognise(photos[0][1], "x", 1))
    assert alone.response.prediction.belonging is not None
    photo = asyncio.run(service.recognise(photos[0][1], "x", 1, added))
    assert photo.response.prediction.belonging is None
