from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from hasspec.data.template import ChatTemplate
from hasspec.target import Target

LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} <|im_end|>{% endif %}{% endfor %}"
)
NO_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_TURN_ONLY = (
    "<|im_start|>user\n{{ messages[-1]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
)
USER = {"role": "user", "content": "Hi"}

Make = Callable[[str | None], ChatTemplate]


@pytest.fixture
def make(tiny_target: Target) -> Make:
    def build(chat_template: str | None) -> ChatTemplate:
        tokenizer = copy.deepcopy(tiny_target.tokenizer)
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        return ChatTemplate(Target.from_model(tiny_target.model, tokenizer, name="t"))

    return build


def test_around_a_user_turn(make: Make) -> None:
    template = make(None)
    assert template.text(template.user_opening()) == "<|im_start|>user\n"
    opening = template.text(template.user_opening("Be kind."))
    assert opening == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert template.user_stop_ids() == {2}


@pytest.mark.parametrize("answer", ["Hello", " Hello ", "a\nb", ""])
def test_going_on_after_an_answer(make: Make, answer: str) -> None:
    template = make(None)
    template.check_turns()
    head = template.prompt_ids([USER])
    messages = [USER, {"role": "assistant", "content": answer}, {"role": "user", "content": "Bye"}]
    whole = template.prompt_ids(messages)
    ended = template.encode(answer) + [2]
    assert head + ended + template.continuation([USER], ended, "Bye") == whole
    cut = template.encode(answer)
    assert head + cut + template.continuation([USER], cut, "Bye") == whole


def test_a_template_that_trims_and_ends_by_text(make: Make) -> None:
    template = make(LLAMA2)
    template.check_turns()
    ended = [*template.encode(" Hello"), 2]
    assert template.text(template.continuation([USER], ended, "Bye")) == "[INST] Bye [/INST]"
    with pytest.raises(ValueError, match="no special token"):
        template.user_stop_ids()


def test_templates_that_rewrite_earlier_turns_are_refused(make: Make) -> None:
    template = make(NO_REASONING)
    template.check_turns()
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        template.continuation([USER], template.encode("<think>hm</think>Hello"), "Bye")
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        make(LAST_TURN_ONLY).check_turns()


def test_a_template_that_raises_or_drops_the_system(make: Make) -> None:
    with pytest.raises(ValueError, match=r"refuses a conversation of roles \['user'\]: no users"):
        make("{{ raise_exception('no users') }}").render([USER])
    with pytest.raises(ValueError, match="drops the system message"):
        make(LAST_TURN_ONLY).user_opening("Be kind.")
    with pytest.raises(ValueError, match="shows a user turn 0 times"):
        make("<|im_start|>").user_opening()


def test_no_template(tiny_target: Target) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        ChatTemplate(Target.from_model(tiny_target.model, None, name="bare"))
