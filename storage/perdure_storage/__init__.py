"""Storage of one worker: bytes on disk, engines, the commit thread and the objects' key-value API.

    keys            where a row stands: regions, object rows, the names index (pure)
    records         what a row holds: format byte, checksum, payload (pure)
    errors          what can be wrong with a shard, and what its operator can do
    endings         which exit code an error of the store means (pure)
    engine          the interface of a store; `leveldb` and `memory` implement it
    commit          group commit: the one thread that writes
    key_values      get, put, list ... over layers of rows, which the next three share
    object_storage  `self.storage` of one live object
    transaction     `storage.transaction()`
    snapshot        `storage.snapshot()`
    shard           provisioning and opening of a worker's directory
    sequence_mirror what a lost end of a log is noticed by
    reshard         moving rows when the number of workers changes (offline)
    verify          looking at every row (offline); log_scan: where a log is damaged

Imports nothing of ours but `perdure` (the sdk). docs/DATA.md shows the bytes.
"""
