"""The webdataset shards: which sequence goes where, writing, reading, statistics."""
