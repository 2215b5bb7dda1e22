"""What is to become of rows in the target: rows added, a change feed's, or what differs.

Each has it in the column `CHANGE`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

from lakescore.tables.names import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

CHANGE, HASH = "_change", "text_hash"
# What steps of known rows are divided by, and the text where it is to be scored.
STEP, TEXT = "_step", "_text"
INSERT, UPDATE, DELETE = "insert", "update", "delete"
# Other columns changed and the text did not: they are carried over, and the scores stay.
REFRESH = "refresh"
# New scores for a row of the target, while its text is still the one that was scored.
RESCORE = "rescore"
# A key that the source has more than once.
DOUBLE = "double"
# A part of the change feed does not tell what became of a key; the source does.
UNSURE = "unsure"


def prepared(rows: "DataFrame", *, carried: Sequence[str], text: str) -> "DataFrame":
    """Return the columns that a micro-batch needs: those carried, the text, its hash, `CHANGE`."""
    from pyspark.sql import functions as F

    wanted = list(dict.fromkeys([*carried, text, CHANGE]))
    chosen = rows.select(*(F.col(quoted(name)) for name in wanted))
    return chosen.withColumn(HASH, F.xxhash64(quoted(text)))


def net_changes(
    feed: "DataFrame", key: Sequence[str], names: Sequence[str], *, partly: Collection[int]
) -> "DataFrame":
    """Return one row for each key in a part of a change feed: its last state, and its `CHANGE`.

    Of the table's columns it has those that are named, the key among them.

    A key whose rows were added once more than they were taken away is new, one whose rows were
    added as often was there before. An update that gives a row another key takes one key away and
    adds another. What else there is (a double that came or went, changes in one of the versions
    that are `partly` in other micro-batches) is `UNSURE`.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    # By position, as they may have any name.
    numbered = {name: f"column_{nth}" for nth, name in enumerate(names)}
    feed = feed.select(
        *(F.col(quoted(name)).alias(numbered[name]) for name in names),
        F.col("_change_type").isin("insert", "update_postimage").alias("is_added"),
        F.col("_commit_version").alias("version"),
    )
    of_key = Window.partitionBy(*(numbered[name] for name in key))
    latest = feed.withColumns(
        {
            "last": F.max("version").over(of_key),
            "is_part": F.max(F.col("version").isin(*partly)).over(of_key),
            "net": F.sum(F.when(F.col("is_added"), 1).otherwise(-1)).over(of_key),
        }
    ).where("version = last")
    counted = latest.withColumns(
        {
            "added": F.count_if("is_added").over(of_key),
            "nth": F.row_number().over(of_key.orderBy(F.col("is_added").desc())),
        }
    ).where("nth = 1")
    added, net = F.col("added"), F.col("net")
    change = (
        F.when(F.col("is_part"), UNSURE)
        .when((added == 0) & (net == -1), DELETE)
        .when((added == 1) & (net == 0), UPDATE)
        .when((added == 1) & (net == 1), INSERT)
        .otherwise(UNSURE)
    )
    return counted.select(
        *(
            # Of a row that is deleted nothing but the key goes on.
            (
                F.col(numbered[name]) if name in key else F.when(added > 0, F.col(numbered[name]))
            ).alias(name)
            for name in names
        ),
        change.alias(CHANGE),
    )


