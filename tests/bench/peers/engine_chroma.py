"""python -m tests.bench.peers.engine_chroma FOLDER: Chroma, in this process, on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings

from tests.bench.peers import neighbours

BATCH = 1_000


class Chroma:
    """The effort is a setting of the collection, changed between searches."""

    def __init__(self, folder: Path, vectors: Any) -> None:
        client = chromadb.PersistentClient(str(folder), Settings(anonymized_telemetry=False))
        self._effort = 64
        hnsw = {"space": "cosine", "max_neighbors": 16, "ef_construction": 200, "ef_search": self._effort}
        self._collection = client.create_collection("bench", configuration={"hnsw": hnsw})
        for low in range(0, len(vectors), BATCH):
            numbers = range(low, min(low + BATCH, len(vectors)))
            self._collection.add(
                ids=[str(number) for number in numbers],
                embeddings=vectors[low : low + BATCH],
                metadatas=[{"n": number} for number in numbers],
            )

    def search(self, query: Any, below: int | None, effort: int) -> Sequence[int]:
        if effort != self._effort:
            self._collection.modify(configuration={"hnsw": {"ef_search": effort}})
            self._effort = effort
        found = self._collection.query(
            query_embeddings=[query],
            n_results=neighbours.K,
            where=None if below is None else {"n": {"$lt": below}},
            include=[],
        )
        return [int(one) for one in found["ids"][0]]


if __name__ == "__main__":
    neighbours.serve(Chroma)
