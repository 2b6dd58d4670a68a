//! Folds increments into deltas, one transaction a flush.