def resolved(unsure: "DataFrame", source: "DataFrame", key: Sequence[str]) -> "DataFrame":
    """Return what the source says of keys that a change feed is `UNSURE` of; others are left out.

    `source` is the table at the version at which the changes end.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    keys = [quoted(name) for name in key]
    others = [
        name for name in source.columns if name in unsure.columns and name not in (*key, CHANGE)
    ]
    asked = unsure.where(F.col(CHANGE) == UNSURE).select(*keys)
    # A row without a key is refused, if it is still there.
    same = same_key(key, or_null=True)
    # The number of a key's rows stands in `CHANGE` until it is known what that makes of them.
    there = source.select(*keys, *map(quoted, others)).alias("s")
    there = there.join(asked.alias("t"), same, "left_semi")
    there = there.withColumn(CHANGE, F.count(F.lit(1)).over(Window.partitionBy(*keys)))
    there = there.dropDuplicates([*key])
    found = asked.alias("t").join(there.alias("s"), same, "left")
    rows = F.col(f"s.{CHANGE}")
    change = F.when(rows.isNull(), DELETE).when(rows > 1, DOUBLE).otherwise(UPDATE)
    return found.select(
        *(F.col(f"t.{name}") for name in keys),
        *(F.col(f"s.{quoted(name)}") for name in others),
        change.alias(CHANGE),
    )


def differences(
    source: "DataFrame",
    target: "DataFrame",
    *,
    key: Sequence[str],
    carried: Sequence[str],
    versions: Mapping[str, str],
    with_deletes: bool,
) -> "DataFrame":
    """Return the rows of `source` (with `HASH` and `CHANGE`) in which the target is behind.

    `carried` are the columns that both have, `versions` the tasks' model versions. An `UPDATE` is
    an `INSERT` where the target lacks the key, left out where its text was scored by those
    versions, or a `REFRESH` where only another column changed; other changes stay what they are.
    A `DELETE` of a key that the target has not is left out. `with_deletes`, keys that only the
    target has are `DELETE`, their other columns null.
    """
    from pyspark.sql import functions as F

    def ours(name: str) -> "Column":
        return F.col(f"s.{quoted(name)}")

    def theirs(name: str) -> "Column":
        return F.col(f"t.{quoted(name)}")

    is_scored = ours(HASH).eqNullSafe(theirs(HASH)) & is_scored_by(versions, "t.model")
    others = [name for name in source.columns if name not in (*key, HASH, CHANGE)]
    is_same = F.lit(True)
    for name in set(carried) - set(key):
        kind = source.schema[name].dataType
        mine, its = (_comparable(side(name), kind) for side in (ours, theirs))
        is_same &= mine.eqNullSafe(its)
    change = (
        F.when(ours(CHANGE).isNull(), DELETE)
        # What came and went between two runs the target never had.
        .when((ours(CHANGE) == DELETE) & theirs(key[0]).isNull(), None)
        .when(ours(CHANGE) != UPDATE, ours(CHANGE))
        .when(theirs(key[0]).isNull(), INSERT)
        .when(~is_scored, UPDATE)
        .when(~is_same, REFRESH)
    )
    joined = source.alias("s").join(
        target.alias("t"), same_key(key), "full_outer" if with_deletes else "left"
    )
    columns = [F.coalesce(ours(name), theirs(name)).alias(name) for name in key]
    columns += [ours(name) for name in (*others, HASH)]
    return joined.select(*columns, change.alias(CHANGE)).where(F.col(CHANGE).isNotNull())


def same_key(key: Sequence[str], *, or_null: bool = False) -> "Column":
    """Tell rows `s` and `t` of the same key; with `or_null` two nulls are the same."""
    from pyspark.sql import functions as F

    sides = ((F.col(f"s.{quoted(name)}"), F.col(f"t.{quoted(name)}")) for name in key)
    return reduce(lambda a, b: a & b, (s.eqNullSafe(t) if or_null else s == t for s, t in sides))


def is_scored_by(versions: Mapping[str, str], model: str = "model") -> "Column":
    """Tell rows that were scored by these model versions, by their column `model`."""
    from pyspark.sql import functions as F

    same = (F.col(model)[task].eqNullSafe(F.lit(each)) for task, each in versions.items())
    return reduce(lambda a, b: a & b, same)


def _comparable(column: "Column", kind: "DataType") -> "Column":
    """Return a column that `=` takes: Spark compares no maps and no variants."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType, MapType, StructType

    name = kind.simpleString()
    if not re.search(r"\b(map<|variant\b)", name):
        return column
    if isinstance(kind, ArrayType):
        inner = kind.elementType
        return F.transform(column, lambda each: _comparable(each, inner))
    if isinstance(kind, MapType):
        value = kind.valueType
        entries = F.transform(
            F.map_entries(column),
            lambda each: F.struct(each["key"], _comparable(each["value"], value)),
        )
        return F.array_sort(entries)
    if isinstance(kind, StructType):
        fields = (_comparable(column[each.name], each.dataType) for each in kind)
        return F.when(column.isNotNull(), F.struct(*fields))
    return F.to_json(column)
