use std::fmt;
use std::str::FromStr;

/// Where to begin reading in order to remember again what was remembered at an offset, which it is committed with.
///
/// Written `ids=none`, or `ids=<offset>`, then the messages to pass over, if there are any: `unread=<schema>:<first>-<last>`,
/// joined by commas. Words that it does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// The offset of the oldest id; `None` where nothing is remembered.
    pub from: Option<i64>,
    /// Of a schema from one offset to another: messages that left no ids.
    pub(crate) unread: Vec<Gap>,
}

/// Messages by one schema, the last one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) schema: u32,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

/// So many that the text stays below the 4096 bytes that brokers take by default.
pub(super) const MAX_GAPS: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} does not say from where ids are to be remembered")]
pub struct BookmarkParseError(pub String);

impl Gap {
    pub(super) fn contains(&self, schema: u32, offset: i64) -> bool {
        self.schema == schema && (self.first..=self.last).contains(&offset)
    }
}

impl fmt::Display for Bookmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            None => f.write_str("ids=none")?,
            Some(from) => write!(f, "ids={from}")?,
        }
        for (i, Gap { schema, first, last }) in self.unread.iter().enumerate() {
            f.write_str(if i == 0 { " unread=" } else { "," })?;
            write!(f, "{schema}:{first}-{last}")?;
        }
        Ok(())
    }
}

impl FromStr for Bookmark {
    type Err = BookmarkParseError;

    fn from_str(text: &str) -> Result<Bookmark, BookmarkParseError> {
        parse(text).ok_or_else(|| BookmarkParseError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Bookmark> {
    let value = |name: &str| text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let from = match value("ids")? {
        "none" => None,
        offset => Some(offset.parse().ok()?),
    };
    let unread = match value("unread") {
        None => Vec::new(),
        Some(gaps) => gaps.split(',').map(gap).collect::<Option<_>>()?,
    };
    Some(Bookmark { from, unread })
}

fn gap(text: &str) -> Option<Gap> {
    let (schema, offsets) = text.split_once(':')?;
    let (first, last) = offsets.split_once('-')?;
    Some(Gap { schema: schema.parse().ok()?, first: first.parse().ok()?, last: last.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bookmark_reads_as_it_writes() {
        let gap = |schema, first, last| Gap { schema, first, last };
        let bookmarks = [
            ("ids=none", Bookmark::default()),
            ("ids=17", Bookmark { from: Some(17), unread: vec![] }),
            (
                "ids=17 unread=4:20-22,9:21-21",
                Bookmark { from: Some(17), unread: vec![gap(4, 20, 22), gap(9, 21, 21)] },
            ),
        ];
        for (text, bookmark) in bookmarks {
            assert_eq!((bookmark.to_string().as_str(), text.parse()), (text, Ok(bookmark)));
        }
        assert_eq!("later=1 ids=17".parse(), Ok(Bookmark { from: Some(17), unread: vec![] }));
        for bad in ["", "ids=", "ids=x", "unread=1:2-3", "ids=1 unread=", "ids=1 unread=1:2"] {
            assert_eq!(bad.parse::<Bookmark>(), Err(BookmarkParseError(bad.into())));
        }
    }

    #[test]
    fn the_longest_bookmark_is_one_that_brokers_take() {
        let gap = Gap { schema: u32::MAX, first: i64::MAX, last: i64::MAX };
        let longest = Bookmark { from: Some(i64::MAX), unread: vec![gap; MAX_GAPS] };
        assert!(longest.to_string().len() < 4096, "{}", longest.to_string().len());
    }
}
