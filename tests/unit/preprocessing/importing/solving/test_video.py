"""Frames of a video: the sharpest of each part of its time, upright."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from preprocessing.importing.solving.video import _require_whole, choose_frames, take_frames
from tests.support.photographed import picture, poses

COUNT, PER_SECOND = 24, 12.0
SHARP = {2, 7, 13, 20}  # of 4 parts of 6 frames


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A camera that shakes at all times but four."""
    pictures = [picture(pose) for pose in poses(COUNT)]
    return [each if n in SHARP else cv2.GaussianBlur(each, (0, 0), 3) for n, each in enumerate(pictures)]


@pytest.fixture
def video(frames: list[np.ndarray], tmp_path: Path) -> Path:
    return write_video(tmp_path / "walk around.mp4", frames, "mp4v")


def write_video(path: Path, frames: list[np.ndarray], codec: str) -> Path:
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), PER_SECOND, (width, height))
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()
    return path


def turn(path: Path) -> None:
    """Let an MP4 file say that it is to be shown turned by 90 degrees to the right, as a phone held upright does: the
    matrix in the header of its track (ISO 14496-12, 8.3.2: 3 × 3, row by row, 16.16 and, in the last column, 2.30).
    """
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # after version, times, number, duration, layer, volume
    one, identity = 1 << 16, struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == identity
    data[place : place + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def read(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.iterdir())]


def test_the_sharpest_of_each_part_is_taken(frames: list[np.ndarray], video: Path, tmp_path: Path) -> None:
    taken = read(take_frames(video, tmp_path / "frames", count=4))
    assert len(taken) == 4
    for found, number in zip(taken, sorted(SHARP), strict=True):
        distances = [np.abs(found.astype(int) - frame).mean() for frame in frames]
        assert int(np.argmin(distances)) == number


def test_frames_of_a_phone_held_upright_are_upright(frames: list[np.ndarray], video: Path, tmp_path: Path) -> None:
    turn(video)
    taken = read(take_frames(video, tmp_path / "frames", count=4))
    for found, number in zip(taken, sorted(SHARP), strict=True):
        upright = np.rot90(frames[number], -1)  # to the right
        assert found.shape == upright.shape
        assert np.abs(found.astype(int) - upright).mean() < 20  # the codec's loss; turned the other way it is above 50


def test_frames_that_are_there_are_kept(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    assert take_frames(tmp_path / "no.mp4", tmp_path / "frames", count=4) == tmp_path / "frames"


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_is_one_line(content: bytes, tmp_path: Path) -> None:
    """In a process of its own: FFmpeg is told to be silent when it is used first."""
    (tmp_path / "walk.mp4").write_bytes(content)
    options = ["--solve-cameras", "--output", str(tmp_path / "out"), "--category", "box", "--name", "one"]
    command = [sys.executable, "-m", "pipelines.cli", "import", str(tmp_path / "walk.mp4"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"viewdiff: error: {tmp_path}/walk.mp4: cannot be decoded as a video; name a folder of photos, or export the "
        "video as an MP4 (H.264)\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_video_without_its_table_of_contents_is_refused(video: Path, tmp_path: Path) -> None:
    video.write_bytes(video.read_bytes()[:2000])
    with pytest.raises(UserError, match="decoded"):
        take_frames(video, tmp_path / "frames", count=4)


@pytest.mark.parametrize(("share", "left"), [(0.25, 6), (0.6, 14), (0.01, 0)])
def test_a_video_that_breaks_off_is_refused(frames: list[np.ndarray], tmp_path: Path, share: float, left: int) -> None:
    path = write_video(tmp_path / "walk.avi", frames, "MJPG")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refusal = f"breaks off: {left} of its {COUNT} frames can be decoded" if left else "cannot be decoded"
    with pytest.raises(UserError, match=refusal):
        take_frames(path, tmp_path / "frames", count=4)
    assert not (tmp_path / "frames").exists()


def test_a_video_without_its_last_frame_is_taken(frames: list[np.ndarray], tmp_path: Path) -> None:
    path = write_video(tmp_path / "walk.avi", frames, "MJPG")
    path.write_bytes(path.read_bytes()[:-3000])
    assert len(read(take_frames(path, tmp_path / "frames", count=4))) == 4


@pytest.mark.parametrize(
    ("total", "rate", "breaks_off"),
    [
        (60, 12.0, True),
        (1000, 1000.0, False),  # a guess by a clock's ticks: the times say that all of the second is there
        (0, 12.0, False),  # the file does not say
        (15, 120.0, False),  # times that are no use
    ],
)
def test_frames_or_time_that_are_there_make_a_video_whole(total: int, rate: float, breaks_off: bool) -> None:
    times = [number / 15 for number in range(15)]
    if not breaks_off:
        _require_whole(Path("walk"), times, total, rate)
        return
    with pytest.raises(UserError, match="breaks off"):
        _require_whole(Path("walk"), times, total, rate)


def test_one_picture_is_called_so(frames: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), frames[0])
    with pytest.raises(UserError, match=r"photo\.jpg: is a picture, not a video; name the folder of the photos"):
        take_frames(path, tmp_path / "frames", count=4)


@pytest.mark.parametrize(
    ("times", "sharp", "count", "chosen"),
    [
        ([0, 1, 2, 3], [1, 2, 4, 3], 2, [1, 2]),
        ([0, 0.1, 0.2, 9], [1, 2, 3, 1], 3, [2, 3]),  # a part without a frame gives none
        ([5, 6, 7], [1, 1, 1], 10, [0, 1, 2]),
        ([0, 0, 0], [1, 3, 2], 4, [1]),  # a file without times
        ([0, 1, 2, 3], [2, 2, 2, 2], 1, [0]),
    ],
)
def test_choice(times: list[float], sharp: list[float], count: int, chosen: list[int]) -> None:
    assert choose_frames(times, sharp, count) == chosen
