//! Answers reads from memory first, then from the store.
