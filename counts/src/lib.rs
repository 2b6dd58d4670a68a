//! What a count is: buckets, the fold, the chain, the ledger and the fingerprint.
