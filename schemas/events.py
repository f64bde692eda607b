"""The events: one frozen struct per past-tense fact. Every other form of them is derived from here.

JSON Schemas, ClickHouse landing tables, Arrow schemas and the README's topic table are generated from
these declarations (`python -m schemas.generate`). A struct is the JSON body of a Kafka record; who said it,
when and because of what stands in the record's CloudEvents headers (`schemas.codec.Envelope`).

Evolution: new fields are optional with a default, enumerations are open strings, nothing is retyped;
anything else is a new event name (`schemas.evolution` refuses the rest).
"""

from __future__ import annotations

import msgspec

from schemas.names import Name


# gc=False: an event is a tree, so no cycle can keep it; the collector need not walk what arrives by the thousand.
class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One turn of a conversation, in OpenAI's form; `content` is text, empty where a call stands.

    `tool_calls` is a JSON array as text. `weight` 0 takes an assistant's turn out of what is learned.
    """

    role: str
    content: str
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""
    weight: float | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A fact about one model. `model` is the name an application asks for, such as `support`."""

    model: Name


class ShardRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where one committed Parquet shard lies and what it must hash to (sha256 of its bytes)."""

    shard_id: Name
    path: str
    digest: str
    rows: int


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A table in the artifact store: its path, the sha256 of its bytes, its rows."""

    path: str
    digest: str
    rows: int


class ShardSet(msgspec.Struct, frozen=True, kw_only=True):
    """A list of shards, kept in the artifact store so that no event grows with the data.

    The file at `path` (sha256 `digest`) is a JSON array of `ShardRef`.
    """

    path: str
    digest: str
    shards: int
    rows: int


# --- raw training data, processed dataset -----------------------------------------------------------


class RecordSubmitted(Event, frozen=True, kw_only=True):
    """One training record as it was submitted: by an import, by joined feedback, or by any Kafka client.

    `kind` is sft | preference | kto | document. The context is `messages` (ending with the user's turn) or `prompt`;
    the answer is `completion`, or the last assistant turn of `messages`; a document is its `completion` alone.
    `chosen`/`rejected` belong to preference, `label` to kto; with sft it says whether the answer that was corrected was
    right. `tools` is a JSON array as text.

    `sampled` says how the row was chosen: random | all | bad | unrated | import | synthetic | augmented; "" = not said.
    `source_record` is the record that a made-up one was made from, `author` whoever gave the answer, `split` a side
    that an import lays down, `said_ms` when an import's row was said (Unix ms; 0 = not known, so it counts as old).
    """

    kind: str = "sft"
    messages: list[Message] = []
    prompt: str = ""
    completion: str = ""
    chosen: str = ""
    rejected: str = ""
    label: bool | None = None
    record_id: str = ""
    subject_id: str = ""
    conversation_id: str = ""
    inference_id: str = ""
    origin: str = "client"
    tools: str = ""
    task: str = ""
    labels: dict[str, str] = {}
    split: str = ""
    import_id: str = ""
    source_record: str = ""
    sampled: str = ""
    author: str = ""
    said_ms: int = 0

    def __post_init__(self) -> None:
        if not self.messages and not self.prompt and self.kind != "document":
            raise ValueError("`messages` or `prompt` is required")


class ShardWritten(Event, frozen=True, kw_only=True):
    """A Parquet shard of prepared rows is stored; written in one transaction with the offsets it covers.

    `rows_by_split` counts the SFT rows that people said, `units_by_split` whose they are, `undated_tests`
    those of the test split that do not say when they were said. `dropped` counts records that
    made no row, by reason; `contradictions` the rows that answer an earlier row's
    question differently, `asked` those that keep no words (one more person asked a common question); `augmented` the
    rows that were made from others. A shard that was rewritten to forget somebody is said again under its own id:
    `erased` rows fewer, the digest before it in `replaces`.
    """

    shard_id: Name
    path: str
    digest: str
    size_bytes: int
    rows: int
    rows_by_kind: dict[str, int]
    rows_by_split: dict[str, int]
    units_by_split: dict[str, int] = {}
    undated_tests: int = 0
    rows_by_class: dict[str, int] = {}
    dropped: dict[str, int]
    masked: dict[str, int] = {}
    contradictions: int = 0
    asked: int = 0
    augmented: int = 0
    erased: int = 0
    replaces: str = ""
    source_topic: str
    source_partition: int
    first_offset: int
    last_offset: int
    rules_version: str


class SubjectShared(Event, frozen=True, kw_only=True):
    """A subject under which many people speak (`user="api"`): from here on its rows count by conversation or question.

    For good. `subject_key` is a keyed hash of the subject (`schemas.identity.subject_key`); `rows` were there by then.
    """

    subject_key: Name
    rows: int


