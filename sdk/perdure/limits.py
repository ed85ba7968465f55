"""Every limit of Perdure, in one place, each with its unit last in the name and its reason.

The same values hold in development and production. `Limits` is read by clients, the router and
workers; docs/LIMITS.md lists it, and a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True)
class Limits:
    """Bounds of one cluster. Sizes in bytes, times in seconds (`_s`), counts without a unit."""

    # --- names and values
    name_bytes_max: int = 512
    """Longest object name in UTF-8; names are stored with each object and in the namespace's listing."""
    namespace_chars_max: int = 64
    """Longest namespace: it is part of every stored key, and keys the hash of names (64 bytes at most)."""
    key_bytes_max: int = 2 * KIB
    """Longest storage key in UTF-8: keys stand in every batch, log record and index block beside values."""
    request_id_bytes_max: int = 512
    """Longest request id that a caller chooses, in UTF-8; only its hash is sent and stored."""
    value_bytes_max: int = 2 * MIB
    """Largest encoded storage value: one turn writes it whole, and every change writes it again."""
    multi_keys_max: int = 128
    """Keys of one get_many, put_many or delete_many call (Cloudflare's number; keeps a turn short)."""
    list_entries_max: int = 10_000
    """Entries that one `storage.list` or `client.list` gives: one turn reads them; page with a cursor."""
    containers_max: int = 100_000
    """Lists and maps in one decoded message: 5 MB of empty maps would become 350 MB of memory."""
    nested_tuples_max: int = 32
    """Tuples and sets inside each other in one value; 200 would overflow the C stack of the reader."""

    # --- messages
    message_bytes_max: int = 32 * MIB
    """Largest encoded call or reply: refused at the sender, since ZeroMQ cuts off who sends more."""
    batch_bytes_max: int = 1 * MIB
    """A tick's calls are cut into batches of about this size, so that one never blocks a link for long."""
    batch_calls_max: int = 4_096
    """Calls of one batch, so that decoding one holds a loop up for milliseconds; a longer one is refused."""
    wire_overhead_bytes: int = 64 * KIB
    """What frames may weigh beyond `message_bytes_max` before ZeroMQ itself cuts the peer off."""

    # --- queues
    client_queue_bytes_max: int = 64 * MIB
    """Calls that a client holds for workers that do not take them; beyond it `Overloaded` at once."""
    router_queue_bytes_max: int = 64 * MIB
    """Bytes that the router holds for one worker: a stopped worker must not fill its memory."""
    reply_queue_bytes_max: int = 64 * MIB
    """Replies held for one peer that does not read; beyond it they are dropped and counted."""
    mailbox_calls_max: int = 1_000
    """Calls waiting at one object: a longer queue only makes everybody late, so `Overloaded` at once."""
    mailbox_bytes_max: int = 32 * MIB
    """Bytes of arguments waiting at one object, however few calls they are."""
    mailbox_age_max_s: float = 60.0
    """Oldest call waiting at one object; beyond it new ones are refused (its turns do not keep up)."""
    uncommitted_bytes_max: int = 64 * MIB
    """Writes waiting for the disk in one worker; beyond it new turns wait."""
    commit_group_bytes_max: int = 1 * MIB
    """A commit group is closed at this size: LevelDB itself stops merging writes there."""
    peers_max: int = 10_000
    """Peers of one door: an ipc door aborts its process when file descriptors run out."""
    reply_window_calls_max: int = 2_048
    """Recorded replies of one client's open calls to one object, twice what fits into a mailbox; then the
    oldest are dropped, and retries of what is older are refused."""
    reply_window_bytes_max: int = 256 * KIB
    """Bytes of those replies, which each commit of the object writes again; larger ones are not kept."""
    reply_windows_max: int = 6_000
    """Clients' windows in a worker's memory that nothing needs: the others are read again when needed."""
    clients_known_max: int = 10_000
    """Clients that a worker knows the open calls of; a forgotten one tells them again with its next call."""
    raw_calls_in_flight_max: int = 100_000
    """Single calls that the router remembers so that it can answer for a worker that dies."""
    stragglers_max: int = 64
    """Old open calls that a client lists with each message, so that workers can forget those after them."""
    chain_depth_max: int = 32
    """Objects that wait for each other in one chain of calls: a longer one is a recursion gone wrong."""

    client_retries_per_second_max: int = 5_000
    """Calls that a client sends again in a second; what is more waits longer, so that a cluster that lost a
    worker is not hit again by everybody at once."""

    # --- times
    call_timeout_s: float = 30.0
    """Deadline of a call that names none: as long as people and proxies wait."""
    call_timeout_max_s: float = 3_600.0
    """Longest deadline that a caller may ask for: work that takes longer belongs in the background."""
    turn_max_s: float = 60.0
    """A suspended turn is cancelled after this, whatever its caller's deadline; its writes are discarded."""
    answer_grace_s: float = 0.5
    """How long a client waits past a deadline for the worker's own word before it says OutcomeUnknown."""
    idle_evict_s: float = 10.0
    """An object without events for this long leaves memory for others; its next call loads it again."""
    start_backoff_max_s: float = 5.0
    """Longest pause before an object whose start failed is tried again, so that it heals by itself."""
    heartbeat_interval_s: float = 0.5
    """A worker's or router's loop reports to the supervisor this often: five times until it is lost."""
    heartbeat_lost_s: float = 2.5
    """Without a heartbeat for this long a process is killed and replaced (within 5 s in all)."""
    client_ping_s: float = 1.0
    """A client asks the router for news of the slot map this often, should a pushed map be lost."""
    client_forgotten_s: float = 10.0
    """The router forgets a client that was silent for ten pings, and sends it no maps any more."""
    drain_timeout_s: float = 10.0
    """Ordered shutdown: how long running turns may take; what stops a service waits 10 s or more."""
    goodbye_timeout_s: float = 1.0
    """Ordered shutdown: how long peers may take to acknowledge a closing door; milliseconds are usual."""
    reply_ttl_s: float = 7_200.0
    """Recorded replies are kept this long at least: twice the longest deadline until which clients retry."""
    reply_named_ttl_s: float = 86_400.0
    """The same for callers that may come back, with a request id of their own or as raw clients: a day."""

    # --- life cycle
    live_objects_max: int = 200_000
    """Objects in one worker's memory, which they must fit into; the least recently used leave."""
    read_budget_messages: int = 256
    """Messages read from one socket before other work gets its turn."""
    read_budget_s: float = 0.05
    """The same in time: batches of thousands of calls must not keep the loop from its heartbeat."""
    start_batch_turns: int = 2_048
    """Turns started in one loop tick before replies and commits are looked after."""
    slots: int = 1_024
    """Hash buckets of ids, fixed when a data directory is created: many more than workers, few to list."""
