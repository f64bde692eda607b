"""Lives: a year of simulated use over the product's own functions, with a learner that knows only what it was taught.

Of the product the broker (records go from step to step in memory), the trainer and the generation engine are stood in for
(`learner`); everything else is the product's own code, on a real ClickHouse. The truth is the bench's alone.
"""
