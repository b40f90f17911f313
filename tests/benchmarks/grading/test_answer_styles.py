r"""Tests of answers in the styles of today's models, with traps: conditions behind a value, other languages,
several choices, dates, JSON, colours, programs in chats. Tables of completion and gold answer, by kind."""

import pytest

from distill.benchmarks import gsm8k
from distill.benchmarks.grading import answers, numeric, programs
from distill.benchmarks.grading.equivalence import compare
from distill.data.thoughts import without_thinking
from distill.data.trace import Example

pytest.importorskip("math_verify")


def is_right(kind: str, completion: str, gold: str) -> bool:
    """Grade a number, or mathematics as `MathJudge` does but in this process."""
    if kind.endswith("numbers"):
        right = {grade(Example("0", "", gold), completion).correct for grade in (gsm8k.grade, numeric.grade)}
        assert len(right) == 1
        return right.pop()
    said = without_thinking(completion)
    answer, rule = answers.extract(said or "", expressions=True)
    several = answers.several_boxes(said or "") if rule == "boxed" else []
    return answer is not None and any(compare(gold, one)[0] for one in (answer, *several))


_RIGHT = {
    "remarks, numbers": [
        ("### Step 1\nShe has 50 apples.\n\n### Step 2\nShe gives away 8.\n\n**Total: 42 apples**\n\n"
         "*Note: step 1 used 50.*", "42"),
        ("So she has 42 apples.\n\n**Check:** 42 + 8 = 50 ✓", "42"),
        ("Verification: 50 - 8 = 42.\nSo the answer must be 42 apples.", "42"),
        ("Note: she starts with 50. She gives 8 away. She has 42 left.", "42"),
        ("(Note: 1 hour = 60 minutes.) So half an hour is 30 minutes.", "30"),
        ("It is 100/3 = 33.33, or approximately 33 apples.", "33"),
        ('```json\n{"steps": [1, 2], "answer": "9"}\n```', "9"),
    ],
    "remarks, mathematics": [
        (r"The area is $3\pi$ (about $9.42$).", r"3\pi"), ("So, in the end, **Ann** wins the race.", "Ann"),
        (r'{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),
    ],
    "boxes, numbers": [
        (r"\boxed{7^{\text{th}}}", "7"), (r"\boxed{5\text{ thousand}}", "5000"), (r"\boxed{|-7|}", "7"),
        (r"\boxed{\lfloor 8.7 \rfloor}", "8"), (r"\boxed{\binom{4}{2}}", "6"),
        (r"\boxed{\frac12} or \boxed{0.5}", "0.5"), (r"\boxed{a = 3, b = 4, a + b = 7}", "7"),
        (r"\boxed{n = 2^3 = 8}", "8"), (r"\boxed{x = 1,200}", "1200"), (r"\boxed{2^{\text{nd}}}", "2"),
        (r"\boxed{3 \text{ million}}", "3000000"), (r"\boxed{3 \text{ million}}", "3"),
        (r"\boxed{\text{4 fewer than Tom}}", "4"),
    ],
    "boxes, mathematics": [
        (r"\boxed{y = 2,\ x = 1}", "(1,2)"), (r"$\boxed{\frac{1}{2}}$, or $\boxed{0.5}$", "0.5"),
        (r"\boxed{x+11} or \boxed{11+x}", "x+11"), (r"$\boxed{5}$ or $\boxed{6}$", "5,6"),
        (r"\boxed{y=3, x=2}", "(2,3)"), (r"\boxed{m = 2, b = 3}", "(2,3)"), (r"\boxed{x=3, y=2}", "2,3"),
        (r"\boxed{\begin{aligned} x &= 1 \\ y &= 2 \\ z &= 3 \end{aligned}}", "(1,2,3)"),
        (r"\boxed{\begin{aligned} x &= 3+4 \\ &= 7 \end{aligned}}", "7"),
        (r"\boxed{\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}}",
         r"\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}"),
        (r"\boxed{2 - 1j}", "2-i"),
    ],
    "conditions, numbers": [
        ("The answer is $48 (or $4 a month for 12 months).", "48"),
        ("The answer would be 12, but we have to subtract 2, so it is 10.", "10"),
        ("It would take him 30 days at a rate of 4 pages per day.", "30"),
        ("She got 8 out of 10, which is 80%.", "80"), ("There are 12 red, whereas 5 are blue.", "12"),
        ("We need 3 + 2 = 5 boxes, while 4 would be too few.", "5"),
        ("Distance = 20 × 3 = 60 miles at a speed of 20 mph.", "60"), ("So it isn't 8; it's 7.", "7"),
    ],
    "conditions, mathematics": [
        (r"\boxed{k \text{ is at most } 3}", r"(-\infty,3]"), (r"\boxed{\log_e 2}", r"\ln 2"),
        (r"\boxed{n^2+n \text{ for all } n \ge 1}", "n(n+1)"),
        (r"\boxed{n^2 + n, \quad n \in \mathbb{N}}", "n(n+1)"),
        (r"\boxed{f(x) = x+1 \text{ for all } x \in \mathbb{R}}", "f(x)=x+1"),
        (r"\boxed{x = n\pi \ (n \in \mathbb{Z})}", r"k\pi, k\in\mathbb{Z}"),
        (r"Therefore, $P = \frac{2}{5}$, i.e. 40%.", r"\frac{2}{5}"),
        ("So the smallest possible value of $n$ is $17$, attained when $m = 3$.", "17"),
        ("Thus $n = 17$ works, while $n = 16$ does not.", "17"),
        (r"The area is $12\pi$ square centimeters, or about $37.7$ cm².", r"12\pi"),
        ("The minimum is $9$, achieved when $x = 3$.", "9"), ("The minimum occurs when $x = 3$.", "x=3"),
        ("When $x = 3$, the value is $6$.", "6"),
        ("The number of regions is $n^2$ for $n = 5$ and above.", "n^2"),
        (r"\boxed{x+1 \text{ for all } x \neq 1}", "x+1"), (r"\boxed{7 \text{ (when } n = 2)}", "7"),
        (r"\boxed{x = \frac{\pi}{4} + n\pi, n \in \mathbb{Z}}", r"\frac{\pi}{4}+k\pi"),
    ],
    "languages, numbers": [
        ("La réponse est 42, car on en donne 8.", "42"), ("Ответ: 42 яблока, потому что 8 отдали.", "42"),
        ("Die Antwort lautet 42, weil 8 weg sind.", "42"),
        ("Por lo tanto, la respuesta es 12 (4 x 3).", "12"), ("답은 12개입니다. 4 x 3 = 12.", "12"),
        ("答えは12です。3人に分けます。", "12"), ("La risposta è 12.", "12"),
    ],
    "languages, mathematics": [
        (r"La respuesta final es $\frac{1}{2}$.", r"\frac{1}{2}"), ("La bonne réponse est B.", "B"),
        ("La respuesta correcta es la B.", "B"), ("Die richtige Antwort ist B.", "B"),
        ("Правильный ответ: B.", "B"), ("答案选D", "D"), ("正确答案为 **D**。", "D"), ("因此选 D。", "D"),
    ],
    "marks of other models, numbers": [
        ("We find 5 and 7, so <|begin_of_box|>12<|end_of_box|>", "12"),
    ],
    "marks of other models, mathematics": [
        ("The answer is <|begin_of_box|>12<|end_of_box|>.", "12"),
    ],
    "choices, mathematics": [
        (r"\boxed{\text{A and C}}", "A,C"), (r"\boxed{\text{A and C}}", "AC"), (r"\boxed{AC}", "A,C"),
        (r"\boxed{A, C, D}", "ACD"), ("The correct options are A, C and D.", "ACD"),
        ("Answer: A, C, D", "ACD"), ("**Correct choices: (B) and (D)**", "BD"),
        ("故选：C", "C"), ("故选C.", "C"),
        ('```json\n{"answer": "B"}\n```', "B"), ('```json\n{"reasoning": "6*7", "answer": 42}\n```', "42"),
        ("Statements B and D are correct.", "B,D"), (r"\boxed{\text{(A), (B), and (D)}}", "A,B,D"),
        (r"\boxed{ABD}", "A,B,D"), (r"\boxed{\text{A; B; D}}", "ABD"),
        ("B and D are wrong, so C is correct.", "C"), ("Eliminating A and B, the answer is C.", "C"),
        ("**A** is wrong; **C** is right.", "C"), ('{"reason": "A fails", "final_answer": "B"}', "B"),
        (r"\boxed{AB}", "AB"), ("The answer is B and the reason is that A fails.", "B"),
        ("The answer is (B), not (C).", "B"),
    ],
    "complex numbers with j, mathematics": [
        (r"\boxed{3+5i}", "3+5j"), (r"\boxed{3+5j}", "3+5i"), (r"\boxed{5j + 3}", "3+5i"),
        ("The answer is (-2+3j).", "-2+3i"), (r"\boxed{1 + j\sqrt{2}}", r"1+\sqrt{2}i"),
        (r"\boxed{3i+5}", "3j+5"),
    ],
    "dates and words, numbers": [
        ("In May he sold 16 cars.", "16"),
    ],
    "dates and words, mathematics": [
        (r"\boxed{\text{on Tuesday}}", r"\text{Tuesday}"), (r"\boxed{\text{March 4th}}", r"\text{March 4}"),
        (r"\boxed{\text{4th of March}}", r"\text{March 4}"),
        (r"The function is even. \boxed{\text{even function}}", r"\text{even}"),
        (r"\boxed{\text{neither even nor odd}}", r"\text{neither}"),
        ("Therefore, **Navin** is the person who sits next to Lily.", r"\text{Navin}"),
        (r"\boxed{\text{1 January 2020}}", r"\text{January 1, 2020}"),
        (r"\boxed{\text{July 4th, 1776}}", r"\text{July 4, 1776}"),
        (r"\boxed{\text{Monday, July 4}}", r"\text{July 4}"),
        (r"\boxed{\text{25 December}}", r"\text{Dec. 25}"), ("The answer is June 5.", r"\text{June 5}"),
        (r"\boxed{\text{In May he sold 16 cars}}", "16"), (r"\boxed{\text{May 1984}}", "1984"),
    ],
    "formats, mathematics": [
        (r"\boxed{\color{blue}{5}}", "5"), (r"\boxed{\color{red}5}", "5"),
        (r"\boxed{\textcolor{blue}{5}}", "5"), (r"\boxed{5\checkmark}", "5"),
        (r"\boxed{\begin{aligned} x = 5 \end{aligned}}", "5"),
        (r"\boxed{\begin{cases} x = 5 \\ y = 6 \end{cases}}", "5,6"),
        (r"\boxed{\begin{cases} x = 5 \\ y = 6 \end{cases}}", "(5,6)"),
        (r"\[ \boxed{x = 5 \quad (\text{since } x > 0)} \]", "5"), (r"\boxed{5\ (\text{at } x = 3)}", "5"),
        (r"\boxed{\#5}", "5"), (r"\boxed{\bbox[yellow]{5}}", "5"),
    ],
}  # fmt: skip
_WRONG = {
    "remarks, numbers": [
        ("So she has 42 apples.\n\n**Check:** 42 + 8 = 50 ✓", "50"),
        ('```json\n{"answer": "9", "steps": [1, 2]}\n```', "2"),
    ],
    "remarks, mathematics": [
        (r"The area is $3\pi$ (about $9.42$).", "9.42"), ("So, in the end, **Ann** wins the race.", "Bob"),
    ],
    "boxes, numbers": [
        (r"\boxed{x=12, y=5}", "5"), (r"either \(\boxed{5}\) or \(\boxed{6}\)", "5"),
        (r"either \(\boxed{5}\) or \(\boxed{6}\)", "6"), (r"\boxed{a = 3 \text{ and } b = 4}", "4"),
        (r"\boxed{2^{\text{nd}}}", "3"), (r"\boxed{\text{fewer than 4}}", "4"),
    ],
    "boxes, mathematics": [
        (r"Thus $x=\boxed{2}$ or $x=\boxed{3}$.", "3"), (r"\boxed{y = 2,\ x = 1}", "(2,1)"),
        (r"\boxed{y=3, x=2}", "(3,2)"),
        (r"\boxed{\begin{aligned} x &= 1 \\ z &= 2 \\ y &= 3 \end{aligned}}", "(1,2,3)"),
        (r"\boxed{x}", r"\begin{cases} x & x>0 \\ -x & x \le 0 \end{cases}"), (r"\boxed{2 + 1j}", "2-i"),
        (r"\boxed{2\mathbf{i}+\mathbf{j}}", r"2\mathbf{i}-\mathbf{j}"), (r"\boxed{1+2k}", "1+2j"),
    ],
    "conditions, numbers": [
        ("The answer is between 5 and 6.", "6"), ("The answer is less than 5.", "5"),
        ("The answer isn't 5.", "5"),
        ("The answer would be 12, but we have to subtract 2, so it is 10.", "12"),
        ("It would take him 30 days at a rate of 4 pages per day.", "4"),
        ("So it isn't 8; it's 7.", "8"),
    ],
    "conditions, mathematics": [
        ("So the smallest possible value of $n$ is $17$, attained when $m = 3$.", "3"),
        ("Thus $n = 17$ works, while $n = 16$ does not.", "16"),
        (r"The area is $12\pi$ square centimeters, or about $37.7$ cm².", "37.7"),
        ("The minimum is $9$, achieved when $x = 3$.", "3"), ("When $x = 3$, the value is $6$.", "3"),
        (r"\boxed{x-1 \text{ for all } x \neq 1}", "x+1"), (r"\boxed{7 \text{ (when } n = 2)}", "2"),
        (r"\boxed{\frac{\pi}{4} + 2n\pi, n \in \mathbb{Z}}", r"\frac{\pi}{4}+k\pi, k \in \mathbb{Z}"),
    ],
    "languages, numbers": [
        ("La réponse est 42, car 50 - 8 = 42.", "8"), ("La réponse est 42, car on en donne 8.", "8"),
        ("Ответ: 42 яблока, потому что 8 отдали.", "8"), ("Die Antwort lautet 42, weil 8 weg sind.", "8"),
        ("Respuesta: 42 manzanas (50 menos 8).", "8"), ("Por lo tanto, la respuesta es 12 (4 x 3).", "3"),
        ("答えは12です。3人に分けます。", "3"),
    ],
    "languages, mathematics": [
        ("La respuesta correcta es la B.", "A"), ("故选D，不选A。", "A"),
    ],
    "marks of other models, numbers": [
        ("<|channel|>analysis<|message|>We need 9.<|end|><|start|>assistant<|channel|>final"
         "<|message|>**4** apples<|return|>",
         "9"),

    ],
    "marks of other models, mathematics": [
        ("<think>Maybe it's \\boxed{5}.</think>\n\nThe answer is \\boxed{4}.", "5"),
        ("<think>\nSo \\boxed{4}.\n", "4"),
        (r"<thinking>0.25?</thinking><answer>\frac12</answer>", r"\frac{1}{4}"),
        ("<|begin_of_box|>12<|end_of_box|>", "13"),
    ],
    "choices, numbers": [
        ('{"answer": 42, "steps": 7}', "7"),
    ],
    "choices, mathematics": [
        (r"\boxed{\text{A and B}}", "A,C"), (r"\boxed{\text{A and C}}", "A"),
        (r"\boxed{\text{A and C}}", "C"), (r"\boxed{A}", "A,C"), (r"\boxed{A, C}", "ACD"),
        (r"\boxed{ABC}", "ACB"), ("The correct answers are A and C.", "C"),
        ("Both A and C are correct.", "A"), ("Both A and C are correct.", "C"),
        ("Looking at the options:\n\nA) 10\nB) 12\nC) 15\nD) 18\n\nThe correct answer is **C) 15**.", "B"),
        ("Option A is wrong because 3 > 2. Option B is wrong. Hence **option (C)**.", "A"),
        (r"The answer is $\boxed{\textbf{(D)}\ 36\pi}$.", "C"),
        ("The answer is (C) because A and B are false.", "A"), ("I would choose answer C, not D.", "D"),
        ("The answer is either A or B.", "B"), ("The answer is either A or B.", "A"),
        ("Answer: option B is incorrect, so it is C.", "B"), ("Statements B and D are correct.", "B"),
        ("Statements B and D are correct.", "D"), (r"\boxed{A, B}", "A,B,D"),
        ("B and D are wrong, so C is correct.", "D"), ("**A** is wrong; **C** is right.", "A"),
        ('{"reason": "A fails", "final_answer": "B"}', "A"), (r"\boxed{\overline{AB}}", "AB"),
        (r"\boxed{\text{ABC}}", "BAC"),
    ],
    "complex numbers with j, mathematics": [
        (r"\boxed{3-5j}", "3+5i"), (r"\boxed{2\mathbf{i}+\mathbf{j}}", r"\mathbf{i}+2\mathbf{j}"),
        (r"\boxed{5j+3}", "3j+5"),
    ],
    "dates and words, mathematics": [
        (r"\boxed{\text{Thursday}}", r"\text{Tuesday}"),
        ("The answer is Tuesday, not Wednesday.", r"\text{Wednesday}"),
        (r"\boxed{\text{March 5}}", r"\text{March 4}"), (r"\boxed{\text{May 4}}", r"\text{March 4}"),
        (r"\boxed{4}", r"\text{March 4}"), (r"\boxed{\text{True}}", r"\text{yes}"),
        (r"\boxed{\text{even function}}", r"\text{odd}"), (r"\boxed{\text{parabola}}", r"\text{hyperbola}"),
        (r"\boxed{10:30 \text{ PM}}", r"10\text{:}30\text{ a.m.}"),
        (r"\boxed{\text{January 2, 2020}}", r"\text{January 1, 2020}"),
        (r"\boxed{\text{July 14}}", r"\text{July 4}"),
        (r"\boxed{\text{July 4, 1777}}", r"\text{July 4, 1776}"),
        ("The answer is **July 5**.", r"\text{June 5}"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", _RIGHT)
def test_the_styles_of_models_are_read(kind: str) -> None:
    assert [case for case in _RIGHT[kind] if not is_right(kind, *case)] == []


@pytest.mark.parametrize("kind", _WRONG)
def test_what_stands_beside_an_answer_is_wrong(kind: str) -> None:
    assert [case for case in _WRONG[kind] if is_right(kind, *case)] == []


_CODE = "def add(a, b):\n    return a + b"
_OTHER = "def add(a, b):\n    return a - b"
_PROMPT = 'def add(a: int, b: int) -> int:\n    """Add."""\n'
_PROGRAMS = [
    f"{_CODE}<|im_end|>", f"```python\n{_CODE}\n```<|eot_id|>",
    f"```python\n{_CODE}\n```<｜end▁of▁sentence｜>",
    "    return a + b<|endoftext|>", f"    return a + b<|endoftext|>{_OTHER}", f"```python\n{_CODE}\n```</s>",
    f"<pre><code>{_CODE}</code></pre>", f'<pre><code class="language-python">{_CODE}</code></pre> It adds.',
    "> ```python\n> def add(a, b):\n>     return a + b\n> ```", f"```python {_CODE}\n```",
    "```python\ndef add(a, b):\n\u00a0\u00a0\u00a0\u00a0return a + b\n```",
    f"```python\n{_OTHER}\n```\nFixed:\n```python\n{_CODE}\n```<end_of_turn>",
    "def add(a, b):\n    '<|user|> </s> <code>'\n    return a + b",
]  # fmt: skip
_NO_PROGRAMS = [
    f"{_OTHER}<|im_end|>{_CODE}", f"```python\n{_CODE}\n```\n"
    "> ```python\n> def add(a, b):\n>     return a - b\n> ```",
    f"<pre><code>{_OTHER}</code></pre>",
]  # fmt: skip


def _adds(completion: str) -> bool:
    program = programs.find_program(completion, "add", _PROMPT)
    names: dict[str, object] = {}
    if program is not None:
        exec(program.source, names)
    return program is not None and names["add"](1, 2) == 3  # type: ignore[operator]


def test_programs_are_found_in_the_formats_of_chats() -> None:
    assert [text for text in _PROGRAMS if not _adds(text)] == []
    assert [text for text in _NO_PROGRAMS if _adds(text)] == []
