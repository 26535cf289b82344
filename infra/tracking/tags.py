"""Names of tags, parameters and aliases in MLflow, by which records are found again. Imports nothing."""

from __future__ import annotations

COMMIT_TAG = "mlflow.source.git.commit"  # MLflow's page shows it as the version
INPUT_PREFIX = "viewdiff.input."  # of tags: fingerprint of each input, by its role
VERSION_PREFIX = "viewdiff.version."  # of tags: version of each package

CHECKPOINT = "checkpoint"  # kind of logged models
FOLDER_PARAM = "folder"  # of a logged checkpoint

STAGE_TAG, ERROR_TAG = "viewdiff.stage", "viewdiff.error"
RAN_ON_TAG = "viewdiff.ran_on"  # of the whole training: where its newest attempt ran
GPUS_TAG = "viewdiff.gpus"  # of an attempt: what the cluster had when it began
ATTEMPT = "attempt"  # value of the stage's tag

CHAMPION, CHALLENGER = "champion", "challenger"

FILES_TAG, FILES_KEPT, FILES_REMOVED = "viewdiff.files", "on disk", "removed"  # of one whose files MLflow does not hold

FINGERPRINT_TAG, FOLDER_TAG = "viewdiff.fingerprint", "viewdiff.folder"  # of a run: of the stage's result