# --- training ---------------------------------------------------------------------------------------


class TriggerOpened(Event, frozen=True, kw_only=True):
    """Something asks for a job, and goes on asking until it is closed.

    `kind` is initial | drift | volume | age | person | erasure | base; `ordinal` counts a model's triggers from 1.
    `version` served then. `changed_at` is when what a drift noticed began (Unix ms; 0 = no drift); `from_base` and
    `accept` are what a person asked for.
    """

    trigger_id: str
    ordinal: int
    kind: str
    reason: str
    version: int = 0
    drift_id: str = ""
    changed_at: int = 0
    from_base: bool = False
    accept: str = ""
    actor: str = ""


class TriggerClosed(Event, frozen=True, kw_only=True):
    """A trigger asks no more: `because` is answered | recovered | superseded | person, with the reason in words."""

    trigger_id: str
    ordinal: int
    because: str
    reason: str = ""
    job_id: str = ""
    actor: str = ""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a job trains: `method` full | lora | qlora | prefix, `objective` sft | preference | kto, and by what shares
    the tasks are mixed (by task name; empty = as they come)."""

    method: str = "lora"
    objective: str = "sft"
    mixture: dict[str, float] = {}


class JobRequested(Event, frozen=True, kw_only=True):
    """A fine-tuning job with all its inputs resolved to digests; `job_id` is the hash of those inputs.

    `reason` is initial | drift | volume | age | person | erasure | base; `answers` are the triggers that it answers.
    `parent_digest` is the adapter training goes on from ("" = from the base), `spec` how (None = LoRA, supervised).
    `void_before` counts the jobs for the same cause that ended void in a row before it.
    `changed_at` is when what a drift noticed began (Unix ms; 0 = no drift), `accept` what the gate asks for
    ("" = as the reason asks; `no worse`). `new_examples` were there for it, said since `changed_at`, or since the
    parent learned. `live_quality` is the share right of the version that serves (None: not known).
    """

    job_id: str
    reason: str
    base: Name
    base_path: str
    base_digest: str
    parent_version: int = 0
    parent_path: str = ""
    parent_digest: str = ""
    new_data: ShardSet
    replay_data: ShardSet | None = None
    drift_id: str = ""
    answers: list[str] = []
    spec: JobSpec | None = None
    policy_epoch: int = 0
    changed_at: int = 0
    accept: str = ""
    recipe: dict[str, float] = {}
    void_before: int = 0
    new_examples: int = 0
    live_quality: float | None = None


class JobDeferred(Event, frozen=True, kw_only=True):
    """A trigger stays open: what its job still waits for, in words, for each unmet condition; said as that changes."""

    trigger_id: str
    waits_for: dict[str, str]
    new_examples: int
    min_new_examples: int


class JobControlRequested(Event, frozen=True, kw_only=True):
    """Asks whoever runs a job to cancel | pause | resume it."""

    job_id: str
    action: str
    reason: str = ""
    actor: str = ""


class TriggerCloseRequested(Event, frozen=True, kw_only=True):
    """A person says that a trigger is to ask no more."""

    trigger_id: str
    reason: str = ""
    actor: str = ""


class HoldRequested(Event, frozen=True, kw_only=True):
    """A person holds a model (`hold`), or lets it go on: meanwhile it starts no job, and promotes or rolls back
    nothing by itself."""

    hold: bool
    reason: str = ""
    actor: str = ""


class JobProgressed(Event, frozen=True, kw_only=True):
    """Heartbeat of the training child. `phase` is started | loading | training | saving | evaluating | paused."""

    job_id: str
    phase: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    examples_per_s: float | None = None
    time_left_s: float | None = None


class JobEnded(Event, frozen=True, kw_only=True):
    """A job is over: `outcome` is succeeded | failed | cancelled | void, with the reason in words.

    Void = rows that it was trained on were erased meanwhile: it is asked for again, and does not count.
    """

    job_id: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0


class CandidateTrained(Event, frozen=True, kw_only=True):
    """An adapter stands in the artifact store, ready to be judged. `digest` is the hash of its files.

    `fingerprint` holds logits of the trained adapter on a fixed probe prompt (`probe`), in the number type `dtype`;
    whoever loads the adapter must reproduce them. `seen` lists the rows that it was trained on, of which the newest was
    said at `newest_row_ms`. `new_data` and `replay_data` name the shards as they were read, which may be shorter than
    the job's: somebody in them was forgotten in between. `reason`, `changed_at`, `accept`, `live_quality` and
    `void_before` are the job's. `warnings` says in words what was left out of it.
    """

    job_id: str
    digest: str
    path: str
    base: Name
    base_path: str
    base_digest: str
    parent_version: int
    new_data: ShardSet
    replay_data: ShardSet | None = None
    method: str
    examples: int
    steps: int
    tokens: int = 0
    loss: float
    seconds: float
    fingerprint: list[float]
    dtype: str = ""
    probe: str = ""
    seen: FileRef | None = None
    reason: str = ""
    changed_at: int = 0
    accept: str = ""
    newest_row_ms: int = 0
    warnings: list[str] = []
    drift_id: str = ""
    void_before: int = 0
    live_quality: float | None = None


# --- validation and registry ------------------------------------------------------------------------


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One statistical check of a verdict with the numbers it rests on; `units` are whose rows they are.

    `details` is a JSON object as text: what the check looked at one by one (classes, slices).
    """

    check: str
    dataset: str
    passed: bool
    reason: str
    n: int
    n_required: int
    champion_mean: float
    candidate_mean: float
    difference: float
    bound: float
    margin: float
    discordance: float
    power: float
    confidence: float
    units: int = 0
    details: str = ""


