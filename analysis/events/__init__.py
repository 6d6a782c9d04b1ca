"""Events that survive a null: candidates and their p-values per series, q-values over a declared family of series."""
