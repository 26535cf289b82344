"""The reader of transforms.json and its relatives."""
