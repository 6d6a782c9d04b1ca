"""The Parquet store: written by packs through manifests, read through DuckDB."""
