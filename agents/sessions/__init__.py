"""Sessions of users outside the rounds of a platform: what Gymnasium environments step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.base import UserModel
    from agents.sessions.base import Sessions

__all__ = ["open_sessions"]


def open_sessions(users: UserModel, n_rows: int, **options: Any) -> Sessions:
    """Rows in which these users can be served page by page.

    Args:
        users: a bound user model. A `ChoiceModel` that answers by its own rule is played in compiled passes, any other
            model is asked.
        n_rows: sessions at once.
        options: of `agents.sessions.base.Sessions`.
    """
    from agents.choice.model import ChoiceModel
    from agents.sessions.choice import ChoiceSessions
    from agents.sessions.model import ModelSessions

    if isinstance(users, ChoiceModel) and users.answers_by_rule:
        return ChoiceSessions(users, n_rows, **options)
    return ModelSessions(users, n_rows, **options)
