"""Logits of two models: what is rounding, and what is another model."""

import pytest
import torch

from helm_megatron.conversion.to_hf import TIMES_ROUNDING, ConversionError, compare

TRUTH = torch.linspace(-1, 1, 9, dtype=torch.float64).view(1, 3, 3)


def apart(expected, actual, exact=TRUTH):
    return compare("a", expected, "b", actual, lambda: exact)


def test_small_differences_are_rounding_without_a_question():
    def asked():
        pytest.fail("fp64 costs as much again")

    assert compare("a", TRUTH, "b", TRUTH + 5e-6, asked) == pytest.approx(5e-6)


def test_a_model_that_amplifies_rounding():
    """What fp32 costs it is measured, and both may be off by so much."""
    assert apart(TRUTH + 8e-5, TRUTH - 2e-5) == pytest.approx(1e-4, rel=1e-3)


def test_a_difference_that_is_not_rounding():
    off = 1e-6
    bound = TIMES_ROUNDING * off
    with pytest.raises(ConversionError, match="differ by 2.0e-05 .* at most 1e-05 is rounding"):
        apart(TRUTH + off, TRUTH + off + 2e-5)
    with pytest.raises(ConversionError, match="at most 2e-05 is rounding"):
        apart(TRUTH + off * 2.5, TRUTH - bound * 3)


def test_logits_that_are_no_numbers():
    with pytest.raises(ConversionError, match="differ by nan"):
        apart(TRUTH, TRUTH * torch.nan)


def test_without_fp64():
    with pytest.raises(ConversionError, match="at most 1e-05 is rounding"):
        compare("a", TRUTH + 8e-5, "b", TRUTH - 2e-5)
