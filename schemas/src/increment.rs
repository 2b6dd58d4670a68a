/// One amount added to one counter, its strings borrowed from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment<'a> {
    pub namespace: &'a str,
    pub key: &'a str,
    pub delta: i64,
    /// The event's time, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The same id twice counts once.
    pub id: Option<&'a str>,
}

/// What a message holds besides its increments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The id of a batch as a whole. A single increment's id is the increment's own, and this is
    /// `None`.
    pub id: Option<&'a str>,
    /// How many increments it holds.
    pub increments: u64,
}
