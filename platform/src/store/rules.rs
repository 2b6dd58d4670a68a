use clickhouse::Client;
use tally_counts::Rules;

use super::COUNTS;

const PREFIX: &str = "tally: ";

/// The comment of a table that is counted into by these rules.
pub fn rules_comment(rules: &Rules) -> String {
    format!("{PREFIX}{rules}")
}

/// The rules that the table is counted into by, which `tally init` wrote into its comment; `None`
/// where there is no such table or no such comment.
pub async fn rules(client: &Client) -> Result<Option<Rules>, clickhouse::error::Error> {
    let comment: Option<String> = client
        .query("SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = ?")
        .bind(COUNTS)
        .fetch_optional()
        .await?;
    Ok(comment.as_deref().and_then(parse))
}

fn parse(comment: &str) -> Option<Rules> {
    comment.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_in_the_comment() {
        let rules = Rules { max_future_s: 5, ..Rules::default() };
        assert_eq!(parse(&rules_comment(&rules)), Some(rules));
        assert_eq!(parse("tally: bucket_seconds=60"), None);
        assert_eq!(parse("mine"), None);
    }
}
