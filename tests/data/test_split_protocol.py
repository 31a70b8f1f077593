"""The re-split rule gives the published splits' counts, class by class."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.data import BENCHMARKS, benchmark_named, read_split_file
from fgvpl_jax.data.split_protocol import SplitProtocol, part_each_class
from fgvpl_jax.errors import UserError

# Number of images per class in label order; images that the protocol pools are all under "train".
# Food101's and SUN397's are the authors' round numbers, FGVC-Aircraft's come from its own lists,
# the others from all the images in CoOp's split files. ImageNet's training counts per class were
# not available.
OFFICIAL = json.loads((Path(__file__).parent / "official_counts.json").read_text())


def images_of(counts):
    return {
        part: [(f"{part}/{c}/{i}", c) for c, n in enumerate(ns) for i in range(n)]
        for part, ns in counts.items()
    }


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_counts_become_table_1s(name):
    benchmark = benchmark_named(name)
    assert {len(counts) for counts in OFFICIAL[name].values()} == {len(benchmark.class_names)}
    parts, described = benchmark.protocol.split(images_of(OFFICIAL[name]), name)
    assert tuple(len(images) for images in parts.values()) == benchmark.counts
    assert ("re-split" in described) == (name != "fgvc_aircraft")


def test_the_known_counts_of_imagenet():
    """The test split is 50 validation images per class; of training, only the total is known."""
    benchmark = benchmark_named("imagenet")
    official = images_of({"train": [2] * 1000, "test": [50] * 1000})
    parts, _ = benchmark.protocol.split(official, "imagenet")
    assert parts == {**official, "val": []}
    assert len(parts["test"]) == benchmark.counts.test


@pytest.mark.parametrize("name", [n for n, b in BENCHMARKS.items() if b.split_file])
def test_the_rule_gives_the_published_counts_of_every_class(name, real_data):
    benchmark = benchmark_named(name)
    file = real_data / "coop_splits" / Path(benchmark.split_file).name
    if not file.exists():
        pytest.skip(f"{file.name} is not there")
    _, published = read_split_file(file)
    # CoOp divided the authors' training set into training and validation.
    official = {"train": published["train"] + published["val"], "test": published["test"]}
    parts, _ = benchmark.protocol.split(official, name)
    for split, images in published.items():
        assert Counter(label for _, label in parts[split]) == Counter(label for _, label in images)


def test_the_authors_own_test_split_stays():
    official = images_of({"train": [10, 7], "test": [3, 3]})
    parts, described = SplitProtocol.OFFICIAL_TEST.split(official, "x")
    assert parts["test"] == official["test"]
    assert Counter(label for _, label in parts["val"]) == {0: 2, 1: 1}
    assert sorted(parts["train"] + parts["val"]) == sorted(official["train"])
    assert "official test" in described


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    shares=st.sampled_from([(0.5, 0.2), (0.2,)]),
    order=st.randoms(use_true_random=False),
)
def test_parts_are_exact_and_do_not_depend_on_the_listing(counts, shares, order):
    images = images_of({"x": counts})["x"]
    parts = part_each_class(images, shares)
    assert sorted(image for part in parts for image in part) == sorted(images)
    for share, part in zip(shares, parts, strict=False):
        found = Counter(label for _, label in part)
        assert [found[c] for c in range(len(counts))] == [round(n * share) for n in counts]
    order.shuffle(images)
    assert part_each_class(images, shares) == parts


@pytest.mark.parametrize("protocol", SplitProtocol)
def test_an_image_on_both_sides_is_refused(protocol):
    parts = {"train": [("a/1.jpg", 0)], "test": [("a/1.jpg", 0)]}
    with pytest.raises(UserError, match=r"lists has 'a/1\.jpg' twice, in train and in test"):
        protocol.split(parts, "lists")
