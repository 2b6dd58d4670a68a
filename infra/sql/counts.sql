-- One row for each counter and time bucket, merged by adding up. The table has a partition for each
-- partition of the Kafka topic. Rows of the namespace `__tally` are the ledger.
--
-- A sum has 128 bits, in two columns that are summed each: `sum_low` gains the lowest 32 bits of
-- what a batch adds, `sum_high` the rest. Neither can wrap before 2^32 rows have added to one
-- counter and bucket. Two columns with T64 cost ClickHouse half of the extra CPU that one Int128
-- would, whose codecs do not include T64. People read `sum`, which puts them together.
--
-- SummingMergeTree gets no list of columns: a partial list would stop `high` from being merged by
-- its maximum, and partition and sorting key are never summed. A block of up to 32 MiB becomes a
-- compact part, in one file, which is a fifth cheaper to write than a file for each column.
CREATE TABLE IF NOT EXISTS {database}.counts
(
    partition UInt32 COMMENT 'partition of the Kafka topic that the increments came from',
    namespace LowCardinality(String),
    key String,
    bucket DateTime('UTC') COMMENT 'start of the time bucket of the events',
    sum_low UInt64 COMMENT 'lowest 32 bits of what was added' CODEC(T64, LZ4),
    sum_high Int64 COMMENT 'what was added, without its lowest 32 bits' CODEC(T64, LZ4),
    sum Int128 ALIAS toInt128(sum_high) * 4294967296 + sum_low
        COMMENT 'what the increments came to',
    events Int64 COMMENT 'how many increments there were; 1 for each ledger row' CODEC(T64, LZ4),
    high SimpleAggregateFunction(max, Int64)
        COMMENT 'ledger rows only: the highest offset reached' CODEC(T64, LZ4)
)
ENGINE = SummingMergeTree
PARTITION BY partition
ORDER BY (namespace, key, bucket)
TTL bucket + INTERVAL 30 DAY DELETE WHERE namespace = '__tally' AND startsWith(key, 'batch:')
SETTINGS non_replicated_deduplication_window = 10000, min_bytes_for_wide_part = 33554432
COMMENT '{comment}'
