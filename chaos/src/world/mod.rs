//! The stack under fire: brokers, registry, store, services, and the links between them.
