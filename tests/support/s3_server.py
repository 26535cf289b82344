"""An S3 server process for tests, which keeps its objects in a folder while it is stopped: moto's own forgets them.

`python -m tests.support.s3_server PORT FOLDER` is the process; `S3Server` starts, stops and restarts it.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import CHECKOUT

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"
START_SECONDS = 60.0


class S3Server:
    """A server with one bucket, on a free port that it keeps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": self.endpoint}

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.support.s3_server", str(self._port), str(self._folder)]
        environment = {"PYTHONPATH": str(CHECKOUT)}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < end, (self._folder / "server.log").read_text()
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        """Finish the requests that it is at, and end."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()


def main() -> None:
    """Serve until SIGTERM."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    port, state = int(sys.argv[1]), Path(sys.argv[2]) / "objects.pickle"
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    bucket = backend.create_bucket(BUCKET, "us-east-1")
    if state.exists():
        for key, data in pickle.loads(state.read_bytes()).items():
            backend.put_object(BUCKET, key, data)
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)
    # Closing waits for what is being answered: nothing is acknowledged and then forgotten.
    server.daemon_threads = False
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    try:
        server.serve_forever()
    finally:
        server.server_close()
        state.write_bytes(pickle.dumps({key: item.value for key, item in bucket.keys.items()}))


if __name__ == "__main__":
    main()
