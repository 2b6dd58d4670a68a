-- What people query: no ledger rows, and whatever is not merged yet is summed here.
CREATE OR REPLACE VIEW {database}.counters AS
SELECT namespace, key, bucket, sum(counts.sum) AS value, sum(counts.events) AS events
FROM {database}.counts AS counts
WHERE namespace != '__tally'
GROUP BY namespace, key, bucket
