//! Stores each batch of deltas as one block, once.
