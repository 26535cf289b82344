"""HTML pages: the report, the dataset card, the comparison of trainings."""
