"""python -m tests.bench.peers.engine_lancedb FOLDER: LanceDB, in this process, with its HNSW index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa

from tests.bench.peers import neighbours

REFINED = 4


class LanceDB:
    """The scalar field is indexed as well."""

    def __init__(self, folder: Path, vectors: Any) -> None:
        flat = pa.array(vectors.reshape(-1), pa.float32())
        rows = pa.table(
            {
                "n": pa.array(range(len(vectors)), pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        self._table = lancedb.connect(str(folder)).create_table("bench", rows)
        self._table.create_index(
            metric="cosine",
            vector_column_name="vector",
            index_type="IVF_HNSW_SQ",
            num_partitions=1,
            m=16,
            ef_construction=200,
        )
        self._table.create_scalar_index("n")

    def search(self, query: Any, below: int | None, effort: int) -> Sequence[int]:
        # Its vectors are quantised: what is found is measured again on the stored ones.
        asked = self._table.search(query).distance_type("cosine").refine_factor(REFINED)
        asked = asked.ef(max(effort, REFINED * neighbours.K))
        if below is not None:
            asked = asked.where(f"n < {below}", prefilter=True)
        found = asked.limit(neighbours.K).select(["n"]).to_arrow()
        return [int(number) for number in found["n"].to_pylist()]


if __name__ == "__main__":
    neighbours.serve(LanceDB)
