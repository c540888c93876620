"""Sessions of users outside the rounds of a platform: what Gymnasium environments step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simenv.errors import ConfigError

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

    Raises:
        ConfigError: the users talk, which takes rounds that all of them live through.
    """
    from agents.choice.model import ChoiceModel
    from agents.sessions.choice import ChoiceSessions
    from agents.sessions.model import ModelSessions

    if users.hears_friends:
        raise ConfigError(
            f"agent={users.name}: word of mouth goes from one round of a platform to the next, and sessions have none; "
            "expected agent.word_of_mouth=0 and agent.friends_told=0, or an experiment"
        )
    if isinstance(users, ChoiceModel) and users.answers_by_rule:
        return ChoiceSessions(users, n_rows, **options)
    return ModelSessions(users, n_rows, **options)
