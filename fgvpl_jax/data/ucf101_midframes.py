"""Converts UCF101's videos to CoOp's photos: the middle frame of each video.

    python -m fgvpl_jax.data.ucf101_midframes ~/UCF-101 ~/data/ucf101/UCF-101-midframes

Needs the extra `video` (PyAV, which brings FFmpeg's decoders).
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fgvpl_jax.data.official_lists import midframes_folder
from fgvpl_jax.errors import UserError

QUALITY = 95


def convert(videos: str, photos: str) -> list[str]:
    """Writes the middle frame of each video.

    The photo of `<videos>/ApplyEyeMakeup/<video>.avi` is `<photos>/Apply_Eye_Makeup/<video>.jpg`.
    Existing photos are kept, so an interrupted conversion can be resumed.

    Args:
        videos: Folder of the unpacked archive, with one folder per action.
        photos: Folder for the photos, created if missing.
    Returns:
        One line for each video that could not be read, with the reason.
    Raises:
        UserError: If there is no video, or PyAV is not installed.
        OSError: If a photo cannot be written.
    """
    root, target = Path(videos).expanduser(), Path(photos).expanduser()
    files = sorted(root.glob("*/*.avi"))
    if not files:
        raise UserError(f"{root} holds no <action>/<video>.avi: name the unpacked folder")
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"reading videos needs PyAV ({error}): `pip install -c constraints.txt -e '.[video]'`"
        ) from error

    def work(video: Path) -> str | None:
        photo = target / midframes_folder(video.parent.name) / f"{video.stem}.jpg"
        if photo.exists():
            return None
        photo.parent.mkdir(parents=True, exist_ok=True)
        try:
            frame = middle_frame(video)
        except UserError as error:
            return str(error)
        partial = photo.with_suffix(".partial")
        try:
            frame.save(partial, format="JPEG", quality=QUALITY)
            os.replace(partial, photo)
        finally:
            partial.unlink(missing_ok=True)  # exists only after a failure
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(tqdm(pool.map(work, files), total=len(files), unit="video"))
    return [problem for problem in problems if problem]


def middle_frame(video: Path) -> Image.Image:
    """Returns frame n // 2 of n, counting from 0.

    n is counted by decoding, because the headers of AVI files may be wrong.

    Raises:
        UserError: If the video cannot be decoded or has no frame.
    """
    import av

    try:
        with av.open(str(video)) as container:
            count = sum(1 for _ in container.decode(video=0))
            container.seek(0)
            for number, frame in enumerate(container.decode(video=0)):
                if number == count // 2:
                    return frame.to_image()
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{video} cannot be read ({error}): unpack it again") from error
    raise UserError(f"{video} has no frame: unpack it again")


def main(arguments: list[str]) -> int:
    """Runs the command line; returns exit code 2 if anything went wrong."""
    if len(arguments) != 2:
        print("usage: python -m fgvpl_jax.data.ucf101_midframes VIDEOS PHOTOS", file=sys.stderr)
        return 2
    try:
        problems = convert(*arguments)
    except UserError as error:
        problems = [str(error)]
    except OSError as error:
        problems = [f"{error.filename or arguments[1]}: {error.strerror or error}"]
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
