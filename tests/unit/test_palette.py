"""Expert colours: fixed for shipped experts, distinct, and never running out."""

from loramixer.viz.palette import NAMED_COLOURS, NEUTRAL, expert_styles


def test_shipped_experts_keep_their_colours_in_any_order():
    styles = {style.name: style for style in expert_styles(["code", "math"])}
    assert styles["math"].colour == NAMED_COLOURS["math"]
    assert (styles["code"].letter, styles["math"].letter) == ("A", "B")


def test_other_experts_never_take_a_colour_that_is_in_use():
    styles = expert_styles(["mine", "math", "yours"])
    assert len({style.colour for style in styles}) == 3


def test_many_experts_have_letters_left():
    styles = expert_styles([f"e{index}" for index in range(30)])
    assert len({style.letter for style in styles}) == 30
    assert styles[-1].colour == NEUTRAL
