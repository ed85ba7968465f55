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
    listing_rows_max: int = 16_384
    """Rows that a worker reads for one answer to `client.list` (20 to 60 ms); then the page ends early."""
    listing_bytes_max: int = 8 * MIB
    """The same in bytes, so that objects with large values do not hold the worker's loop up either."""
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

    # --- HTTP
    http_headers_max: int = 256
    """Headers of one request or response: more of them are an attack or a mistake."""
    http_headers_bytes_max: int = 64 * KIB
    """Their names and values together, as servers and proxies in front bound them."""
    http_body_inline_bytes: int = 256 * KIB
    """Up to this size a request's body travels with its call; the rest is pulled in parts of this size."""
    http_body_bytes_max: int = 100 * MIB
    """Largest body of a request, and of a streamed reply that is read as a whole: what a handler that asks
    for all of it holds in memory."""
    http_part_again_s: float = 1.0
    """A part of a body that was asked for and does not come is asked for again: a message may be lost."""
    http_part_wait_s: float = 30.0
    """A body of which nothing came for this long has lost its sender: it holds its object's turn."""

    websocket_client_message_bytes_max: int = 1 * MIB
    """Largest message of a WebSocket that an object opens itself, either way."""
    websocket_client_timeout_s: float = 10.0
    """How long opening and closing such a socket and sending a message may take: the turn waits for it."""

    # --- queues
    client_queue_bytes_max: int = 64 * MIB
    """Calls that a client holds for workers that do not take them; beyond it `Overloaded` at once."""
    router_queue_bytes_max: int = 64 * MIB
    """Bytes that the router holds for one worker: a stopped worker must not fill its memory."""
    pipe_messages_max: int = 128
    """Messages that ZeroMQ takes for one peer, and that a door reads ahead from one; those of 32 KiB and more
    are counted in bytes besides when they are sent."""
    pipe_messages_received_max: int = 1_000
    """Messages read ahead from a door: what a worker said before its end is then here, and not lost."""
    large_message_bytes: int = 32 * KIB
    """From this size on a message on its way to a peer is counted in bytes, and sent without a copy."""
    pipe_bytes_max: int = 4 * MIB
    """Bytes of large messages that ZeroMQ takes for one peer, and that a worker's router may have unread; one
    that is larger than this goes alone."""
    pipes_bytes_max: int = 256 * MIB
    """The same for all peers of one socket: what ZeroMQ has taken cannot be taken back from it."""
    reply_queue_bytes_max: int = 64 * MIB
    """Replies held for one peer that does not read: at half of it a worker refuses its calls before they
    run (`Overloaded`, which clients repeat by themselves), beyond it replies are dropped and counted."""
    reply_queues_bytes_max: int = 256 * MIB
    """The same for all peers; beyond it whoever holds most loses its latest ones."""
    mailbox_calls_max: int = 1_000
    """Calls waiting at one object: a longer queue only makes everybody late, so `Overloaded` at once."""
    mailbox_bytes_max: int = 32 * MIB
    """Bytes of arguments waiting at one object, however few calls they are."""
    mailbox_age_max_s: float = 60.0
    """Oldest call waiting at one object; beyond it new ones are refused (its turns do not keep up)."""
    waiting_items_max: int = 16_384
    """Calls that a worker has read and not looked at yet; beyond it messages stay in the sockets."""
    retry_after_min_s: float = 0.05
    """Shortest wait that `Overloaded` asks for: repeating sooner would cost more than the turn itself."""
    retry_after_max_s: float = 10.0
    """Longest wait that `Overloaded` asks for: estimates of longer queues are guesses, so ask again."""
    uncommitted_bytes_max: int = 64 * MIB
    """Writes waiting for the disk in one worker; beyond it new turns wait."""
    commit_group_bytes_max: int = 1 * MIB
    """A commit group is closed at this size: LevelDB itself stops merging writes there."""
    commit_gather_s: float = 0.00025
    """What was written while the disk was busy waits so long for the calls that the answers bring: about what
    a caller on the same machine takes to call again."""
    commit_gather_bytes: int = 2 * KIB
    """More than this does not wait: about 30 small turns, which share the costs of a commit well enough."""
    peers_max: int = 10_000
    """Peers that a worker remembers and clients that get news of the map: more are served, and forgotten.
    It does not bound connections; the limit of file descriptors does, at which an ipc door aborts."""
    reply_window_calls_max: int = 2_048
    """Recorded replies of one client's open calls to one object, twice what fits into a mailbox; then the
    oldest are dropped, and retries of what is older are refused."""
    reply_window_bytes_max: int = 256 * KIB
    """Bytes of those replies, which each commit of the object writes again; larger ones are not kept."""
    reply_windows_max: int = 6_000
    """Clients' windows in a worker's memory that nothing needs: the others are read again when needed."""
    reply_log_rows: int = 1_024
    """Commit groups whose recorded replies stay in one row each: a second's at a thousand commits a second.
    Replies are not longer on their way; of older ones, what may still be asked for is written again."""
    reply_log_bytes_max: int = 16 * MIB
    """The same in bytes: a start of a worker reads all of them."""
    clients_known_max: int = 10_000
    """Clients that a worker knows the open calls of; a forgotten one tells them again with its next call."""
    raw_calls_in_flight_max: int = 100_000
    """Single calls that the router remembers so that it can answer for a worker that dies."""
    stream_window_items: int = 256
    """Items that a stream's producer may be ahead of its reader: two round trips' worth at full speed."""
    stream_window_bytes: int = 1 * MIB
    """The same in encoded bytes; one item may be larger, and then travels alone."""
    stub_classes_max: int = 1_000
    """Classes of objects whose stubs share what a client has made for them; beyond it, it is made anew."""
    stub_methods_max: int = 1_000
    """Methods of one class that its stubs find at once; those beyond it take about 2 µs more."""
    stragglers_max: int = 64
    """Old open calls that a client lists with each message, so that workers can forget those after them."""
    sends_per_turn_max: int = 1_000
    """Durable sends between two commit points: each is four writes of a batch, all at once."""
    send_bytes_max: int = 2 * MIB
    """Largest arguments of a durable send, encoded: it is stored like a value, and deleted again."""
    outbox_messages_max: int = 10_000
    """Durable sends of one object that have not ended, dead ones included; beyond it `Overloaded`."""
    outbox_bytes_max: int = 64 * MIB
    """The same in bytes: an object must not fill the disk with what nobody takes."""
    sends_in_flight_max: int = 1_024
    """Durable sends of one worker that are on their way: enough to keep several other workers busy."""
    sends_per_target_max: int = 32
    """Of these to one object: a slow one must not hold up the others, nor fill its own mailbox."""
    send_pairs_max: int = 10_000
    """Pairs of sender and target that an outbox keeps in memory; of others it knows that they are on disk."""
    sends_loaded_max: int = 20_000
    """Durable sends in one worker's memory; the rest stays on disk until there is room."""
    sends_loaded_bytes_max: int = 64 * MIB
    """The same in bytes, since one of them may be as large as thousands of others."""
    sends_per_pair_loaded_max: int = 64
    """Of these of one pair: they go one after the other, so that more would only lie there."""
    sends_unconfirmed_max: int = 32
    """Ended messages of one pair whose removal is not durable yet: their target must keep its records."""
    send_attempts_max: int = 8
    """Deliveries that fail by the target's own doing until a durable send is dead: about half a minute."""
    send_error_chars_max: int = 500
    """What is kept of the error that made a durable send fail."""
    chain_depth_max: int = 32
    """Objects that wait for each other in one chain of calls: a longer one is a recursion gone wrong."""

    client_retries_per_second_max: int = 5_000
    """Calls that a client sends again in a second; what is more waits longer, so that a cluster that lost a
    worker is not hit again by everybody at once."""

    # --- sockets of objects
    socket_tags_max: int = 10
    """Tags of one WebSocket (Cloudflare's number): they are looked up, and written with each change of it."""
    socket_tag_chars_max: int = 256
    """Longest tag of a WebSocket: tags are held in memory while an object looks at its sockets."""
    socket_attachment_bytes_max: int = 16 * KIB
    """Largest encoded attachment of a WebSocket; ten thousand of an object are read in one go."""
    socket_protocol_chars_max: int = 256
    """Longest subprotocol that an object may choose; it travels in a header."""
    sockets_per_object_max: int = 10_000
    """WebSockets of one object: all are in memory while one of them is looked at."""
    socket_frame_bytes_max: int = 1 * MIB
    """Largest message of a WebSocket, in and out: it is held by gateway, worker and log at the same time."""
    socket_auto_response_chars_max: int = 2_048
    """Longest text of an automatic response, and of what it answers (Cloudflare's number)."""
    frames_record_entries_max: int = 4_096
    """Different frames in one record of the log: more are cut, so that no message has too many lists."""
    frames_unacked_bytes_max: int = 8 * MIB
    """Frames that a worker sends a gateway beyond what that has taken; the rest stays on disk meanwhile."""
    frames_unacked_max: int = 8_192
    """The same in records, of which many are small; acknowledgements come after 64 of them or 20 ms."""
    frames_log_bytes_max: int = 512 * MIB
    """Frames that a gateway which is heard from does not take; beyond it, it is given up as lost."""
    gateways_max: int = 256
    """Gateways that a worker knows, lost ones included: a few, and one more with each restart of one."""
    gateway_closes_max: int = 512
    """Sockets of a lost gateway that are closed at a time, so that others' calls keep flowing."""

    # --- times
    call_timeout_s: float = 30.0
    """Deadline of a call that names none: as long as people and proxies wait."""
    call_timeout_max_s: float = 3_600.0
    """Longest deadline that a caller may ask for: work that takes longer belongs in the background."""
    turn_max_s: float = 60.0
    """A suspended turn is cancelled after this, or at its call's deadline if that is later; its writes go."""
    answer_grace_s: float = 0.5
    """How long a client waits past a deadline for the worker's own word before it says OutcomeUnknown."""
    idle_evict_s: float = 10.0
    """An object without events for this long leaves memory for others; its next call loads it again."""
    start_backoff_max_s: float = 5.0
    """Longest pause before an object whose start failed is tried again, so that it heals by itself."""
    send_pause_first_s: float = 0.2
    """Pause of a pair after its first failed delivery; it doubles with each further one."""
    send_pause_max_s: float = 15.0
    """Longest such pause: a target that is back is found within this time."""
    outbox_count_every_s: float = 1.0
    """How often a full outbox is counted again before further sends of its object are refused."""
    heartbeat_interval_s: float = 0.5
    """A worker's or router's loop reports to the supervisor this often: five times until it is lost."""
    heartbeat_lost_s: float = 2.5
    """Without a heartbeat for this long a process is killed and replaced (within 5 s in all)."""
    client_ping_s: float = 1.0
    """A client asks the router for news of the slot map this often, should a pushed map be lost."""
    client_forgotten_s: float = 10.0
    """The router forgets a client that was silent for ten pings, and sends it no maps any more."""
    stream_idle_max_s: float = 30.0
    """A full window nobody reads from for this long ends the stream: it holds its object's turn."""
    stream_drain_s: float = 3.0
    """Ordered shutdown: how long open streams go on; then their producers are stopped, and clean up."""
    drain_timeout_s: float = 10.0
    """Ordered shutdown: how long running turns may take; what stops a service waits 10 s or more."""
    goodbye_timeout_s: float = 1.0
    """Ordered shutdown: how long peers may take to acknowledge a closing door; milliseconds are usual."""
    gateway_lost_s: float = 5.0
    """A gateway that says nothing to a worker for this long is lost, and its sockets are closed (1006)."""
    gateway_lost_kept_s: float = 86_400.0
    """A lost gateway is remembered for a day, to be told of it should it only have been asleep."""
    reply_ttl_s: float = 7_200.0
    """Recorded replies are kept this long at least: twice the longest deadline until which clients retry."""
    reply_named_ttl_s: float = 86_400.0
    """The same for callers that may come back, with a request id of their own or as raw clients: a day."""
    reply_send_ttl_s: float = 604_800.0
    """The same for durable sends, whose sender may be down for days and not know what arrived: a week."""

    start_timeout_s: float = 30.0
    """From the start of a process until it is ready; replaying a shard's log takes seconds at worst."""
    stop_margin_s: float = 2.0
    """Added to what an ordered stop of a process may take, for the last commit and the exit itself."""
    kill_timeout_s: float = 5.0
    """From SIGKILL until a process is gone; one that is stuck in the kernel for longer is left behind."""
    served_min_s: float = 1.0
    """A process that fails by itself earlier than this after it became ready counts as not started."""
    strikes_forgotten_s: float = 60.0
    """Service for this long makes up for all earlier failures of a process, and restarts cost no pause."""
    restart_pause_max_s: float = 30.0
    """Longest pause before a process that fails again and again is started: 0, 0.1, 1, 5, then this."""
    write_failures_max: int = 4
    """Failed writes of a worker in a row, not for want of space, after which its shard is parked: the disk is
    broken, and each restart reads what may exist in the page cache only."""
    disk_free_min_bytes: int = 256 * MIB
    """Less free space than this is warned of: a start replays and compacts up to some 10 MiB per worker."""
    disk_free_min_share: float = 0.02
    """The same as a share of the file system, whichever is more: large disks also fill up faster."""
    disk_look_s: float = 30.0
    """The supervisor looks at the free space this often."""

    # --- sockets of clients, in the gateway
    socket_queue_bytes_max: int = 1 * MIB
    """Messages that wait for one client that does not read; beyond it the client is closed (1013)."""
    socket_queue_frames_max: int = 1_024
    """The same as a number of messages: small ones cost memory of their own, and none should be too old."""
    socket_frame_wait_s: float = 30.0
    """How long a client's message waits for an object that is not available; then the client is closed."""
    socket_ping_s: float = 20.0
    """The gateway's server pings clients this often: proxies cut idle connections, and clients vanish."""
    socket_ping_timeout_s: float = 20.0
    """A client that has not answered by then is gone, however its connection looks."""
    socket_close_wait_s: float = 10.0
    """How long a client may take to read its close, and what is before it, until the connection is cut."""
    socket_ack_s: float = 0.02
    """Within this time a worker is told that its frames were taken, so that it can delete them."""
    socket_ack_records: int = 64
    """At this number of records it is told at once: what a worker keeps stays small under load too."""
    socket_keepalive_s: float = 1.0
    """A gateway gives workers with sockets a sign of life this often: five times until it counts as dead."""
    socket_endings_in_flight_max: int = 256
    """Ends of sockets that are told to objects at a time: fewer than one object's mailbox takes."""
    socket_writes_per_tick: int = 256
    """Clients that are written to in one loop tick, so that a broadcast to thousands holds nobody up."""
    sockets_per_gateway_max: int = 20_000
    """WebSockets of one gateway, whatever server it stands in: 15 KB each, and a descriptor."""
    sockets_per_address_max: int = 1_024
    """The same from one address, loopback exempt: one client must not take all, but many may share one."""

    # --- the gateway's connections
    http_connections_max: int = 20_000
    """Connections of one gateway, sockets included: 5 KB each while idle, and a descriptor each."""
    http_connections_per_ip_max: int = 1_024
    """The same from one address: one client must not take all; loopback and trusted proxies are exempt."""
    http_spare_descriptors: int = 256
    """Descriptors that connections leave free, whatever `http_connections_max` says: an ipc socket of ZeroMQ
    aborts its process without one."""
    http_head_s: float = 10.0
    """From a connection, or the first byte of a further request, until its headers are complete: slowloris
    attacks hold connections by sending them slowly."""
    http_keep_alive_s: float = 60.0
    """How long a connection may lie idle between two requests; browsers and proxies reuse it until then."""
    http_body_idle_s: float = 10.0
    """A request's body may pause for this long while it is waited for."""
    http_body_rate_bytes: int = 4 * KIB
    """A request's body comes with this many bytes per second on average, after `http_body_idle_s` of grace:
    less is an attack, or a network over which nothing works."""
    http_write_stall_s: float = 30.0
    """A client that takes nothing of a response for this long is cut off: its object may wait for it."""
    http_linger_s: float = 2.0
    """How long the rest of a request is read and thrown away after an early answer, so that it arrives."""
    http_linger_bytes_max: int = 1 * MIB
    """The same in bytes: what is on its way when an answer leaves, the buffers of both sides, is less."""
    http_look_s: float = 0.5
    """Deadlines of connections are looked at this often, all at once: 10,000 of them in 3 ms."""
    http_json_bytes_max: int = 8 * MIB
    """Body of a call of a `@public` method: it is decoded as a whole, which takes ten times its memory."""
    http_tokens_max: int = 10_000
    """Tokens of one file: they are held in memory and read again as a whole when the file has changed."""
    http_token_chars_min: int = 16
    """Shortest token that is taken from a file: a shorter one could be guessed by trying."""

    # --- misbehaviour
    turn_blocked_s: float = 0.1
    """A step of a turn that keeps the worker's loop for longer is logged: all others wait meanwhile."""
    quarantine_deaths: int = 3
    """Deaths of its worker in a row after which an object is quarantined: two may be bad luck."""
    quarantine_s: float = 600.0
    """How long a quarantined object is refused before it is tried again: one death costs others a second."""
    suspect_forgotten_s: float = 60.0
    """A turn that ends well this long after a restart clears the object; sooner it proves too little."""
    suspects_max: int = 32
    """Objects of one worker whose deaths are counted; more of them at once are no single object's fault."""
    blocking_threads_max: int = 32
    """`@blocking` methods that one worker runs at once; more of them wait until a thread is free."""

    # --- life cycle
    evictions_max: int = 2_048
    """Idle objects that are looked at in one go, so that a loop never stands still for long."""
    eviction_looks_max: int = 32
    """Least recently used objects that are looked at in order to make room for a new one."""
    live_objects_max: int = 200_000
    """Objects in one worker's memory, which they must fit into; the least recently used leave."""
    read_budget_messages: int = 256
    """Messages read from one socket before other work gets its turn."""
    read_budget_s: float = 0.05
    """The same in time: batches of thousands of calls must not keep the loop from its heartbeat."""
    start_batch_turns: int = 2_048
    """Turns started in one loop tick before replies and commits are looked after."""
    alarms_max: int = 10_000
    """Alarms of one object, dead ones included: `list_alarms` gives all of them in one turn."""
    alarms_running_max: int = 4_096
    """Objects of one worker with an alarm that runs or waits for its turn; others' stay on disk meanwhile."""
    alarms_waiting_max: int = 16_384
    """Due alarms that wait behind another one of their object; beyond it all alarms of the worker wait."""
    alarm_retries_max: int = 6
    """Retries of an alarm whose handler fails, over two minutes; then only people or code can help."""
    alarm_retry_s: float = 2.0
    """Pause before the first retry, doubled with each further one, plus up to a quarter at random."""
    alarm_error_chars: int = 500
    """Text that is kept of the error of an alarm's last run, to show why it is retried or dead."""
    due_batch_rows: int = 64
    """Alarms and the like that start in one loop tick: ten thousand at once hold up nobody's calls."""
    due_page_rows: int = 1_024
    """Rows of the due index read at once; a start reads one page, however many alarms are pending."""
    due_rows_max: int = 4_096
    """Rows of the due index in memory, the soonest ones; the rest stays on disk until it is near."""
    start_batch_s: float = 0.02
    """The same in time, as turns are as long as their methods: heartbeats and other clients come between."""
    log_queue_bytes_max: int = 1 * MIB
    """Log lines of one process that wait for their reader; beyond it lines are dropped and counted."""
    log_repeats_max: int = 50
    """Log lines of the same text in `log_repeats_s`; the rest is counted, and the number is logged."""
    log_repeats_s: float = 5.0
    """The period of `log_repeats_max`; at its end the log says how many were left out."""
    log_texts_max: int = 1_024
    """Different texts that are counted so at a time."""
    log_flush_s: float = 0.5
    """How long a process that ends waits for a reader of its last log lines."""
    slots: int = 1_024
    """Hash buckets of ids, fixed when a data directory is created: many more than workers, few to list."""
