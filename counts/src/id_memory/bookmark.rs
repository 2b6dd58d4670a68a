use std::fmt;
use std::str::FromStr;

use crate::Rules;

/// Where to begin reading in order to remember the same ids again. It is committed to Kafka
/// together with the offset at which they were remembered.
///
/// Its text is `ids=none` or `ids=<offset>`; then, if there are messages to pass over,
/// `unread=<schema>:<first>-<last>`, joined by commas; then the rules of counting,
/// `rules=bucket_seconds=60,…`. Words that a reader does not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bookmark {
    /// The offset of the oldest remembered id; `None` where none is remembered.
    pub from: Option<i64>,
    /// The rules of counting as they were written, maybe by another version of Tally; `None` where
    /// none were.
    pub(crate) rules: Option<String>,
    /// The messages whose ids were not remembered, because their schema could not be used.
    pub(crate) unread: Vec<Gap>,
}

/// All messages by one schema from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) schema: u32,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

/// The most gaps of a bookmark: its text stays below 4096 bytes, Kafka's default limit.
pub(super) const MAX_GAPS: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} does not say from where ids are to be remembered")]
pub struct BookmarkParseError(pub String);

impl Bookmark {
    pub(crate) fn by(self, rules: &Rules) -> Bookmark {
        Bookmark { rules: Some(rules.to_string()), ..self }
    }

    /// The rules that the bookmark was written under, if they are not these. They are compared as
    /// values: an older version may have written the same rules in other words.
    pub fn other_rules(&self, rules: &Rules) -> Option<&str> {
        self.rules.as_deref().filter(|noted| noted.parse() != Ok(*rules))
    }
}

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
        match &self.rules {
            None => Ok(()),
            Some(rules) => write!(f, " rules={}", rules.replace(' ', ",")),
        }
    }
}

impl FromStr for Bookmark {
    type Err = BookmarkParseError;

    fn from_str(text: &str) -> Result<Bookmark, BookmarkParseError> {
        parse(text).ok_or_else(|| BookmarkParseError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Bookmark> {
    let value =
        |name: &str| text.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let from = match value("ids")? {
        "none" => None,
        offset => Some(offset.parse().ok()?),
    };
    let unread = match value("unread") {
        None => Vec::new(),
        Some(gaps) => gaps.split(',').map(gap).collect::<Option<_>>()?,
    };
    let rules = value("rules").map(|rules| rules.replace(',', " "));
    Some(Bookmark { from, rules, unread })
}

fn gap(text: &str) -> Option<Gap> {
    let (schema, offsets) = text.split_once(':')?;
    let (first, last) = offsets.split_once('-')?;
    Some(Gap { schema: schema.parse().ok()?, first: first.parse().ok()?, last: last.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{BucketWidth, Horizon, IdScope};

    #[test]
    fn a_bookmark_reads_as_it_writes() {
        let gap = |schema, first, last| Gap { schema, first, last };
        let bookmarks = [
            ("ids=none", Bookmark::default()),
            ("ids=17", Bookmark { from: Some(17), ..Bookmark::default() }),
            (
                "ids=17 unread=4:20-22,9:21-21",
                Bookmark {
                    from: Some(17),
                    unread: vec![gap(4, 20, 22), gap(9, 21, 21)],
                    ..Bookmark::default()
                },
            ),
            (
                "ids=17 unread=4:20-22 rules=bucket_seconds=60,max_future_seconds=86400,\
                 horizon_offsets=1000000,max_ids=1000000,ids_within=counter,\
                 min_event_seconds=0",
                Bookmark { from: Some(17), unread: vec![gap(4, 20, 22)], ..Bookmark::default() }
                    .by(&Rules::default()),
            ),
        ];
        for (text, bookmark) in bookmarks {
            assert_eq!((bookmark.to_string().as_str(), text.parse()), (text, Ok(bookmark)));
        }
        assert_eq!(
            "later=1 ids=17".parse(),
            Ok(Bookmark { from: Some(17), ..Bookmark::default() })
        );
        for bad in ["", "ids=", "ids=x", "unread=1:2-3", "ids=1 unread=", "ids=1 unread=1:2"] {
            assert_eq!(bad.parse::<Bookmark>(), Err(BookmarkParseError(bad.into())));
        }
    }

    #[test]
    fn the_longest_bookmark_is_one_that_brokers_take() {
        let gap = Gap { schema: u32::MAX, first: i64::MAX, last: i64::MAX };
        let rules = Rules {
            width: BucketWidth::from_secs(86_400).unwrap(),
            horizon: Horizon { offsets: u32::MAX, ids: NonZeroU32::MAX },
            max_future_s: u32::MAX,
            min_event_s: u32::MAX,
            ids_within: IdScope::Partition,
        };
        let longest =
            Bookmark { from: Some(i64::MAX), unread: vec![gap; MAX_GAPS], rules: None }.by(&rules);
        assert!(longest.to_string().len() < 4096, "{}", longest.to_string().len());
    }

    #[test]
    fn a_bookmark_knows_whether_it_was_noted_under_other_rules() {
        let ours = Rules::default();
        let other_rules =
            |text: &str| text.parse::<Bookmark>().unwrap().other_rules(&ours).map(str::to_owned);
        assert_eq!(other_rules("ids=17"), None);
        assert_eq!(other_rules(&Bookmark::default().by(&ours).to_string()), None);
        let others = Rules { max_future_s: 7, ..ours };
        assert_eq!(
            other_rules(&Bookmark::default().by(&others).to_string()),
            Some(others.to_string())
        );
        assert_eq!(other_rules("ids=17 rules=more=1").as_deref(), Some("more=1"));
        let before = "ids=17 rules=bucket_seconds=60,max_future_seconds=86400,\
                      horizon_offsets=1000000,max_ids=1000000";
        assert!(other_rules(before).is_some(), "ids were of partitions then");
        let kept = Rules { ids_within: IdScope::Partition, ..ours };
        assert_eq!(before.parse::<Bookmark>().unwrap().other_rules(&kept), None);
    }
}
