"""The picture of the run: live accuracy over time with the events marked."""

from __future__ import annotations

from pathlib import Path

from clickhouse_connect.driver.client import Client

from streams.clickhouse import rows

WINDOW = 40
_MARKS = (
    ("shift", "new questions begin", "#b35806"), ("drift", "drift detected", "#b2182b"),
    ("job_started", "job starts", "#762a83"), ("candidate", "candidate trained", "#762a83"),
    ("second_served", "version 2 serves", "#1b7837"),
)  # fmt: skip


def draw(client: Client, model: str, moments: dict[str, int], path: Path) -> Path:
    """Write the PNG: a rolling mean over the last WINDOW scored answers, by version."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    answers = rows(
        client,
        "SELECT version, correct, toUnixTimestamp64Milli(answered_at) AS ms FROM tuneloop.scored_answers "
        "WHERE model = {model:String} ORDER BY answered_at",
        model=model,
    )
    start = answers[0]["ms"]
    figure, axes = plt.subplots(figsize=(11, 4.8), dpi=120)
    for version, colour in ((1, "#2166ac"), (2, "#1b7837")):
        mine = [row for row in answers if row["version"] == version]
        times = [(row["ms"] - start) / 1000 for row in mine]
        right = [float(row["correct"]) for row in mine]
        means = [sum(right[max(0, i - WINDOW + 1) : i + 1]) / min(i + 1, WINDOW) for i in range(len(right))]
        axes.plot(times[WINDOW // 4 :], means[WINDOW // 4 :], color=colour, linewidth=2, label=f"{model}@{version}")
    for row, (name, text, colour) in enumerate(_MARKS):
        if name in moments:
            at = (moments[name] - start) / 1000
            axes.axvline(at, color=colour, linestyle="--", linewidth=1)
            axes.text(at, 1.16 - 0.045 * (row % 3), f" {text}", color=colour, fontsize=8, va="top")
    axes.set(xlabel="seconds since the first scored answer", ylabel=f"live accuracy (last {WINDOW} answers)")
    axes.set_ylim(0, 1.17)
    axes.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path