class VerdictReached(Event, frozen=True, kw_only=True):
    """The gate's judgement of one candidate against the champion, or against the base where none serves.

    `failed`: the check could not be carried out, which says nothing of the candidate: the job is done again.
    `void`: rows that it was trained on are erased by now, so it is neither passed nor refused. `erasures` names those
    that removed rows which it, or the version it was trained from, had learned from.

    `judge` is who judged: the registry heeds those that the model's policy names. `test_rows` and `scores` are what was
    asked and what each scored, by row. `live_quality` is known | unknown: whether feedback tells how well the
    champion does. `superior`: shown to be better, not only no worse. `changed_at` is the candidate's.
    """

    job_id: str
    digest: str
    passed: bool
    reason: str
    champion_version: int
    checks: list[Check]
    path: str
    base: Name
    base_digest: str
    fingerprint: list[float] = []
    new_data: ShardSet
    replay_data: ShardSet | None = None
    drift_id: str = ""
    seconds: float = 0.0
    void: bool = False
    failed: bool = False
    erasures: list[str] = []
    judge: str = "gate"
    dtype: str = ""
    probe: str = ""
    seen: FileRef | None = None
    test_rows: FileRef | None = None
    scores: FileRef | None = None
    live_quality: str = "known"
    warnings: list[str] = []
    superior: bool = False
    newest_row_ms: int = 0
    changed_at: int = 0


class ReviewRequested(Event, frozen=True, kw_only=True):
    """Asks the gate to look back on a promotion: `previous` (0 = the base) answers what was asked of `version` since.

    `data` are the shards written since `since_ms` (Unix ms), `epoch` the state that it is about; `look` counts the
    reviews of this version from 1. `live_quality` is its share right by feedback (None: not known).
    """

    review_id: str
    version: int
    previous: int
    epoch: int
    look: int
    since_ms: int
    data: ShardSet
    live_quality: float | None = None


class ReviewReached(Event, frozen=True, kw_only=True):
    """What a look back on a promotion found. `worse`: it is surely worse than what served before, and is undone.

    `failed`: the check could not be carried out.
    """

    review_id: str
    version: int
    previous: int
    epoch: int
    worse: bool
    reason: str
    checks: list[Check]
    judge: str = "gate"
    failed: bool = False
    seconds: float = 0.0


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One numbered version of a model: an adapter on a base, and its lineage.

    `status` is serving | retired | numbered (it has a number, and does not serve). `erasures` names those that removed
    rows it had learned from. `superior`: it was shown to be better than what served before it, so that later ones are
    held against it (the anchor).
    """

    version: int
    digest: str
    path: str
    base: Name
    base_digest: str
    job_id: str
    fingerprint: list[float]
    new_data: ShardSet
    replay_data: ShardSet | None = None
    correlation_id: str = ""
    drift_id: str = ""
    status: str = "serving"
    erasures: list[str] = []
    dtype: str = ""
    probe: str = ""
    seen: FileRef | None = None
    superior: bool = False
    newest_row_ms: int = 0


class ModelStateChanged(Event, frozen=True, kw_only=True):
    """The whole state of one model after a change; 0 stands for "none" (the base answers).

    `held` is why a person holds it ("" = it is not held).
    """

    base: Name
    epoch: int
    champion: int
    previous: int
    challenger: int = 0
    shares: dict[str, float] = {}
    versions: list[Version]
    change: str
    reason: str
    held: str = ""


class BaseRegistered(Event, frozen=True, kw_only=True):
    """A base model stands in the artifact store; here `model` is the base's own name."""

    path: str
    digest: str
    architecture: str
    parameters: int
    context_tokens: int


