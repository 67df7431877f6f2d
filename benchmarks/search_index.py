"""
What an index of many vectors takes: time of writing and of making an index for approximate search, the time of a query
(p50, p95), the peak of memory, and the recall of the 10 nearest against comparing all vectors.

    python -m benchmarks.search_index [--rows 1000000] [--dim 256] [--spread 0.5] [--output search_index.json]

Random vectors without any structure are the worst case for approximate search, and unlike embeddings: `--spread` puts
them around 1,000 centres, with noise of this length beside the centres' 1; `inf` leaves the centres out. Queries are
rows with the same noise added again. Linux only: the peak is read from /proc, of this process alone, and counts pages
of mapped files.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from benchmarks.engine.memory import MIB, resident
from benchmarks.facts import write_facts
from mmemb_r1.index.store import PRECISIONS, create_rows, index_vectors, nearest_rows, write_rows

CENTRES, AT_ONCE, K = 1000, 20_000, 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def around(rng: np.random.Generator, middles: np.ndarray, spread: float) -> np.ndarray:
    """Draw a vector of unit norm near each of `middles` `(N, D)`."""
    noise = unit(rng.normal(size=middles.shape))
    return noise if math.isinf(spread) else unit(middles + spread * noise)


def as_rows(schema: pyarrow.Schema, vectors: np.ndarray, start: int) -> pyarrow.Table:
    """Make rows of an index around vectors, with little else in them."""
    count = len(vectors)
    columns = {field.name: pyarrow.nulls(count, field.type) for field in schema}
    columns["id"] = pyarrow.array([f"row {start + place}" for place in range(count)])
    columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), vectors.shape[1])
    return pyarrow.table(columns, schema=schema)


def asked(table: Any, queries: np.ndarray, exact: bool) -> tuple[list[set[str]], dict[str, float]]:
    """Search for each query; tell what was found, and the time that one takes."""
    found, seconds = [], []
    nearest_rows(table, queries[0], K, None, exact)  # opens files
    for query in queries:
        start = time.perf_counter()
        rows = nearest_rows(table, query, K, None, exact)
        seconds.append(time.perf_counter() - start)
        found.append(set(rows["id"].to_pylist()))
    p50, p95 = np.percentile(seconds, [50, 95])
    return found, {"p50_ms": 1000 * float(p50), "p95_ms": 1000 * float(p95)}


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(CENTRES, args.dim)))
    table = create_rows(folder, args.dim, None)
    some, start = [], time.perf_counter()
    for place in range(0, args.rows, AT_ONCE):
        middles = centres[rng.integers(CENTRES, size=min(AT_ONCE, args.rows - place))]
        vectors = around(rng, middles, args.spread)
        some.append(vectors[:: max(1, len(vectors) * args.rows // AT_ONCE // args.queries)])
        table.add(as_rows(table.schema, vectors, place))
    rows: list[dict[str, Any]] = [{"what": "write", "seconds": time.perf_counter() - start}]
    start = time.perf_counter()
    write_rows(table, as_rows(table.schema, centres[:128], args.rows).to_pylist())
    rows.append({"what": "128 more", "seconds": time.perf_counter() - start})
    picked = np.concatenate(some)
    noise = 0.3 if math.isinf(args.spread) else args.spread
    queries = around(rng, picked[rng.permutation(len(picked))[: args.queries]], noise)
    best, times = asked(table, queries, exact=True)
    rows.append({"what": "exact", **times, "peak_bytes": resident("VmHWM")})
    for precision in PRECISIONS:
        start = time.perf_counter()
        index_vectors(table, precision)
        seconds = time.perf_counter() - start
        found, times = asked(table, queries, exact=False)
        right = sum(len(one & other) for one, other in zip(best, found, strict=True))
        recall = right / (K * len(queries))
        rows.append(
            {"what": precision, "seconds": seconds, **times, "recall": recall, "peak_bytes": resident("VmHWM")}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), args)
    for row in rows:
        parts = [f"{row['what']:>9s}"]
        parts += [f"{row['seconds']:7.2f} s"] if "seconds" in row else [" " * 9]
        if "p50_ms" in row:
            parts.append(f"query {row['p50_ms']:7.1f} ms p50 {row['p95_ms']:7.1f} ms p95")
        parts += [f"recall@{K} {row['recall']:.3f}"] if "recall" in row else []
        parts += [f"peak {row['peak_bytes'] / MIB:,.0f} MiB"] if "peak_bytes" in row else []
        print("  ".join(parts))
    if args.output is not None:
        write_facts(args.output, rows, args)


if __name__ == "__main__":
    main()
