"""python -m tests.bench.peers.engine_milvus FOLDER: milvus-lite, in this process, through its client."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pymilvus import DataType, MilvusClient

from tests.bench.peers import neighbours

BATCH = 1_000


class Milvus:
    def __init__(self, folder: Path, vectors: Any) -> None:
        self._client = MilvusClient(str(folder / "milvus.db"))
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("n", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        indexes = self._client.prepare_index_params()
        parameters = {"M": 16, "efConstruction": 200}
        indexes.add_index("vector", index_type="HNSW", metric_type="COSINE", params=parameters)
        self._client.create_collection("bench", schema=schema, index_params=indexes)
        for low in range(0, len(vectors), BATCH):
            rows = [
                {"id": low + number, "n": low + number, "vector": vector.tolist()}
                for number, vector in enumerate(vectors[low : low + BATCH])
            ]
            self._client.insert("bench", rows)
        self._client.flush("bench")
        self._client.load_collection("bench")

    def search(self, query: Any, below: int | None, effort: int) -> Sequence[int]:
        found = self._client.search(
            "bench",
            [query.tolist()],
            limit=neighbours.K,
            filter="" if below is None else f"n < {below}",
            search_params={"metric_type": "COSINE", "params": {"ef": effort}},
        )
        return [hit["id"] for hit in found[0]]


if __name__ == "__main__":
    neighbours.serve(Milvus)
