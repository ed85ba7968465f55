"""Storage of one worker: bytes on disk, engines, the commit thread and the objects' key-value API.

    keys            where a row stands: regions, object rows, the names index (pure)
    records         what a row holds: format byte, checksum, payload (pure)
    errors          what can be wrong with a shard, and what its operator can do
    engine          the interface of a store; `leveldb` and `memory` implement it
    commit          group commit: the one thread that writes
    object_storage  `self.storage` of one live object
    shard           provisioning and opening of a worker's directory
    reshard         moving rows when the number of workers changes (offline)

Imports nothing of ours but `perdure` (the sdk). docs/DATA.md shows the bytes.
"""
