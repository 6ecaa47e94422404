"""What `load_runs` must do whatever the numbers are."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.errors import InputError
from laws.runs import finished, load_runs

SIZES = st.floats(1e6, 1e12)
RATIOS = st.floats(0.1, 1e4)
LOSSES = st.floats(0.1, 20.0)
ROWS = st.lists(st.tuples(SIZES, RATIOS, LOSSES, st.sampled_from(["ok", "diverged", "failed"])), min_size=1, max_size=8)


def table(rows) -> pd.DataFrame:
    params, ratios, losses, status = (np.array(column) for column in zip(*rows))
    return pd.DataFrame({"params": params, "tokens": params * ratios, "loss": losses, "status": status})


@settings(deadline=None, max_examples=50)
@given(ROWS)
def test_plausible_tables_pass_unchanged_and_again(rows):
    given_table = table(rows)
    before = given_table.copy()
    runs = load_runs(given_table)
    pd.testing.assert_frame_equal(given_table, before)
    pd.testing.assert_frame_equal(runs[list(before)], before, check_dtype=False)
    pd.testing.assert_frame_equal(load_runs(runs), runs)
    assert len(finished(runs)) == (before["status"] == "ok").sum()


@settings(deadline=None, max_examples=50)
@given(ROWS, st.randoms())
def test_the_order_of_rows_and_columns_does_not_matter(rows, random):
    given_table = table(rows).assign(run_id=[str(i) for i in range(len(rows))])
    order, columns = list(range(len(rows))), list(given_table)
    random.shuffle(order)
    random.shuffle(columns)
    shuffled = load_runs(given_table.iloc[order][columns]).sort_values("run_id", ignore_index=True)
    straight = load_runs(given_table).sort_values("run_id", ignore_index=True)
    pd.testing.assert_frame_equal(shuffled[list(straight)], straight)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.sampled_from(["params", "tokens"]), st.sampled_from([1e9, 1e12]))
def test_counts_in_billions_or_trillions_are_refused(rows, column, unit):
    """Unless so many that they could be counts: a million and more of the unit."""
    given_table = table(rows)
    given_table[column] /= unit
    if given_table[column].max() < 1e3 or (given_table["tokens"] < 1e-3 * given_table["params"]).any():
        with pytest.raises(InputError) as caught:
            load_runs(given_table)
        assert "\n" not in str(caught.value) and "row " in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.sampled_from(["params", "tokens", "lr", "unique_tokens"]), st.sampled_from([0.0, -1.0, np.inf]))
def test_a_number_that_cannot_be_names_its_row(rows, column, bad):
    given_table = table(rows)
    given_table[column] = given_table.get(column, 1e-3 if column == "lr" else given_table["tokens"])
    given_table.loc[len(rows) - 1, column] = bad
    with pytest.raises(InputError, match=f"row {len(rows)}, {column} = {bad:g}"):
        load_runs(given_table)


@settings(deadline=None, max_examples=50)
@given(ROWS)
def test_sequences_for_tokens_are_refused(rows):
    given_table = table(rows).assign(seq_len=2048, batch_tokens=256)
    with pytest.raises(InputError, match=r"row 1, batch_tokens = 256: looks like sequences"):
        load_runs(given_table)