class BaseAddRequested(Event, frozen=True, kw_only=True):
    """Asks the registry to take in a base whose files already stand in the artifact store."""

    path: str
    digest: str
    architecture: str
    parameters: int
    context_tokens: int
    actor: str = ""


class RollbackRequested(Event, frozen=True, kw_only=True):
    """Asks the registry to serve `to_version` again (0 = the base, -1 = the previous champion).

    `epoch` is the state the asker looked at; a stale one is refused. -1 = whatever stands.
    """

    to_version: int = -1
    epoch: int = -1
    reason: str = ""
    actor: str = ""


class TrainingRequested(Event, frozen=True, kw_only=True):
    """A person asks for a job now, whatever the drift detector says.

    `from_base`: train from the base on all there is, instead of going on from the production adapter (so that it
    knows nothing of what was erased). `accept` is what the gate asks for ("" = better; `no worse`).
    """

    reason: str = ""
    from_base: bool = False
    accept: str = ""
    actor: str = ""


class DecisionMade(Event, frozen=True, kw_only=True):
    """One line of the registry's history: promoted | refused | failed | void | superseded | deferred | rolled-back |
    base-added | held | resumed | command-refused.

    `failed`: the check could not be carried out. `superseded`: judged against a version that serves no more.
    `deferred`: it passed while the model was held.

    `deletes` are the paths of adapters whose files go with it: no version has them, or none any longer.
    """

    decision: str
    reason: str
    version: int = 0
    previous: int = 0
    digest: str = ""
    job_id: str = ""
    drift_id: str = ""
    epoch: int = 0
    deletes: list[str] = []
    actor: str = ""


class SharesSet(Event, frozen=True, kw_only=True):
    """How requests by alias are shared out from now on: a share of 1 by version, which sum to 1; `rule` decided it."""

    shares: dict[str, float]
    epoch: int
    rule: str = ""
    reason: str = ""
    actor: str = ""


class ModelConfigure(Event, frozen=True, kw_only=True):
    """Asks the registry to hold this policy for the model: a JSON object as text (`schemas.policy.ModelPolicy`).

    `epoch` is the policy that the asker looked at; a stale one is refused. -1 = whatever stands.
    """

    policy: str
    epoch: int = -1
    reason: str = ""
    actor: str = ""


class ModelConfigured(Event, frozen=True, kw_only=True):
    """The whole policy of a model in force since `epoch`, a JSON object as text."""

    policy: str
    epoch: int
    actor: str = ""


class AdapterLoaded(Event, frozen=True, kw_only=True):
    """A serving replica took a version into service, or says why it could not and what it serves instead."""

    version: int
    digest: str
    replica: str
    loaded: bool
    reason: str = ""
    seconds: float = 0.0


# --- usage and monitoring ---------------------------------------------------------------------------


class RequestEnded(Event, frozen=True, kw_only=True):
    """One request, however it ended; without words, and of nobody. `status` is HTTP's, `error` OpenAI's error code."""

    request_id: str
    status: int
    inference_id: str = ""
    version: int = 0
    requested: str = ""
    error: str = ""
    finish_reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float = 0.0
    first_token_ms: float = 0.0
    latency_ms: float = 0.0
    streamed: bool = False
    replica: str = ""


class ShadowAnswered(Event, frozen=True, kw_only=True):
    """What another version would have answered to a request that was answered by the serving one; nobody was told."""

    inference_id: str
    version: int
    digest: str = ""
    subject_id: str
    conversation_id: str = ""
    answer: str
    finish_reason: str = ""
    output_tokens: int = 0
    latency_ms: float = 0.0
    replica: str = ""


class InferenceServed(Event, frozen=True, kw_only=True):
    """One answer given to an application, with what it took.

    `finish_reason` is `cancelled` where it was cut off by whoever asked: what there is of it was said all the same.
    """

    inference_id: str
    version: int
    requested: str
    base: Name
    digest: str = ""
    subject_id: str
    conversation_id: str
    messages: list[Message]
    answer: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    latency_ms: float
    first_token_ms: float
    streamed: bool = False
    temperature: float = 0.0
    max_tokens: int = 0
    replica: str = ""
    labels: dict[str, str] = {}


