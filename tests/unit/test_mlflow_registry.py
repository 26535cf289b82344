"""The registry in a local database; everything may be repeated without a double."""

from __future__ import annotations

from pathlib import Path

from infra.mlflow_registry import Registry
from infra.tracking import FINGERPRINT_TAG, Tracking


def test_a_model_becomes_a_version_with_an_alias_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    registry = Registry(uri, "viewdiff")
    assert registry.champion() is None
    assert not (tmp_path / "mlflow.db").exists()  # asking creates nothing
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    run = Tracking(uri).start("train", tags={FINGERPRINT_TAG: "d"})
    model_id = run.log_model(tmp_path / "model", name="viewdiff")
    assert run.log_model(tmp_path / "model", name="viewdiff") == model_id
    run.log_metrics({"psnr": 20.0}, model_id=model_id)
    assert registry.champion() is None
    version = registry.register(model_id=model_id, run_id=run.id, tags={FINGERPRINT_TAG: "d"})
    assert registry.register(model_id=model_id, run_id=run.id, tags={FINGERPRINT_TAG: "d"}) == version
    assert registry.versions() == [version]
    registry.set_alias("champion", version.version)
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.run_id, champion.tags[FINGERPRINT_TAG]) == (1, run.id, "d")
    files = Path(champion.source.removeprefix("file://"))
    assert (files / "weights").read_bytes() == b"weights"
