"""`viewdiff compare`: which runs are meant, what differs between them, and the page about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UserError
from infra.tracking.experiment import Tracking
from infra.tracking.run import Run
from pipelines.cli.main import dispatch
from pipelines.commands.compare import PAGE_NAME
from pipelines.spine.runtime import RuntimeConfig

STEPS = 40


def record(tracking: Tracking, name: str, *, rate: float, slope: float) -> Run:
    """A finished training whose loss falls by `slope` a step from 10, but for its last step."""
    tags = {"viewdiff.stage": "train", "viewdiff.folder": f"/runs/train/{name}", "mlflow.source.git.commit": name}
    run = tracking.start(f"train {name}", tags=tags)
    run.log_params({"learning_rate": rate, "batch_size": 4, "num_views": 3, "seed": 0})
    lines = [
        {"step": step, "loss": 10 - slope * step, "time/seconds": 0.5, "time/unix": 0.0} for step in range(1, STEPS)
    ]
    run.log_lines([*lines, {"step": STEPS, "loss": 10.0, "time/seconds": 0.5, "time/unix": 0.0}])
    run.finish()
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    tracking = Tracking(RuntimeConfig(root=str(root)).tracking)
    record(tracking, "slow", rate=0.001, slope=0.1)
    record(tracking, "fast", rate=0.002, slope=0.2)
    tracking.start("train empty", tags={"viewdiff.stage": "train"})
    tracking.start("evaluate", tags={"viewdiff.stage": "evaluate"})
    return root


def compare(root: Path, *names: str) -> None:
    dispatch(["compare", *names, "--root", str(root), "--output", str(root / "page")])


def test_without_names_the_trainings_are_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(root)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "NAME", "STARTED", "(UTC)", "STATUS", "STEPS", "LOSS"]
    found = {line[10:21].strip(): line.split()[-3:] for line in lines}
    finished = ["FINISHED", "40", "10"]
    assert found == {"train empty": ["RUNNING", "0", "–"], "train fast": finished, "train slow": finished}


def test_only_what_differs_is_shown_and_who_is_ahead(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(root, "train slow", "train fast")
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    assert "seed" not in words
    for row in (
        "learning_rate 0.001 0.002",
        "loss, best 6.1 at step 39 2.2 at step 39 *",
        "loss, mean of the last tenth 7.15 4.3 *",  # of steps 37, 38, 39 and the last
        "loss, last 10 at step 40 10 at step 40",
        "views per second 24 24",
        "commit slow fast",
        "model /runs/train/slow/model /runs/train/fast/model",
    ):
        assert row in words, row


def test_a_run_may_be_named_by_its_fingerprint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(root, "slo", "fas")
    assert "learning_rate" in capsys.readouterr().out


def test_the_page_shows_the_same_and_needs_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(root, "train slow", "train fast")
    page = (root / "page" / PAGE_NAME).read_text()
    assert page.count('<path class="smooth"') == 2
    assert '<td class="best">2.2 at step 39</td>' in page
    assert "learning_rate" in page
    assert "/runs/train/fast/model" in page
    assert "http" not in page.replace("http-equiv", "")
    assert capsys.readouterr().out.splitlines()[-1] == f"page  {root / 'page' / PAGE_NAME}"


def test_the_beginning_of_an_id_is_enough_and_must_be_of_one_run(root: Path) -> None:
    tracking = Tracking(RuntimeConfig(root=str(root)).tracking)
    ids = [record(tracking, "same", rate=rate, slope=0.1).id for rate in (0.1, 0.2)]
    compare(root, ids[0][:12], ids[1][:12].upper())
    with pytest.raises(UserError, match=rf"'train same' may be .*{ids[1][:8]}.*type more of its id"):
        compare(root, "train same", "train fast")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train slow"], "only 'train slow' .* is named; name two or more, `viewdiff compare` lists them"),
        (["train slow", "train slow"], "'train slow' is the run 'train slow' .*named twice"),
        (["train slow", "train fasd"], "no training run 'train fasd'; did you mean 'train fast'"),
        (["train slow", "evaluate"], "no training run 'evaluate'"),
        (["train slow", "train empty"], r"'train empty' \(\w{8}\) has no loss yet \(it is RUNNING\)"),
    ],
)
def test_what_cannot_be_compared_is_named(root: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(root, *names)


def test_where_nothing_was_recorded_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no database sqlite:///\S+nowhere/mlflow.db; name another --root"):
        compare(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
