"""Reading the Procfile."""

import pytest

from api.local.procfile import ProcfileError, parse_procfile


def test_each_line_is_a_process_in_their_order() -> None:
    text = '# processes\nweb: exec serve --at "${HOST:-x}:1"\n\n  worker-2:run  --hostname "w-$$@%h" # 1 \nbeat: a: b\n'
    assert list(parse_procfile(text).items()) == [
        ("web", 'exec serve --at "${HOST:-x}:1"'),
        ("worker-2", 'run  --hostname "w-$$@%h" # 1'),
        ("beat", "a: b"),
    ]


@pytest.mark.parametrize("line", ["web", "web:", "web: ", "a b: c", ": run", "web: again"])
def test_a_line_that_is_no_process_is_refused_by_number(line: str) -> None:
    with pytest.raises(ProcfileError, match="Procfile, line 2: expected `name: command`, each name once"):
        parse_procfile(f"web: run\n{line}\n")
