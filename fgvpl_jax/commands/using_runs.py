"""The modes that use finished runs: predict, serve, export and report.

Each function takes the workdir and the positional arguments, and returns the exit code. It imports
what it needs when it is called, so that `--help` and mistakes do not wait for jax.
"""

import errno
import sys
from functools import partial
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, NamedTuple

from fgvpl_jax.commands.console import BROKEN_PIPE, MISTAKE, complain, printable
from fgvpl_jax.commands.environment import check_devices, without_proxies
from fgvpl_jax.commands.flags import (
    COCO,
    CONFIG,
    EVIDENCE,
    FORMAT,
    HOST,
    JSON,
    OUTPUT,
    OVERLAY_DIR,
    PORT,
    PUSH_TO_HUB,
    REGIONS,
    TOKEN_FILE,
    TOP_K,
)
from fgvpl_jax.commands.output import output_error
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user, write_json

SHORTEST_TOKEN = 16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from fgvpl_jax.inference.classifier import Classifier
    from fgvpl_jax.inference.onnx_int8 import Difference


def predict(workdir: str, arguments: list[str]) -> int:
    """Prints a prediction for each photo; returns exit code 2 if a photo could not be read."""
    from fgvpl_jax.inference import predict as prediction
    from fgvpl_jax.inference.regions import coco_content
    from fgvpl_jax.runs.workdir import Workdir

    if EVIDENCE.value is not None and not JSON.value and OVERLAY_DIR.value is None:
        raise UserError(
            f"--evidence={EVIDENCE.value} would not be shown: add --json or --overlay_dir=FOLDER"
        )
    coco = coco_file()
    photos = prediction.find_photos(arguments)
    if Workdir(workdir).label_model_file.exists():
        return _predict_labels(workdir, photos)
    if coco is not None:
        make_folder_of(coco)
    classifier = _load(workdir)
    found: list[Any] = []

    def answers() -> "Iterable[Answer]":
        for one in prediction.predict_files(
            classifier,
            photos,
            TOP_K.value,
            OVERLAY_DIR.value,
            EVIDENCE.value,
            with_regions=REGIONS.value,
        ):
            if one.regions is not None and one.size is not None:
                found.append((one.photo, one.size, one.regions))
            as_text = partial(prediction.as_text, regions=one.regions)
            yield Answer(one.result, partial(prediction.as_json, one), as_text)

    try:
        return _print_answers(answers())
    finally:  # after an interruption or an error, with the photos so far
        if coco is not None and found:
            write_json(coco, coco_content(found, classifier.class_names))


def _predict_labels(workdir: str, photos: "list[Path]") -> int:
    """Does the work of `predict` with a run with several labels a photo."""
    from fgvpl_jax.inference import multi_label

    for flag in (OVERLAY_DIR, EVIDENCE, REGIONS):
        if flag.value:
            raise UserError(
                f"{workdir} holds a run with several labels a photo, which has no pictures, "
                f"evidence or regions: leave --{flag.name} out"
            )
    check_devices()
    clip = None if CONFIG.value is None else CONFIG.value.clip
    found = multi_label.load_multi_label(workdir, clip).predict_each(photos, TOP_K.value)
    return _print_answers(
        Answer(one, partial(multi_label.label_json, photo, one), multi_label.label_text)
        for photo, one in zip(photos, found, strict=True)
    )


class Answer(NamedTuple):
    """The result for one photo, and how it is printed.

    Attributes:
        result: The prediction, or the error if the photo cannot be read.
        as_json: Returns its JSON line.
        as_text: Returns a prediction's lines of text.
    """

    result: Any
    as_json: "Callable[[], str]"
    as_text: "Callable[[Any], str]"


def _print_answers(answers: "Iterable[Answer]") -> int:
    """Prints the answers as they come; returns exit code 2 if a photo could not be read."""
    count = unreadable = 0
    for answer in answers:
        count += 1
        if isinstance(answer.result, UserError):
            unreadable += 1
            complain(answer.result)
        if JSON.value:
            print(answer.as_json(), flush=True)  # for a program that reads the pipe
        elif not isinstance(answer.result, UserError):
            print(printable(answer.as_text(answer.result)), flush=True)
        if (error := output_error()) is not None:  # no reader, or a full disk
            return BROKEN_PIPE if error.errno == errno.EPIPE else MISTAKE
    if unreadable:
        complain(f"{unreadable} of {count} photos could not be read")
    return MISTAKE if unreadable else 0


