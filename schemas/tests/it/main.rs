//! The codec against apache-avro, an implementation that is not ours, on random schemas and values.

mod deltas;
mod dice;
mod encoders;
mod evolved;
mod hostile;
mod oracle;
mod resolution;
mod types;
