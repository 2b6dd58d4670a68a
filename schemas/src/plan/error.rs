/// A writer schema that no message of which can be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("the schema is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: &'static str },
    #[error("`{name}` is used but not defined before")]
    UnknownName { name: String },
    #[error("`{name}` is defined twice")]
    DefinedTwice { name: String },
    #[error("the schema is {writer}; only the records Increment and IncrementBatch are counted")]
    NotOurs { writer: String },
    #[error("the schema is {writer}; a batch of deltas is a record DeltaBatch")]
    NoDeltaBatch { writer: String },
    #[error("{record} needs the field `{field}`, which the writer's record lacks")]
    MissingField { record: &'static str, field: &'static str },
    #[error("`{field}` of {record} cannot be read as {reader} from the writer's {writer}")]
    Unreadable { record: &'static str, field: &'static str, reader: &'static str, writer: String },
    #[error("`{field}` of {record} cannot be read from a {logical_type}: it names no moment")]
    NoMoment { record: &'static str, field: &'static str, logical_type: String },
}