def coco_file() -> "Path | None":
    """Returns the file of --coco, if it is given.

    Raises:
        UserError: If there are no regions to write, this is no name of a file, or it exists.
    """
    if COCO.value is None:
        return None
    if not REGIONS.value:
        raise UserError(f"--coco={COCO.value} is a file of regions: add --regions")
    file = expand_user(COCO.value)
    if file.is_dir() or file.suffix != ".json":
        raise UserError(
            f"--coco={COCO.value} is not the name of a .json file: name one, such as regions.json"
        )
    if file.exists():
        raise UserError(f"--coco={COCO.value} exists already: name a new file, or remove it first")
    return file


def make_folder_of(file: "Path") -> None:
    """Makes the folder of a file that is written after long work.

    Raises:
        UserError: If no file can be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror or error}): name a file in another folder"
        ) from error


def serve(workdir: str, arguments: list[str]) -> int:
    """Serves a trained run until it is interrupted."""
    try:
        with without_proxies():
            from fgvpl_jax.serving import server
            from fgvpl_jax.serving.service import Limits
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(
            "--mode=serve needs Gradio: pip install -c constraints.txt -e '.[serve]' in a "
            "checkout, otherwise pip install 'gradio>=6.20,<7'"
        ) from error
    from fgvpl_jax.inference import predict as prediction

    examples = prediction.find_photos(arguments) if arguments else []
    token = None if TOKEN_FILE.value is None else read_token(TOKEN_FILE.value)
    classifier = _load(workdir)
    if not server.is_loopback(HOST.value):
        print(
            f"everybody who can reach {HOST.value} can use this page and see the training photos "
            "most similar to theirs; it has no password and no encryption: see docs/serve.md",
            file=sys.stderr,
        )
    with without_proxies():
        server.serve(classifier, HOST.value, PORT.value, Limits(), examples, token)
    return 0


def read_token(file: str) -> str:
    """Returns the secret in a file, without the white space around it."""
    try:
        token = expand_user(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--token_file={file} cannot be read ({error}): name a text file with a secret of at "
            f"least {SHORTEST_TOKEN} characters"
        ) from error
    if len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"--token_file={file} holds {len(token)} characters: write a secret of at least "
            f"{SHORTEST_TOKEN} into it, for example by openssl rand -hex 16"
        )
    return token


def export(workdir: str, arguments: list[str]) -> int:
    """Writes a trained run to a file or folder; uploads it if --push_to_hub is given."""
    if OUTPUT.value is None:
        example = "eurosat" if FORMAT.value == "hf" else f"eurosat.{FORMAT.value.split('_')[0]}"
        kind = "folder" if FORMAT.value == "hf" else "file"
        raise UserError(f"no --output: name the {kind} to write, such as --output={example}")
    repository = PUSH_TO_HUB.value
    if repository is not None and FORMAT.value != "hf":
        raise UserError("--push_to_hub uploads only the folder of --format=hf: add --format=hf")
    if FORMAT.value != "hf":
        file, difference = _export_file(workdir, OUTPUT.value)
        print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB; docs/export.md says how to run it")
        if difference is not None:
            print(difference)
        return 0
    from fgvpl_jax.inference import hugging_face

    if repository is not None:
        hugging_face.check_hub_id(repository)
    folder = hugging_face.export_hugging_face(_load(workdir), OUTPUT.value)
    print(f"{folder}: an adapted CLIP for transformers; its README.md says how to use it")
    if repository is not None:
        print(hugging_face.push_to_hub(folder, repository))
    return 0


def _export_file(workdir: str, output: str) -> "tuple[Path, Difference | None]":
    """Writes a file of the chosen format; returns its path, and its difference if not exact."""
    if FORMAT.value == "fgvpl":
        from fgvpl_jax.inference.export import export_classifier

        return export_classifier(_load(workdir), output), None
    try:
        if FORMAT.value == "onnx_int8":
            from fgvpl_jax.inference.onnx_int8 import export_onnx_int8
        else:
            from fgvpl_jax.inference.onnx_export import export_onnx
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("onnx", "onnxruntime"):
            raise
        raise UserError(
            f"--format={FORMAT.value} needs onnx and onnxruntime: pip install -c constraints.txt "
            "-e '.[onnx]' in a checkout, otherwise pip install 'onnx>=1.23' 'onnxruntime>=1.32'"
        ) from error
    if FORMAT.value == "onnx_int8":
        return export_onnx_int8(_load(workdir), output)
    return export_onnx(_load(workdir), output), None


def report(workdir: str, arguments: list[str]) -> int:
    """Writes the report and prints where its files are."""
    from fgvpl_jax.reports.report import write_report

    for line in write_report(workdir, arguments or [workdir]):
        print(line)
    return 0


def _load(workdir: str) -> "Classifier":
    """Loads a trained run; the config, if there is one, says where its backbone is now."""
    from fgvpl_jax.inference.classifier import load_classifier

    check_devices()
    return load_classifier(workdir, None if CONFIG.value is None else CONFIG.value.clip)
