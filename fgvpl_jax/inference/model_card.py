"""The model card of an adapted CLIP: data, method, accuracy, use, limits and licence."""

from pathlib import Path

from huggingface_hub import ModelCardData, metadata_load

from fgvpl_jax.clip.hub import README
from fgvpl_jax.displays.labels import benchmark_label, shots_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.metrics import share_interval
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.export import shareable
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.version import __version__

USE = """\
This code needs transformers 5.3 or later, torch and safetensors:

```py
import json
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, CLIPImageProcessorPil

folder = "."  # the folder of this file
model, processor = (kind.from_pretrained(folder) for kind in (AutoModel, CLIPImageProcessorPil))
classifier = json.load(open(f"{folder}/classifier.json"))
weights = load_file(f"{folder}/classifier.safetensors")["class_weights"]
with torch.no_grad():
    photo = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
    features = torch.nn.functional.normalize(model.get_image_features(**photo).pooler_output)
    logits = model.logit_scale.exp() * features @ weights.T
    probabilities = (logits / classifier["temperature"]).softmax(-1)[0]
print(classifier["class_names"][probabilities.argmax()], f"{probabilities.max():.1%}")
```"""


def model_card(classifier: Classifier, backbone: Path) -> str:
    """Returns the content of README.md.

    Args:
        classifier: The run.
        backbone: Folder of its backbone's files, which may state a licence.
    """
    results, names = classifier.results, classifier.class_names
    identity = shareable(results)["backbone"]
    licence = licence_of(backbone)
    data = ModelCardData(
        base_model=None if identity["revision"] is None else identity["name"],
        library_name="transformers",
        license=licence,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "few-shot-learning"],
    )
    counts = results.counts
    rows = {
        "method": f"{classifier.model.title}, {results.epochs} epochs, seed {results.seed}; "
        "weights merged into both towers",
        "backbone": f"{identity['name']}, SHA-256 of its weights `{identity['sha256']}`",
        "data": f"{benchmark_label(results.benchmark)}, {shots_label(results.shots)}: "
        f"{counts.train} training, {counts.validation} validation and {counts.test} test photos; "
        f"{results.split_protocol}",
        "accuracy": accuracy_sentence(results),
        "zero-shot accuracy": f"{results.zero_shot_accuracy:.1%} of the same photos, by the "
        "backbone",
        "software": f"fgvpl_jax {__version__}",
    }
    limits = [
        "It answers with one of its classes for every photo, also for a photo of something else.",
        "The accuracy is that on photos from the same source as the training photos. The interval "
        "covers the choice of these photos, not another training run.",
        f"Both towers were trained for these classes with the text `{classifier.templates[0]}`. "
        "With other texts or other classes it was not measured; it may be worse than the backbone.",
        "The temperature, which calibrates the probabilities, and the class weights are not part "
        "of the CLIP. They are in `classifier.json` and `classifier.safetensors`.",
    ]
    if isinstance(classifier.model, TwoStage):
        limits.append(
            "The class weights are a trained classifier. Features of the class names from the text "
            "tower give other predictions, whose accuracy was not measured."
        )
    stated = (
        "The backbone's files state no licence: see the backbone."
        if licence is None
        else f"The backbone's files state the licence `{licence}`."
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# CLIP adapted to {len(names)} classes of {benchmark_label(results.benchmark)}",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {key} | {one} |" for key, one in rows.items()),
        "## Classes",
        "\n".join(f"- {name}" for name in names),
        "## Use",
        USE,
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits),
        "## Licence",
        f"{stated} The training photos have their own.",
    ]
    return "\n\n".join(parts) + "\n"


def accuracy_sentence(results: RunResults) -> str:
    """Returns the accuracy with its interval, and the photos that it was measured on."""
    if results.test_accuracy is None:
        accuracy, interval = results.cv_accuracy, results.cv_interval
        photos = "training photos, each by a model that was trained without it"
    else:
        accuracy, count = results.test_accuracy, results.test_images_read or 0
        interval = share_interval(round(accuracy * count), count) if count else None
        photos = f"{count} test photos"
    if accuracy is None or interval is None:
        return "not measured"
    low, high = interval
    return f"{accuracy:.1%} of {photos} (95% Wilson interval {low:.1%} to {high:.1%})"


def licence_of(backbone: Path) -> str | None:
    """Returns the licence in the metadata of a backbone's README.md; None if it states none.

    Raises:
        UserError: If the metadata is damaged.
    """
    file = backbone / README
    if not file.is_file():
        return None
    try:
        stated = (metadata_load(file) or {}).get("license")
    except Exception as error:  # YAML's readers raise many
        raise UserError(
            f"the metadata of {file} is damaged ({' '.join(str(error).split())}): mend or remove it"
        ) from error
    return stated if isinstance(stated, str) else None
