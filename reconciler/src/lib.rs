//! Replays the log and proves the stored counts against it.
