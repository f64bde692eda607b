"""The performance monitor: every version measured against its own baseline, and alarms that hold their promise."""
