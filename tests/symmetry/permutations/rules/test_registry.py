"""Every operation has one rule, and nothing registered for a while stays behind."""

import pytest

from lightning_rebasin.errors import RebasinError
from lightning_rebasin.symmetry.permutations.rules import (
    RULES,
    registry,
    views,
)
from lightning_rebasin.symmetry.permutations.rules.registry import (
    DuplicateRuleError,
    Registry,
    rule,
)


def body(ctx, op):
    return [op.label()]


def other(ctx, op):
    return []


def test_names_are_those_of_aten_unless_they_have_a_dot():
    rules = Registry()
    rules.add("relu  my.op", body)
    assert list(rules) == ["aten.relu", "my.op"] and len(rules) == 2


def test_a_rule_keeps_its_name_for_messages():
    rules = Registry()
    rules.add("relu", body)
    assert (rules["aten.relu"].__name__, rules["aten.relu"].__module__) == (
        "body",
        __name__,
    )


def test_registering_an_operation_twice_is_refused_and_says_where():
    rules = Registry()
    rules.add("relu gelu", body)
    with pytest.raises(
        DuplicateRuleError,
        match=r"aten\.gelu has a rule already: body in .*other in",
    ):
        rules.add("tanh gelu", other)
    # nothing of the refused call is left
    assert list(rules) == ["aten.relu", "aten.gelu"]
    with pytest.raises(RebasinError):
        rules.add("tanh tanh", other)


def test_the_decorator_refuses_what_the_package_knows():
    before = dict(RULES)
    with pytest.raises(
        DuplicateRuleError,
        match=r"aten\.contiguous has a rule already: view in",
    ):
        rule("contiguous")(body)
    assert dict(RULES) == before


def test_contiguous_is_a_view_and_not_a_pointwise_copy():
    assert RULES["aten.contiguous"].__wrapped__ is views.view


def test_a_rule_added_for_a_while_goes_even_after_an_error():
    rules = Registry()
    with rules.added("relu", body):
        assert "aten.relu" in rules
    with pytest.raises(ZeroDivisionError), rules.added("relu", body):
        _ = 1 / 0
    assert "aten.relu" not in rules


def test_adding_for_a_while_removes_no_other_rule():
    rules = Registry()
    rules.add("relu", body)
    with pytest.raises(DuplicateRuleError), rules.added("tanh relu", other):
        pass
    assert list(rules) == ["aten.relu"]


def test_the_package_has_a_rule_for_every_family():
    families = {
        function.__module__.rsplit(".", 1)[1] for function in RULES.values()
    }
    assert families == {
        "attention",
        "concatenation",
        "convolution",
        "images",
        "lookups",
        "normalisation",
        "order",
        "pointwise",
        "products",
        "reduction",
        "scatters",
        "slices",
        "stacking",
        "views",
        "writes",
    }
    assert registry.RULES is RULES
