"""A prediction as HTML for the page, with every name in it escaped."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from jinja2 import Environment, PackageLoader, StrictUndefined

from fgvpl_jax.displays.overlay import boxes_layer, evidence_layer, heat, mask_layer
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.inference.predictions import Prediction
from fgvpl_jax.inference.regions import Region
from fgvpl_jax.serving.data_address import as_address
from fgvpl_jax.serving.service import RecognisedPhoto, Service

# Titles of the table's columns, in their order: the two things that each part compares.
PARTS = {
    "image": "photo",
    "image_text": "photo and name",
    "image_cache": "photo and training photos",
    "object_text": "object and name",
    "object_cache": "object and training objects",
}

# Pixels of the attention map, which the browser enlarges: it has far fewer patches than that.
HEAT_SIDE = 80

ENVIRONMENT = Environment(
    loader=PackageLoader("fgvpl_jax.serving"), autoescape=True, undefined=StrictUndefined
)


@dataclass(frozen=True)
class Layer:
    """A picture that can be laid over the photo.

    Attributes:
        name: Name in the style sheet.
        title: Title of its switch.
        description: Description for users who cannot see it.
        source: The picture as a data address.
    """

    name: str
    title: str
    description: str
    source: str


def answer_html(
    photo: RecognisedPhoto,
    service: Service,
    added: Sequence[str],
    added_thumbnails: Sequence[str | None],
    evidence: ClassEvidence | None = None,
    regions: Sequence[Region] = (),
) -> str:
    """Renders the photo with its layers, classes, similar photos and each part's contribution.

    Args:
        photo: A photo with its square and its prediction.
        service: Service that recognised it.
        added: Names of the classes that this user added.
        added_thumbnails: Thumbnails of the added photos, in the order of `ClassChanges.photos`;
            None for a photo without a picture.
        evidence: Evidence for a class; None shows none.
        regions: Regions of the photo; without any, no boxes are shown.
    """
    assert photo.square is not None
    prediction, classifier = photo.response.prediction, service.classifier
    similar = []
    for found in prediction.similar:
        place = found.place - len(classifier.support)
        if place < 0:
            source = service.thumbnail(found.place)
        else:
            source = added_thumbnails[place] if place < len(added_thumbnails) else None
        similar.append(
            {
                "source": source,
                "key": found.key,
                "class_name": found.class_name,
                "similarity": found.similarity,
            }
        )
    return ENVIRONMENT.get_template("answer.html.j2").render(
        prediction=prediction,
        square=as_address(photo.square, "JPEG"),
        layers=layers_of(prediction, evidence, regions),
        nothing_stands_out=prediction.location is not None and not prediction.location.object_found,
        similar=similar,
        added=added,
        parts=[
            {"title": title, "scores": prediction.contributions[part]}
            for part, title in PARTS.items()
            if part in prediction.contributions
        ],
        num_classes=len(classifier.class_names) + len(added),
        temperature=classifier.results.temperature,
    )


def problem_html(message: str) -> str:
    """Renders an error message."""
    return ENVIRONMENT.from_string('<p class="fg-problem" role="alert">{{ message }}</p>').render(
        message=message
    )


def layers_of(
    prediction: Prediction,
    evidence: ClassEvidence | None = None,
    regions: Sequence[Region] = (),
) -> list[Layer]:
    """Returns regions and evidence, if they are given, and attention map and mask of an object."""
    layers = []
    if regions:
        named = [(region.mask, region.label) for region in regions]
        places = "; ".join(f"{name} {place_of(mask)}" for mask, name in named)
        layers.append(
            Layer("regions", "regions", f"Regions: {places}", as_address(boxes_layer(named), "PNG"))
        )
    if evidence is not None:
        layers.append(
            Layer(
                "evidence",
                "evidence",
                f"Evidence for {evidence.class_name}: strongest {place_of(evidence.map)}",
                as_address(evidence_layer(evidence.map), "PNG"),
            )
        )
    if prediction.location is None:
        return layers
    significance, mask = prediction.location.attention_map, prediction.location.object_mask
    object_place = (
        f"{mask.mean():.0%} of the picture, around the {place_of(mask)}"
        if prediction.location.object_found
        else "the whole picture, because nothing stands out"
    )
    return [
        *layers,
        Layer(
            "attention",
            "attention map",
            f"Attention map: brightest {place_of(significance)}",
            as_address(heat(significance, HEAT_SIDE), "JPEG"),
        ),
        Layer(
            "object",
            "object mask",
            f"Object mask: {object_place}",
            as_address(mask_layer(mask), "PNG"),
        ),
    ]


def place_of(weights: Float[np.ndarray, "gh gw"] | Bool[np.ndarray, "gh gw"]) -> str:
    """Describes the place of the centre of weight in words, such as "top left"."""
    weights = weights - weights.min() if weights.dtype != bool else weights.astype(float)
    total = weights.sum()
    if not total:
        return "centre"
    words = []
    for axis, (low, high) in enumerate((("top", "bottom"), ("left", "right"))):
        length = weights.shape[axis]
        along = weights.sum(axis=1 - axis)
        centre = (along @ (np.arange(length) + 0.5)) / total / length
        words.append(low if centre < 0.4 else high if centre > 0.6 else "")
    return " ".join(filter(None, words)) or "centre"
