use clickhouse::Client;
use tally_counts::Rules;

use super::COUNTS;

const PREFIX: &str = "tally: ";

/// How the counts table is made, and what it is counted into by. `tally init` writes it into the
/// table's comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRules {
    /// 1: a sum is one column of 64 bits, and wraps. 2: it has 128 bits, in two columns.
    pub format: u32,
    pub rules: Rules,
}

impl TableRules {
    /// The format that this version reads and writes.
    pub const FORMAT: u32 = 2;

    /// The table's comment.
    pub fn comment(&self) -> String {
        format!("{PREFIX}format={} {}", self.format, self.rules)
    }

    fn parse(comment: &str) -> Option<TableRules> {
        let text = comment.strip_prefix(PREFIX)?;
        // The first version had only one format, and did not say so.
        let (format, rules) = match text.strip_prefix("format=") {
            None => (1, text),
            Some(text) => {
                let (format, rules) = text.split_once(' ')?;
                (format.parse().ok()?, rules)
            }
        };
        Some(TableRules { format, rules: rules.parse().ok()? })
    }
}

/// The rules of the table; `None` where there is no such table or no such comment.
pub async fn rules(client: &Client) -> Result<Option<TableRules>, clickhouse::error::Error> {
    let comment: Option<String> = client
        .query("SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = ?")
        .bind(COUNTS)
        .fetch_optional()
        .await?;
    Ok(comment.as_deref().and_then(TableRules::parse))
}

#[cfg(test)]
mod tests {
    use tally_counts::IdScope;

    use super::*;

    #[test]
    fn the_rules_are_in_the_comment() {
        let rules = Rules { max_future_s: 5, ..Rules::default() };
        let table = TableRules { format: 2, rules };
        assert_eq!(TableRules::parse(&table.comment()), Some(table));
        assert_eq!(TableRules::parse("tally: bucket_seconds=60"), None);
        assert_eq!(TableRules::parse("tally: format=2"), None);
        assert_eq!(TableRules::parse("mine"), None);
    }

    #[test]
    fn a_comment_of_the_first_version_is_read() {
        let comment = "tally: bucket_seconds=60 max_future_seconds=86400 \
                       horizon_offsets=1000000 max_ids=1000000";
        let rules = Rules { ids_within: IdScope::Partition, ..Rules::default() };
        assert_eq!(TableRules::parse(comment), Some(TableRules { format: 1, rules }));
    }
}
