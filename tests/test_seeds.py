from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from degaml_kedro.common.seeds import derive_seed


@given(st.integers(0, 2**63 - 1), st.lists(st.text(), max_size=4))
def test_is_a_63_bit_number_that_depends_on_the_arguments_alone(seed, names):
    derived = derive_seed(seed, *names)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *names)


@given(st.integers(0, 1000), st.text(min_size=1), st.text(min_size=1))
def test_names_are_kept_apart(seed, first, second):
    assert derive_seed(seed, first, second) != derive_seed(seed, first + second)
    assert derive_seed(seed, first) != derive_seed(seed + 1, first)


def test_value_stays_the_same_over_versions():
    # a change here changes every number of every profile
    assert derive_seed(999, "capitals", "train") == 2022634937696012018
