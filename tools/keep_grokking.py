"""What tests/unit/test_grokking_stored.py reads of runs on modular addition: `python tools/keep_grokking.py STORE`.

STORE holds the sweep `grokking`, trained with weight decay, and what `ndt analyze grokking grokking` makes of it: at
p = 59 six seeds take 55 minutes of one AMD EPYC core, at p = 113 three take an hour.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ndt_ray.store.reader import open_store

FOLDER = Path(__file__).parents[1] / "tests" / "unit" / "stored" / "grokking"
FINISHED = "trial_id IN (SELECT trial_id FROM outcomes WHERE status = 'finished')"
PARTS = {
    "trials": f"SELECT trial_id, cell, seed, control, steps, spec FROM trials WHERE {FINISHED} ORDER BY trial_id",
    "outcomes": f"SELECT trial_id, status FROM outcomes WHERE {FINISHED} ORDER BY trial_id",
    "measurements": "SELECT trial_id, step, layer, layer_index, view, participation_ratio FROM measurements"
    f" WHERE {FINISHED} ORDER BY trial_id, layer_index, step",
    "evaluations": "SELECT trial_id, step, loss::FLOAT AS loss, accuracy::FLOAT AS accuracy FROM evaluations"
    f" WHERE {FINISHED} ORDER BY trial_id, step",
    "losses": f"SELECT trial_id, step, loss FROM losses WHERE {FINISHED} AND step % 50 = 0 ORDER BY trial_id, step",
    "grokking_measures": f"SELECT * EXCLUDE (sweep) FROM grokking_measures WHERE {FINISHED} ORDER BY trial_id, step",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    store = open_store(parser.parse_args().store)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, query in PARTS.items():
        rows = store.arrow(query)
        doubles = [pa.field(f.name, pa.float32()) if f.type == pa.float64() else f for f in rows.schema]
        rows = rows.cast(pa.schema(doubles))
        pq.write_table(rows, FOLDER / f"{name}.parquet", compression="zstd", compression_level=19)
        print(f"{name}: {rows.num_rows:,} rows")


if __name__ == "__main__":
    main()