class FeedbackGiven(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an application's user said of one answer.

    `metric_name` is a metric configured for the model (a boolean or a number), or `demonstration` (the
    right answer) or `preferred` (a better answer). It carries no model: the join knows it by `inference_id`.

    It is known by (inference_id, feedback_id): the same value again is a retry, and the first time holds; another value
    is a correction, and the newest `said_ms` holds (Unix ms; 0 = when the record came). `author` is whoever says it,
    where that is not the subject; `episode` what the answer was one step of.
    """

    inference_id: str
    metric_name: str
    value: bool | int | float | str
    feedback_id: str = ""
    subject_id: str = ""
    conversation_id: str = ""
    tags: dict[str, str] = {}
    author: str = ""
    said_ms: int = 0
    episode: str = ""


class PerformanceMeasured(Event, frozen=True, kw_only=True):
    """How one version does: over the last day and, `recent`, over the latest answers of the latest people.

    Quality is of people: the mean of each person's share of right answers, with bounds as of so many people. `_n`
    counts scored answers, `_people` whose they are. Requests that name a version are no live traffic and not in these.
    """

    version: int
    metric: str
    requests: int
    feedback_share: float
    quality_n: int
    quality_people: int = 0
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    recent_n: int = 0
    recent_people: int = 0
    recent_quality: float | None = None
    recent_low: float | None = None
    recent_high: float | None = None
    rating: float | None = None
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None


class DriftDetected(Event, frozen=True, kw_only=True):
    """Live quality of a version fell below its own baseline; `drift_id` is the same on every replay.

    `answers` were looked at; `people` gave those since the fall that counted (`streams.monitor.detector`).
    `changed_at` is when the fall most likely began (Unix ms), `policy_epoch` the policy it was judged by.
    """

    drift_id: str
    version: int
    metric: str
    baseline: float
    threshold: float
    current: float
    evidence: float
    average_run_length: float
    answers: int
    people: int = 0
    changed_at: int = 0
    policy_epoch: int = 0
    first_partition: int
    first_offset: int


class AlertSent(Event, frozen=True, kw_only=True):
    """Somebody was told: which alert, how grave (info | warning | critical), by which channel, in which words."""

    alert: str
    severity: str
    channel: str
    text: str
    alert_id: str
    resolved: bool = False


class ErasureRequested(msgspec.Struct, frozen=True, kw_only=True):
    """A person asks to be forgotten, with whatever came and may still come under this subject id.

    `subject_hash` is the keyed hash by which late records are recognised, `erasure_id` follows from it. Once all is
    gone the request is said again without `subject_id` and `requested_by`, under the same key, so that compaction takes
    those too; then
    `inferences` is the path of a JSON array of the ids of the subject's inferences, for what comes late. `key_id` says
    under which identity secret the hash was made.
    """

    erasure_id: Name
    subject_hash: Name
    key_id: Name
    subject_id: str = ""
    requested_by: str = ""
    inferences: str = ""


class TaughtBy(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that learned from rows that are erased now; `version` is 0 for a candidate without a number yet."""

    model: Name
    version: int
    digest: str


class ErasureCompleted(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt: nothing of the subject is left in topics, shards, tables or their files on disk.

    `tombstones` counts records by topic; `shards` and `rows` what was rewritten; `adapters` learned from those rows;
    `jobs` were under way with them: what trained on them is void, or serves marked. `deleted`
    counts adapters that no candidate had named, `log_places` the places in local logs that were overwritten.
    """

    erasure_id: Name
    subject_hash: Name
    tombstones: dict[str, int]
    shards: int
    rows: int
    adapters: list[TaughtBy] = []
    jobs: list[str] = []
    deleted: int = 0
    log_places: int = 0
    seconds: float = 0.0


EVENTS: tuple[type[msgspec.Struct], ...] = (
    RecordSubmitted,
    ShardWritten,
    SubjectShared,
    TriggerOpened,
    TriggerClosed,
    JobRequested,
    JobDeferred,
    JobControlRequested,
    TriggerCloseRequested,
    HoldRequested,
    JobProgressed,
    JobEnded,
    CandidateTrained,
    VerdictReached,
    ReviewRequested,
    ReviewReached,
    ModelStateChanged,
    BaseRegistered,
    BaseAddRequested,
    RollbackRequested,
    TrainingRequested,
    DecisionMade,
    SharesSet,
    ModelConfigure,
    ModelConfigured,
    AdapterLoaded,
    RequestEnded,
    ShadowAnswered,
    InferenceServed,
    FeedbackGiven,
    PerformanceMeasured,
    DriftDetected,
    AlertSent,
    ErasureRequested,
    ErasureCompleted,
)
BY_NAME: dict[str, type[msgspec.Struct]] = {event.__name__: event for event in EVENTS}
