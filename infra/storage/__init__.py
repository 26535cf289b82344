"""Files, on a local disk or in an S3 bucket: complete or invisible, locked, cached; and Parquet tables."""
