"""python -m tests.bench.peers.engine_qdrant FOLDER: Qdrant's own engine, in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as qdrant

from tests.bench.peers import neighbours

BATCH = 1_000


class Qdrant:
    """One shard, optimised before it is asked."""

    def __init__(self, folder: Path, vectors: Any) -> None:
        hnsw = qdrant.HnswIndexConfig(m=16, ef_construct=200, full_scan_threshold=10_000)
        config = qdrant.EdgeConfig(
            vectors={"": qdrant.EdgeVectorParams(vectors.shape[1], qdrant.Distance.Cosine, hnsw_config=hnsw)},
            optimizers=qdrant.EdgeOptimizersConfig(indexing_threshold=1_000, default_segment_number=1),
        )
        self._shard = qdrant.EdgeShard.create(str(folder), config)
        self._shard.update(qdrant.UpdateOperation.create_field_index("n", qdrant.PayloadSchemaType.Integer))
        for low in range(0, len(vectors), BATCH):
            points = [
                qdrant.Point(low + number, vector.tolist(), {"n": low + number})
                for number, vector in enumerate(vectors[low : low + BATCH])
            ]
            self._shard.update(qdrant.UpdateOperation.upsert_points(points))
        self._shard.optimize()

    def search(self, query: Any, below: int | None, effort: int) -> Sequence[int]:
        kept = None
        if below is not None:
            kept = qdrant.Filter(must=[qdrant.FieldCondition("n", range=qdrant.RangeFloat(lt=below))])
        request = qdrant.SearchRequest(
            qdrant.Query.Nearest(query.tolist()),
            neighbours.K,
            filter=kept,
            params=qdrant.SearchParams(hnsw_ef=effort),
        )
        return [point.id for point in self._shard.search(request)]


if __name__ == "__main__":
    neighbours.serve(Qdrant)
