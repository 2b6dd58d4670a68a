//! What every service stands on: configuration, telemetry, health, and the clients of log, registry and store.
