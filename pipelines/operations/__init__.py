"""Running a registry over time: who is champion, and when to train again."""
