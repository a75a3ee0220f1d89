"""Every maximum of the network side, with its unit and reason. Sizes of messages are in `federation.limits`."""

from federation.limits import MAX_PAGE_ITEMS

CALLS_PER_SECOND = 50  # a peer that catches up over pages of 1 MiB makes about 40 calls a second at most
CALL_BURST = 100  # calls that a quiet peer may make at once, such as after both were down
CALLS_AT_ONCE = 3  # by one peer: an honest one syncs, notifies, and may repeat a call that timed out
WORKER_THREADS = 8  # blocking work; one peer can hold fewer than half of them
IDENTIFY_THREADS = 2  # who calls is found out apart, so that busy workers keep nobody waiting for that
LOOKS_PER_SECOND = 20  # at who may connect, for all connections; a look takes 5 ms, and strangers connect as well
REQUEST_TIMEOUT_S = 15.0  # for the one request of a call: 256 KiB over a line of 1 Mbit/s take 2 s
RPCS_AT_ONCE = 256  # all peers together; beyond it gRPC itself answers RESOURCE_EXHAUSTED
AUDIT_INTERVAL_S = (
    60  # one audit row for the same refusal of the same peer in that time: a flood must not fill the disk
)

MAX_STREAMS = 16  # of one connection: 20,000 rapid resets then cost a quarter of the processor time
MAX_METADATA_BYTES = 8 << 10  # ours is under 1 KB
HANDSHAKE_TIMEOUT_MS = 5_000  # a TLS handshake between continents takes under a second; a silent socket is closed
IDLE_CONNECTION_MS = 300_000  # a sync opens its own connection, so an idle one is left over
MAX_CONNECTION_MS = 600_000  # ends headers that never end and answers that nobody takes; a sync goes on over the next
CONNECTION_GRACE_MS = 75_000  # for the calls that are under way then: longer than any of them may take
KEEPALIVE_MS = 60_000  # finds a dead connection while a call is open
KEEPALIVE_TIMEOUT_MS = 20_000
LEAST_PING_GAP_MS = 30_000  # a peer that pings more often is cut off
PING_STRIKES = 2

MAX_ANSWER_FIELDS = 6 * MAX_PAGE_ITEMS  # an item of a page is a field that holds up to four
CONNECT_TIMEOUT_MS = 5_000
PROBE_TIMEOUT_S = 2.0  # only to tell a refused key from a dead line, after a call has failed
PULL_TIMEOUT_S = 60.0  # 5 MiB over a line of 1 Mbit/s take 42 s
CALL_TIMEOUT_S = 15.0  # everything else is small
