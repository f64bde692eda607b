"""The data preprocessing service: raw records in, prepared Parquet shards out."""
