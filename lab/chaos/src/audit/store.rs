//! Reads ClickHouse's table by plain SQL over HTTP.

use std::time::Duration;

use anyhow::Context;

use super::evidence::Row;

const TIMEOUT: Duration = Duration::from_secs(300);

const ROWS: &str = "SELECT partition, namespace, key, toUInt32(bucket), \
                    sum(toInt128(sum)), sum(events), max(high) \
                    FROM counts GROUP BY partition, namespace, key, bucket FORMAT TSV";
const POSITIONS: &str = "SELECT partition, sum(sum), max(high) FROM counts \
                         WHERE namespace = '__tally' AND key = 'increments' \
                         GROUP BY partition FORMAT TSV";

pub(super) struct Store {
    url: String,
    http: reqwest::Client,
}

impl Store {
    pub(super) fn new(url: &str, database: &str) -> anyhow::Result<Store> {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        // The whole answer is known to be good before any of it is sent.
        let settings = format!("database={database}&wait_end_of_query=1");
        Ok(Store { url: format!("{}/?{settings}", url.trim_end_matches('/')), http })
    }

    /// Every row, merged.
    pub(super) async fn rows(&self) -> anyhow::Result<Vec<Row>> {
        read(&self.ask(ROWS).await?, row)
    }

    /// How far each partition that is there includes `increments`: by the sum, and by the
    /// maximum.
    pub(super) async fn positions(&self) -> anyhow::Result<Vec<(usize, i64, i64)>> {
        let position = |line: &str| {
            let [partition, sum, high] = fields(line)?;
            Some((partition.parse().ok()?, sum.parse().ok()?, high.parse().ok()?))
        };
        read(&self.ask(POSITIONS).await?, position)
    }

    async fn ask(&self, sql: &'static str) -> anyhow::Result<String> {
        let answer = self.http.post(&self.url).body(sql).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "ClickHouse at {}: {status}: {text}", self.url);
        Ok(text)
    }
}

/// Reads what ClickHouse answered, line by line.
fn read<T>(text: &str, line: impl Fn(&str) -> Option<T>) -> anyhow::Result<Vec<T>> {
    let unreadable = |text| format!("a row of ClickHouse that cannot be read: {text:?}");
    text.lines().map(|text| line(text).with_context(|| unreadable(text))).collect()
}

fn fields<const N: usize>(line: &str) -> Option<[&str; N]> {
    line.split('\t').collect::<Vec<_>>().try_into().ok()
}

fn row(line: &str) -> Option<Row> {
    let [partition, namespace, key, bucket, sum, events, high] = fields(line)?;
    Some(Row {
        partition: partition.parse().ok()?,
        namespace: plain(namespace)?,
        key: plain(key)?,
        bucket: bucket.parse().ok()?,
        sum: sum.parse().ok()?,
        events: events.parse().ok()?,
        high: high.parse().ok()?,
    })
}

/// Undoes what the format does to tabs, ends of lines and the like.
fn plain(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '\\' => match chars.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                other @ ('\\' | '\'') => other,
                _ => return None,
            },
            char => char,
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_with_all_that_the_format_escapes() {
        let read =
            row("3\todd\ta\\tb\\n\\\\ \\'ключ\t1780000020\t-170141183460469231731\t2\t0").unwrap();
        assert_eq!((read.partition, &*read.key, read.events), (3, "a\tb\n\\ 'ключ", 2));
        assert_eq!(read.sum, -170_141_183_460_469_231_731);
        for bad in ["3\tn\tk\t0\t1\t2", "3\tn\t\\q\t0\t1\t2\t0", "x\tn\tk\t0\t1\t2\t0", ""] {
            assert_eq!(row(bad), None, "{bad:?}");
        }
    }
}
