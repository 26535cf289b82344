"""Where the checkout is, for tests that read its files or start commands in it."""

from __future__ import annotations

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
