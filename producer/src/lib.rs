//! The HTTP gateway: increments in, a durable position out.
