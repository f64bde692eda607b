"""What a statement may use: names on a list pass, every other name is refused. Pure; in lower case.

The lists hold what reads and writes this server's own tables or makes up rows. A file, an address, a program, a
query within a string: nothing that leads to one is here. `allow_sources` in the settings adds names.
"""

from __future__ import annotations

import re

# Of `chdb.agents.safety.SAFE_TABLE_FUNCTIONS` those that take no query, no format and no table of another's choice:
# `format` evaluates expressions within a string, `loop` has no end, `merge` reaches tables by a pattern.
TABLE_FUNCTIONS = frozenset(
    {
        *("numbers", "numbers_mt", "zeros", "zeros_mt", "primes", "generateseries", "generate_series"),
        *("generaterandom", "null", "values", "sqlstandardvalues", "view", "dictionary"),
    }
)
TABLE_ENGINES = frozenset(
    {
        *("mergetree", "replacingmergetree", "summingmergetree", "aggregatingmergetree", "collapsingmergetree"),
        *("versionedcollapsingmergetree", "coalescingmergetree", "memory", "log", "tinylog", "stripelog", "null"),
        *("set", "join", "view", "materializedview", "dictionary"),
    }
)
DATABASE_ENGINES = frozenset({"atomic", "memory"})
# A dictionary may read a table of this server: `query` would be a statement within a string, `host` another server.
DICTIONARY_SOURCES = {"clickhouse": frozenset({"db", "table"}), "null": frozenset[str]()}

# Types of the engine's own parse tree, each with the word that a person writes.
READS = {
    "SelectWithUnionQuery": "SELECT", "SelectIntersectExceptQuery": "SELECT", "SelectQuery": "SELECT",
    "TablesInSelectQuery": "SELECT", "ExplainQuery": "EXPLAIN", "ShowTablesQuery": "SHOW", "ShowColumnsQuery": "SHOW",
    "ShowIndexesQuery": "SHOW", "UseQuery": "USE",
}  # fmt: skip
WRITES = {
    "InsertQuery": "INSERT", "CreateQuery": "CREATE", "CreateIndexQuery": "CREATE", "DropQuery": "DROP",
    "DropIndexQuery": "DROP", "RenameQuery": "RENAME", "AlterQuery": "ALTER", "OptimizeQuery": "OPTIMIZE",
    "DeleteQuery": "DELETE", "UpdateQuery": "UPDATE", "CheckTableQuery": "CHECK", "KillQueryQuery": "KILL",
}  # fmt: skip
DROPS = frozenset({"drop", "truncate"})  # DETACH is written as a kind of DROP
ALTERS = frozenset(
    {
        *("ADD_COLUMN", "DROP_COLUMN", "MODIFY_COLUMN", "RENAME_COLUMN", "COMMENT_COLUMN", "MATERIALIZE_COLUMN"),
        *("MODIFY_COMMENT", "MODIFY_ORDER_BY", "MODIFY_SAMPLE_BY", "REMOVE_SAMPLE_BY", "MODIFY_QUERY"),
        *("ADD_INDEX", "DROP_INDEX", "MATERIALIZE_INDEX", "ADD_CONSTRAINT", "DROP_CONSTRAINT"),
        *("ADD_PROJECTION", "DROP_PROJECTION", "MATERIALIZE_PROJECTION", "DROP_PARTITION", "DELETE", "UPDATE"),
        *("MODIFY_TTL", "MATERIALIZE_TTL", "REMOVE_TTL", "MODIFY_SETTING", "RESET_SETTING"),
    }
)

# Of the engine's scalar functions, some 1,900, those that reach files, the network, the process or other servers. A
# list of bad names, for the good ones are too many: a test fails when an engine brings functions that are not known.
REFUSED_FUNCTIONS = frozenset(
    {
        *("file", "catboostevaluate", "naivebayesclassifier", "naivebayesclassifierwithprob"),
        *("naivebayesclassifierwithallprobs", "hascolumnintable", "generateserialid", "showcertificate"),
        *("airedact", "aisimilarity", "aifilter", "aiclassify", "aiembed", "aiextract", "aigenerate", "aitranslate"),
        *("addresstoline", "addresstolinewithinlines", "addresstosymbol", "demangle", "logtrace", "tid", "buildid"),
        *("getmacro", "getserversetting", "getserverport", "tcpport", "zookeepersessionuptime", "getoskernelversion"),
        *("filesystemavailable", "filesystemcapacity", "filesystemunreserved", "fqdn", "fullhostname"),
        *("getclienthttpheader", "currentrequesturl", "currenthandler", "sleep", "sleepeachrow"),
    }
)
# Tables of the database `system` that show the machine, its files or its secrets instead of this server's tables.
REFUSED_SYSTEM_TABLES = frozenset(
    {
        *("certificates", "stack_trace", "symbols", "build_options", "server_settings", "macros", "dns_cache"),
        *("named_collections", "remote_data_paths", "user_directories", "zookeeper", "filesystem_cache"),
        *("jemalloc_profile_text", "jemalloc_sampled_allocations", "fail_points", "disks", "iceberg_files"),
    }
)
# Settings by how their names begin: of queries, of formats, of MergeTree tables.
SETTINGS = re.compile(
    r"max_|min_|(input|output)_format_|format_(csv|tsv|json|regexp|custom|binary|display|geojson)|date_time_|join_|any_join"
    r"|group_by_|optimize_|merge_tree_|query_plan_|query_cache_|enable_|use_|allow_(experimental|suspicious|non)"
    r"|insert_|async_insert|wait_|alter_|mutations_|replication_alter|lightweight_|apply_|session_timezone$|extremes$"
    r"|final$|limit$|offset$|short_circuit_|cast_|transform_null_in$|union_|intersect_|except_|prefer_|partial_|totals_"
    r"|count_|distinct_|data_type_|low_cardinality_|flatten_|asterisk_|empty_result|aggregate_|compile_|convert_"
    r"|decimal_|timeout_|priority$|interactive_delay$|send_(progress|timeout)|receive_timeout$|log_|throw_|function_|bool_"
    r"|interval_|(result|read|sort|set|transfer)_overflow_mode$|cross_|materialize|regexp_|rewrite_|describe_|text_|h3"
    r"|formatdatetime_|parsedatetime_|precise_|force_|read_|load_|exact_|fsync_|compatibility$|http_wait|deduplicate"
    r"|old_parts_|cleanup_|finished_mutations_|index_|ttl_|merge_|parts_to_|number_of_|deduplicat|assign_|check_"
    r"|opentelemetry_start_trace_probability$"
)
# Of those, by the words of a name: what changes the language, gives rights, holds an expression, or names a file, a
# disk, an address or a program. A few harmless ones are refused with them.
REFUSED_SETTINGS = re.compile(
    r"(^|_)(dialect|readonly|profile|ddl|introspection|implicit|additional|custom|registry|template|format_schema|fuzzer"
    r"|cluster|remote|distributed|replicas?|s3\w*|azure|hdfs|url|uri|paths?|files?|filesystem|disks?|storage"
    r"|credentials?|collections?|ai|python|udf|webassembly|keeper|zookeeper|shadow|headers?|security|roles?"
    r"|interpret_expressions)(_|$)"
)
# A reader's bounds would mean nothing if these could be set.
REFUSED_TO_READERS = re.compile(
    r"(^|_)(memory|timeout|max_execution|max_untracked|before_external|max_bytes_ratio|workload|overcommit)(_|$)"
)
