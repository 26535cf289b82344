"""The chain of stages: its table, what is checked before the first stage, and how it runs."""
