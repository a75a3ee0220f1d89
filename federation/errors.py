"""Every error that Apostille raises on purpose.

    ApostilleError
    ├── LocalError                our side: a person's mistake or this node's own state
    │   ├── UsageError            what was asked for cannot be done as asked: says what, where, what next
    │   ├── NotFoundError         no such advisory, peer, agreement, entry
    │   ├── ConflictError         state moved under us: nothing was changed, try again
    │   ├── LockedError           a passphrase is missing or wrong
    │   ├── NotAllowedError       the person who asks lacks the role, or has to be another person
    │   ├── AwaitsSecondError     the act is noted and waits for a second person
    │   ├── UnconfirmedError      a feed signs nothing until its receiver has shown our newest head (I16)
    │   ├── HeldError             policy or the guard holds a release back: a person must look
    │   ├── DiskError             the disk is full, or refuses to read or write
    │   ├── DamagedError          what was read back is not what was stored
    │   └── PolicyError           a rule set is malformed: refused before it can decide anything
    └── RemoteError               bytes or behaviour from outside, each with a `code` that never changes
        ├── MalformedError        MALFORMED          not the format it claims to be
        ├── TooLargeError         TOO_LARGE          over a limit of `federation.limits`
        │   └── OverQuotaError    OVER_QUOTA         more calls than a peer may make
        ├── SignatureError        BAD_SIGNATURE      a signature or digest does not hold
        ├── KeyringError          UNKNOWN_KEY        no such key in that role, or not valid at that time
        ├── UnknownOriginError    UNKNOWN_ORIGIN     a core whose origin has no enrolled card
        ├── HandlingError         BAD_HANDLING       handling missing, unknown or malformed
        ├── TermsError            BAD_TERMS          terms wider than handling or agreement, or for another node
        ├── EquivocationError     EQUIVOCATION       two cores under one revision
        ├── CardError             BAD_CARD           a card that does not follow from the one that is known
        ├── GrantError            BAD_GRANT          the grant beside a relayed core does not cover it
        ├── RecalledError         RECALLED           the origin has recalled this revision
        ├── VersionError          VERSION            no protocol version that both sides speak
        ├── NotAdmittedError      NOT_ADMITTED       no agreement in force covers this, or local law forbids it
        ├── FeedError             the receiver's checks of a page
        │   ├── WrongFeedError    WRONG_FEED         another origin line or epoch than asked for
        │   ├── ReorderedError    REORDERED
        │   ├── RepeatedError     REPEATED
        │   ├── GapError          GAP
        │   ├── BadPageError      BAD_PAGE           the root does not follow from the items
        │   ├── ErasureError      BAD_ERASURE        a hash-only item whose eraser does not name it
        │   ├── StaleError        STALE              the newest head is older than two polls
        │   ├── EpochError        NEW_EPOCH          the sender has opened an epoch that nobody here has accepted
        │   └── FeedFrozenError   ingest stops until two people heal it
        │       ├── RollbackError       ROLLBACK
        │       ├── ForkError           FORK
        │       └── SuspectedForkError  SUSPECTED_FORK
        ├── UnreachableError      UNREACHABLE        no answer: partition, timeout
        │   └── TlsRefusedError   UNREACHABLE        it answers on the network, and the TLS handshake fails
        └── DeniedError           DENIED             the peer answered, and its answer was no

Error texts never carry payloads, secrets or personal data (I17): they name places and rules.
"""

from typing import ClassVar


class ApostilleError(Exception):
    """The root of the tree; never raised itself."""


class LocalError(ApostilleError):
    """This side: a person's mistake, or this node's own state."""


class UsageError(LocalError):
    """What was asked for cannot be done as asked. The text says what, where, and what to do next."""


class NotFoundError(LocalError):
    """Nothing here has that name."""


class ConflictError(LocalError):
    """State moved between reading and writing. Nothing was changed; trying again is safe."""


class LockedError(LocalError):
    """Private keys cannot be opened: the passphrase is missing or wrong."""


class NotAllowedError(LocalError):
    """Whoever asks lacks the role for it, or is the person who already did the other half of it."""


class AwaitsSecondError(LocalError):
    """Nothing has changed yet: a second person has to approve. Attributes: `number`, that of the request."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class UnconfirmedError(LocalError):
    """A feed signs nothing until its receiver has shown the newest head that it holds, and it is one of ours (I16)."""


class HeldError(LocalError):
    """A release is held back, and a person must look at why.

    Attributes: `faults`, what the policy engine could not evaluate on the way.
    """

    def __init__(self, text: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.faults = faults


class DiskError(LocalError):
    """The disk is full, or refuses to read or write."""


class DamagedError(LocalError):
    """What was read back is not what was stored, though the database itself did not notice. Says what to do next."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: the database is damaged; see: apostille doctor, apostille ledger verify; stop the node and"
            " restore a backup"
        )


