//! The load, the record of it, and the audit.
