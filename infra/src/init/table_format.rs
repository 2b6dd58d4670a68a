//! Moves a counts table of the first format on, in place and exactly.
//!
//! ```text
//!  sum, 64 bits ──rename──► sum_low ──its upper bits──► sum_high ──► sum, put together from both
//! ```
//!
//! Every step may be repeated, so what ends half-way is gone on with by the next `tally init`: the
//! comment, which says the format, changes last. The first step takes the old column's name away,
//! so that services of the version before fail instead of reading half of a sum.

use clickhouse::Client;
use clickhouse::error::Error;
use tally_platform::store::{COUNTS, TableRules};

use super::tables::execute;

pub(super) async fn move_on(client: &Client, to: &TableRules) -> Result<(), Error> {
    let is_whole = "SELECT count() FROM system.columns WHERE database = currentDatabase() \
                    AND table = ? AND name = 'sum' AND default_kind = ''";
    let whole_sums: u64 = client.query(is_whole).bind(COUNTS).fetch_one().await?;
    if whole_sums > 0 {
        execute(client, &format!("ALTER TABLE {COUNTS} RENAME COLUMN sum TO sum_low")).await?;
    }
    let comment = to.comment();
    for step in [
        "ADD COLUMN IF NOT EXISTS sum_high Int64 \
         COMMENT 'what was added, without its lowest 32 bits' CODEC(T64, LZ4) AFTER sum_low",
        // What it does to a row that it has done it to already changes nothing of the row's sum.
        "UPDATE sum_high = sum_high + bitShiftRight(sum_low, 32), \
         sum_low = bitAnd(sum_low, 4294967295) WHERE bitShiftRight(sum_low, 32) != 0 \
         SETTINGS mutations_sync = 2",
        "MODIFY COLUMN sum_low UInt64 COMMENT 'lowest 32 bits of what was added' \
         CODEC(T64, LZ4) SETTINGS alter_sync = 2",
        "ADD COLUMN IF NOT EXISTS sum Int128 \
         ALIAS toInt128(sum_high) * 4294967296 + sum_low \
         COMMENT 'what the increments came to' AFTER sum_high",
        &format!("MODIFY COMMENT '{comment}'"),
    ] {
        execute(client, &format!("ALTER TABLE {COUNTS} {step}")).await?;
    }
    Ok(())
}
