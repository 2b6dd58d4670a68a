//! The Avro schemas of Tally and their codec.
