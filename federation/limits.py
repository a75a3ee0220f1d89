"""Every maximum, with its unit and the reason for it. Nothing from outside is read without one."""

MAX_ENTRY_BYTES = (
    4 << 20
)  # the largest public CSAF document we know is 2.6 MB as published; ours adds salts and digests
MAX_PAGE_BYTES = 1 << 20  # measured: pages of 8-32 MB are up to three times slower than pages of 1 MB
MAX_PAGE_ITEMS = 512  # keeps one page's verification under a second
MAX_FIELDS = 1 << 17  # of one protobuf message, all depths: a field of two bytes takes up to a hundred once it is read
UNCOUNTED_BYTES = 64 << 10  # no message of this size can hold so many fields that their memory matters
MAX_EVIDENCE_BYTES = 256 << 10  # of one entry that cannot be read: enough to see what was done
MAX_PENDING_ERASURES = 8 * MAX_PAGE_ITEMS  # they are kept as one value; a withdrawal follows what it erased soon
MAX_MESSAGE_BYTES = (
    MAX_ENTRY_BYTES + MAX_PAGE_BYTES
)  # one gRPC message: a page may exceed its size by one entry at most
MAX_CONTROL_BYTES = (
    256 << 10
)  # agreements, cards, withdrawals: control traffic passes without an agreement, so it is small
MAX_DOCUMENT_BYTES = 3 << 20  # a CSAF file as imported
MAX_DISCLOSURES = 20_000  # the largest public document has 6,000 elements
MAX_PAGE_DISCLOSURES = 4 * MAX_DISCLOSURES  # honest ones are as long as their salts, so a page holds fewer
MAX_JSON_DEPTH = 96  # 30 nested product branches are 69 levels; Python's parser recurses without a bound of its own
MAX_NOTE_BYTES = 16 << 10  # a checkpoint is under 1 KB; a few cosignatures fit
MAX_NOTE_SIGNATURES = 16  # C2SP signed-note asks verifiers to bound this
MAX_CARD_BYTES = 64 << 10
MAX_PROOF_BYTES = 16 << 20  # the largest entry and a long ledger record, in base64url twice over
MAX_ROOT_KEYS = 9  # nobody compares more by voice
MAX_PARTIES = 64  # a multilateral agreement; cases of more use a hub
MAX_CLOCK_SKEW_S = 300  # an `iat` from a peer may lead our clock by this much
SALT_BYTES = 16  # RFC 9901 9.3: 128 bits
NONCE_BYTES = 16  # hides an erased entry behind its leaf hash
HASH_BYTES = 32
MAX_JSON_VALUES = 1 << 17  # in what one entry delivers: `[],` takes twenty times its size; a document has 30 in a KB
MAX_NUMBER_CHARS = 64  # far over any double or 64-bit integer, far under the 4,300 digits at which int() raises
MAX_NAME_CHARS = 255  # a tracking id as a file system would take it
MAX_REVISION = 999_999_999  # nine digits, as in `jti`
MAX_REVISIONS = 1_000  # of one advisory, in one recall
MAX_SEEN = 256  # cores in one statement: with the longest names it stays under MAX_CONTROL_BYTES
MAX_STATEMENT_TEXT = 20_000  # characters; whoever has more to say sends an advisory
