use clickhouse::Client;
use tally_counts::BucketWidth;

use super::COUNTS;

/// The width of the table's buckets, which `tally init` wrote into its comment; `None` where there is no such table or no
/// such comment.
pub async fn bucket_width(client: &Client) -> Result<Option<BucketWidth>, clickhouse::error::Error> {
    let comment: Option<String> = client
        .query("SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = ?")
        .bind(COUNTS)
        .fetch_optional()
        .await?;
    Ok(comment.as_deref().and_then(parse))
}

fn parse(comment: &str) -> Option<BucketWidth> {
    let secs = comment.strip_prefix("tally: bucket_seconds=")?.parse().ok()?;
    BucketWidth::from_secs(secs).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_in_the_comment() {
        assert_eq!(parse("tally: bucket_seconds=60"), Some(BucketWidth::MINUTE));
        assert_eq!(parse("tally: bucket_seconds=7"), None);
        assert_eq!(parse("mine"), None);
    }
}
