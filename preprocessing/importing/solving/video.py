"""Photos out of a video: sharp frames, evenly spaced in time, upright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from infra.errors import UserError
from infra.log import Progress
from infra.storage.files import publish_folder
from preprocessing.sequences.images import encode_image, sharpness

MINIMUM_FRAMES = 3
# Ends that players do not show are missing in whole videos too.
WHOLE_SHARE = 0.9
# Frames are compared at most at this longest side, pixels: what is blurred at the size that features are found at.
COMPARED_SIDE = 1600


def take_frames(video: Path, folder: Path, *, count: int) -> Path:
    """Write the sharpest frame of each of `count` equal parts of the video's time into `folder` as JPEG files, turned
    upright as the video says; returns `folder`. If it is there already, nothing is done.

    Raises:
        UserError: the file cannot be decoded as a video, breaks off, is a picture, or has fewer than 3 frames.
    """
    if folder.is_dir():
        return folder
    times, sharp = _look_through(video)
    chosen = choose_frames(times, sharp, count)
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = dict(zip(chosen, range(1, len(chosen) + 1), strict=True))
    with _opened(video) as capture, Progress("frames", total=len(chosen), unit="frames") as progress:
        for place in range(chosen[-1] + 1):
            if not capture.grab():
                break
            if place in wanted:
                _, frame = capture.retrieve()
                (partial / f"frame{wanted[place]:06d}.jpg").write_bytes(encode_image(frame[..., ::-1]))
                progress.advance()
    publish_folder(partial, folder)
    return folder


def choose_frames(times: Sequence[float], sharp: Sequence[float], count: int) -> list[int]:
    """Places of at most `count` frames, rising: of each of `count` equal parts of the time the sharpest.

    `times` are seconds, rising; `sharp` is any measure that is higher for a sharper frame. Parts without a frame give
    none.
    """
    start, length = times[0], times[-1] - times[0]
    best: dict[int, int] = {}
    for place, (time, value) in enumerate(zip(times, sharp, strict=True)):
        part = min(int((time - start) / length * count), count - 1) if length > 0 else 0
        if part not in best or value > sharp[best[part]]:
            best[part] = place
    return sorted(best.values())


def _look_through(video: Path) -> tuple[list[float], list[float]]:
    """Time in seconds and sharpness of every frame."""
    times, sharp = list[float](), list[float]()
    with _opened(video) as capture:
        total, rate = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0), capture.get(cv2.CAP_PROP_FPS)
        with Progress("video", total=total, unit="frames") as progress:
            while capture.grab():
                decoded, frame = capture.retrieve()
                if not decoded:
                    break
                times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
                sharp.append(sharpness(_reduced(frame)))
                progress.advance()
    _require_whole(video, times, total, rate)
    return times, sharp


def _require_whole(video: Path, times: Sequence[float], total: int, rate: float) -> None:
    """Check the frames that were decoded against the `total` that the file says it has, `rate` of them a second.

    A video breaks off if both frames and time are missing: without an index a file's number of frames is a guess, and
    some files hold no times.
    """
    lasts = times[-1] - times[0] if times else 0.0
    if len(times) < WHOLE_SHARE * total and lasts * rate < WHOLE_SHARE * total:
        raise UserError(
            f"{video}: breaks off: {len(times)} of its {total} frames can be decoded; copy it again, or export the "
            "part that can be played, as an MP4"
        )
    if len(times) == 1:
        raise UserError(
            f"{video}: is a picture, not a video; name the folder of the photos, of which at least {MINIMUM_FRAMES} "
            "are needed"
        )
    if len(times) < MINIMUM_FRAMES:
        raise UserError(
            f"{video}: has {len(times)} frames that can be decoded, at least {MINIMUM_FRAMES} are needed; export it "
            "again, as an MP4"
        )


def _reduced(frame: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3] scaled down to the side that frames are compared at."""
    scale = COMPARED_SIDE / max(frame.shape[:2])
    return frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


@contextmanager
def _opened(video: Path) -> Iterator[cv2.VideoCapture]:
    """The video, whose frames come upright: OpenCV turns them as the file's metadata say."""
    # What goes wrong is told here, so that the libraries need not; FFmpeg reads its level when it is first used.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise UserError(
                f"{video}: cannot be decoded as a video; name a folder of photos, or export the video as an MP4 (H.264)"
            )
        yield capture
    finally:
        capture.release()
        cv2.utils.logging.setLogLevel(level)
