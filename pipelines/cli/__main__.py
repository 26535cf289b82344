"""`python -m pipelines.cli` is `viewdiff`."""

from pipelines.cli.main import main

main()
