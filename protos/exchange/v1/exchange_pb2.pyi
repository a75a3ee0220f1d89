from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PullRequest(_message.Message):
    __slots__ = ("feed", "cursor", "receipt", "max_items", "protocol", "newest", "restored")
    FEED_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    feed: str
    cursor: int
    receipt: bytes
    max_items: int
    protocol: int
    newest: bytes
    restored: bool
    def __init__(self, feed: _Optional[str] = ..., cursor: _Optional[int] = ..., receipt: _Optional[bytes] = ..., max_items: _Optional[int] = ..., protocol: _Optional[int] = ..., newest: _Optional[bytes] = ..., restored: _Optional[bool] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("items", "checkpoint", "latest", "receipt", "epoch")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[PageItem]
    checkpoint: bytes
    latest: bytes
    receipt: bytes
    epoch: int
    def __init__(self, items: _Optional[_Iterable[_Union[PageItem, _Mapping]]] = ..., checkpoint: _Optional[bytes] = ..., latest: _Optional[bytes] = ..., receipt: _Optional[bytes] = ..., epoch: _Optional[int] = ...) -> None: ...

class PageItem(_message.Message):
    __slots__ = ("entry", "erased")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    ERASED_FIELD_NUMBER: _ClassVar[int]
    entry: bytes
    erased: Erased
    def __init__(self, entry: _Optional[bytes] = ..., erased: _Optional[_Union[Erased, _Mapping]] = ...) -> None: ...

class Erased(_message.Message):
    __slots__ = ("seq", "leaf_hash", "erased_by")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    LEAF_HASH_FIELD_NUMBER: _ClassVar[int]
    ERASED_BY_FIELD_NUMBER: _ClassVar[int]
    seq: int
    leaf_hash: bytes
    erased_by: int
    def __init__(self, seq: _Optional[int] = ..., leaf_hash: _Optional[bytes] = ..., erased_by: _Optional[int] = ...) -> None: ...

class NotifyRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class NotifyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("feed", "size", "protocol")
    FEED_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    feed: str
    size: int
    protocol: int
    def __init__(self, feed: _Optional[str] = ..., size: _Optional[int] = ..., protocol: _Optional[int] = ...) -> None: ...

class GetCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    def __init__(self, checkpoint: _Optional[bytes] = ...) -> None: ...

class GetProofRequest(_message.Message):
    __slots__ = ("feed", "leaf", "from_size", "size", "protocol")
    FEED_FIELD_NUMBER: _ClassVar[int]
    LEAF_FIELD_NUMBER: _ClassVar[int]
    FROM_SIZE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    feed: str
    leaf: int
    from_size: int
    size: int
    protocol: int
    def __init__(self, feed: _Optional[str] = ..., leaf: _Optional[int] = ..., from_size: _Optional[int] = ..., size: _Optional[int] = ..., protocol: _Optional[int] = ...) -> None: ...

class GetProofResponse(_message.Message):
    __slots__ = ("hashes", "checkpoint")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    checkpoint: bytes
    def __init__(self, hashes: _Optional[_Iterable[bytes]] = ..., checkpoint: _Optional[bytes] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("feed", "seq", "nonce", "presentation", "agreement", "withdrawal", "recall", "purge", "statement", "card", "grant", "epoch")
    FEED_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PRESENTATION_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    PURGE_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    feed: str
    seq: int
    nonce: bytes
    presentation: Presentation
    agreement: Agreement
    withdrawal: Withdrawal
    recall: Recall
    purge: Purge
    statement: Statement
    card: Card
    grant: Grant
    epoch: Epoch
    def __init__(self, feed: _Optional[str] = ..., seq: _Optional[int] = ..., nonce: _Optional[bytes] = ..., presentation: _Optional[_Union[Presentation, _Mapping]] = ..., agreement: _Optional[_Union[Agreement, _Mapping]] = ..., withdrawal: _Optional[_Union[Withdrawal, _Mapping]] = ..., recall: _Optional[_Union[Recall, _Mapping]] = ..., purge: _Optional[_Union[Purge, _Mapping]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ..., card: _Optional[_Union[Card, _Mapping]] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ..., epoch: _Optional[_Union[Epoch, _Mapping]] = ...) -> None: ...

class Presentation(_message.Message):
    __slots__ = ("core", "disclosures", "terms", "grant")
    CORE_FIELD_NUMBER: _ClassVar[int]
    DISCLOSURES_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    core: bytes
    disclosures: _containers.RepeatedScalarFieldContainer[bytes]
    terms: Terms
    grant: bytes
    def __init__(self, core: _Optional[bytes] = ..., disclosures: _Optional[_Iterable[bytes]] = ..., terms: _Optional[_Union[Terms, _Mapping]] = ..., grant: _Optional[bytes] = ...) -> None: ...

class Terms(_message.Message):
    __slots__ = ("core_digest", "recipient", "agreement_digest", "purposes", "retain_until", "storage", "onward", "attribution")
    CORE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PURPOSES_FIELD_NUMBER: _ClassVar[int]
    RETAIN_UNTIL_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    ONWARD_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    core_digest: bytes
    recipient: str
    agreement_digest: bytes
    purposes: _containers.RepeatedScalarFieldContainer[str]
    retain_until: str
    storage: Places
    onward: str
    attribution: str
    def __init__(self, core_digest: _Optional[bytes] = ..., recipient: _Optional[str] = ..., agreement_digest: _Optional[bytes] = ..., purposes: _Optional[_Iterable[str]] = ..., retain_until: _Optional[str] = ..., storage: _Optional[_Union[Places, _Mapping]] = ..., onward: _Optional[str] = ..., attribution: _Optional[str] = ...) -> None: ...

class Places(_message.Message):
    __slots__ = ("countries",)
    COUNTRIES_FIELD_NUMBER: _ClassVar[int]
    countries: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, countries: _Optional[_Iterable[str]] = ...) -> None: ...

class Agreement(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("seqs", "reason", "feed")
    SEQS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FEED_FIELD_NUMBER: _ClassVar[int]
    seqs: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    feed: str
    def __init__(self, seqs: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., feed: _Optional[str] = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("document", "seqs")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SEQS_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    seqs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, document: _Optional[bytes] = ..., seqs: _Optional[_Iterable[int]] = ...) -> None: ...

class Purge(_message.Message):
    __slots__ = ("seqs", "reason")
    SEQS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seqs: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, seqs: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class Card(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: bytes
    def __init__(self, document: _Optional[bytes] = ...) -> None: ...

class Epoch(_message.Message):
    __slots__ = ("previous", "final", "reason")
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    previous: str
    final: bytes
    reason: str
    def __init__(self, previous: _Optional[str] = ..., final: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...
