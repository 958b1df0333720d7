"""Guides do what they say: all blocks of a guide are run in order, in one folder, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import GUIDES, follow, like_a_clone, misses

LONG = {"many-gpus", "deployment", "one-gpu"}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem in LONG)) for page in GUIDES])
def test_a_guide_can_be_followed(page, tmp_path):
    follow(page, like_a_clone(tmp_path))


GUIDE = """
```sh
echo 3 layers, 12.5 ms
```

```text
{answer}
```

```python later.py
print("never run here")
```

```sh{ends}
{command}
```
"""


def guide(folder: Path, answer: str = "3 layers, … ms", command: str = "python later.py", ends: str = "") -> Path:
    page = folder / "page.md"
    page.write_text(GUIDE.format(answer=answer, command=command, ends=ends), encoding="utf-8")
    return page


def test_a_guide_that_is_wrong_is_seen(tmp_path):
    follow(guide(tmp_path), tmp_path)
    follow(guide(tmp_path, command="false", ends=" exit 1"), tmp_path)
    for wrong in (dict(answer="4 layers, … ms"), dict(command="false"), dict(command="true", ends=" exit 1"), dict(command="cat no.file | cat")):
        with pytest.raises(AssertionError):
            follow(guide(tmp_path, **wrong), tmp_path)


def test_answers_are_compared_line_by_line_and_in_order():
    assert misses("a … c\nd", "a b c\nx\nd") == [] and misses("d\na … c", "a b c\nd") == ["a … c"]
    assert misses("b", "a b c") == ["b"] and misses("a.c", "abc") == ["a.c"]


def test_every_guide_stands_in_the_index_of_the_site():
    from tests.pages import DOCS

    listed = re.findall(r"^guides/(\S+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == [page.stem for page in GUIDES]