class PolicyError(LocalError):
    """A rule set or label file is malformed; it decides nothing until it is mended."""


class RemoteError(ApostilleError):
    """Bytes or behaviour from outside. `code` is part of the protocol; the text stays on this side."""

    code: ClassVar[str] = "REFUSED"


class MalformedError(RemoteError):
    """Bytes that are not the format they claim to be."""

    code = "MALFORMED"


class TooLargeError(RemoteError):
    """Something from outside is over a limit."""

    code = "TOO_LARGE"


class OverQuotaError(TooLargeError):
    """More calls, or more at once, than one peer may make."""

    code = "OVER_QUOTA"


class SignatureError(RemoteError):
    """A signature or a digest does not hold."""

    code = "BAD_SIGNATURE"


class KeyringError(RemoteError):
    """No such key in that role, or not valid at that time."""

    code = "UNKNOWN_KEY"


class UnknownOriginError(RemoteError):
    """A core whose origin has no enrolled card."""

    code = "UNKNOWN_ORIGIN"


class HandlingError(RemoteError):
    """Handling is missing, unknown or malformed."""

    code = "BAD_HANDLING"


class TermsError(RemoteError):
    """Terms are wider than the handling or the agreement, or meant for another node."""

    code = "BAD_TERMS"


class EquivocationError(RemoteError):
    """The origin signed two cores under one revision."""

    code = "EQUIVOCATION"


class CardError(RemoteError):
    """A card that holds by itself but does not follow from the one that is known, so that people must look."""

    code = "BAD_CARD"


class GrantError(RemoteError):
    """The grant beside a core that was passed on does not cover it, its relay, its recipient or this moment."""

    code = "BAD_GRANT"


class RecalledError(RemoteError):
    """The origin has recalled this revision: it may not be kept, whoever delivers it."""

    code = "RECALLED"


class VersionError(RemoteError):
    """No protocol version that both sides speak, or one too old for what was asked."""

    code = "VERSION"


class NotAdmittedError(RemoteError):
    """No agreement in force covers the entry, or local law forbids keeping it.

    Attributes: `rules`, the ids of the rules that decided, empty when no permit matched; `faults`, what the policy
    engine could not evaluate on the way.
    """

    code = "NOT_ADMITTED"

    def __init__(self, text: str, rules: tuple[str, ...] = (), faults: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.rules = rules
        self.faults = faults


class FeedError(RemoteError):
    """A page failed the receiver's checks; nothing was changed."""

    code = "BAD_PAGE"


class WrongFeedError(FeedError):
    """Another origin line or epoch than the one asked for."""

    code = "WRONG_FEED"


class ReorderedError(FeedError):
    """An item stands at another place than its sequence number."""

    code = "REORDERED"


class RepeatedError(FeedError):
    """An item that is already held."""

    code = "REPEATED"


class GapError(FeedError):
    """A sequence number is missing."""

    code = "GAP"


class BadPageError(FeedError):
    """The signed root does not follow from the items."""

    code = "BAD_PAGE"


class ErasureError(FeedError):
    """A hash-only item whose eraser is missing or does not name it."""

    code = "BAD_ERASURE"


class StaleError(FeedError):
    """The newest head is older than two polls."""

    code = "STALE"


class EpochError(FeedError):
    """The sender has opened a new epoch, which two people here have to accept first. Attributes: `epoch`."""

    code = "NEW_EPOCH"

    def __init__(self, text: str, epoch: int) -> None:
        super().__init__(text)
        self.epoch = epoch


class FeedFrozenError(FeedError):
    """Ingest from this peer stops until two people heal it (I8)."""


class RollbackError(FeedFrozenError):
    """The sender shows a smaller feed than it has shown before."""

    code = "ROLLBACK"


class ForkError(FeedFrozenError):
    """Two signed roots of one size: proof that history was rewritten."""

    code = "FORK"


class SuspectedForkError(FeedFrozenError):
    """Pages do not follow from the shared history, without a self-proving pair of signatures."""

    code = "SUSPECTED_FORK"


class UnreachableError(RemoteError):
    """No answer: partition, refused TLS, timeout."""

    code = "UNREACHABLE"


class TlsRefusedError(UnreachableError):
    """The address accepts connections, and the handshake there fails: a key, and not the line."""


class DeniedError(RemoteError):
    """The peer answered, and its answer was no."""

    code = "DENIED"
