"""What MLflow reads when it is imported or first used; so the files of this room that know it import this one first.
This project sends nothing to anybody.
"""

from __future__ import annotations

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# A connection that is kept would go on writing, unseen, into a database file that was removed or replaced.
os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # what it queues in memory is lost with the process
