"""The account that others can check: the ledger against what was sent and signed, and proofs of disclosure."""
