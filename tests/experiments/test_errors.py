"""Errors of the commands, as users see them."""

import pytest

from experiments.system.errors import USER_ERROR, UserError, told_in_one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("bad\n  value"), "error: bad value"),
        (KeyError("no"), "error: 'no'"),
        (PermissionError(13, "Permission denied", "a.png"), "error: a.png: Permission denied"),
        (OSError("unknown"), "error: unknown"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as exit_, told_in_one_line(KeyError):
        raise error
    assert exit_.value.code == USER_ERROR
    assert capsys.readouterr().err == f"{line}\n"


def test_all_else_is_raised():
    with pytest.raises(ZeroDivisionError), told_in_one_line(KeyError):
        1 / 0  # noqa: B018
