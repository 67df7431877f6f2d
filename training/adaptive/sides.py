"""Turn pairs round, so that targets learn to reason as queries do."""

from __future__ import annotations

from datasets import Dataset, concatenate_datasets

TURNED = " (target)"  # after the pair_id and the task of a pair that is turned round


def with_sides(pairs: Dataset, sides: str) -> Dataset:
    """
    Choose which side of the pairs of a table is the one that reasons.

    A pair that is turned round has the target for its query, and looks for the query among the queries of its task:
    of a task of its own, so that queries never compete with targets. Its hard negatives, which are targets, are left
    out.

    Args:
        pairs: a table with `query` and `target`, and optionally `pair_id`, `task` and `negatives`.
        sides: `"query"` for the pairs as they are, `"target"` for those turned round, `"both"` for one after another.

    Raises:
        ValueError: if pairs can't be turned round: the table has no queries, or stores them in another form than
            targets.
    """
    if sides == "query":
        return pairs
    if "query" not in pairs.column_names:
        raise ValueError(f"sides={sides!r} needs the column 'query' in each table of pairs; it is not there.")
    if "task" not in pairs.column_names:
        pairs = pairs.add_column("task", [""] * len(pairs))
    turned = pairs.rename_columns({"query": "target", "target": "query"})
    turned = turned.remove_columns([name for name in ("negatives",) if name in pairs.column_names])
    for name in {"pair_id", "task"}.intersection(pairs.column_names):
        values = [f"{value}{TURNED}" for value in pairs[name]]
        turned = turned.remove_columns([name]).add_column(name, values)
    if sides == "target":
        return turned
    if pairs.features["query"] != pairs.features["target"]:
        raise ValueError(
            "sides='both' puts queries and targets into one column, but they are stored in different forms: "
            f"{pairs.features['query']} and {pairs.features['target']}. Store both with the same keys and kinds."
        )
    return concatenate_datasets([pairs, turned])
