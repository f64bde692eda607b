-- How far the rows of each topic go: kept where they are, so that it is lost and restored with them. `since` is when who
-- noted it began: what somebody notes who began before the last rebuild counts no more.
CREATE TABLE IF NOT EXISTS tuneloop.landing_positions
(
    consumer String,
    topic String,
    partition Int32,
    next_offset Int64,
    since DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(next_offset)
ORDER BY (consumer, topic, partition, since);

CREATE TABLE IF NOT EXISTS tuneloop.landing_rebuilds (at DateTime64(3, 'UTC') DEFAULT now64(3))
ENGINE = MergeTree
ORDER BY at;
