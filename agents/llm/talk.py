"""Talk: posts to all friends and chats between two, in the words of a language model, a call each.

After a page a user may post about what was picked on it, which all friends hear, or talk about it with one friend, in
which both hear the other: what RecAgent's users do beside browsing (Wang et al. 2023, "User behavior simulation with
large language model based agents"), who choose what they do themselves; here a share of those who picked something is
drawn. What is said in a round is heard in the next one and then forgotten. The module does not know how it moves
anybody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.llm.prompt import Message
from agents.llm.scorer import Estimate, PageScorer
from simenv.datasets.base import LongArray
from simenv.datasets.friends import Friends
from simenv.language_models.quoting import Templates, plain
from simenv.randomness import Key, Purpose, uniforms
from simenv.slates import Responses

LENGTH = 80  # characters that are kept of what is said
TEMPLATES = ("post.j2", "chat.j2")
TOKENS = {"post": 20, "chat": 40}  # of an answer
LONGEST = {"post": 60, "chat": 120}  # after which a small model that cannot end is cut off: 80 characters are kept
_FRIEND = re.compile(r"^\W*friend\W*:", re.I | re.M)
_YOU = re.compile(r"^\W*you\W*:", re.I)


class Talk:
    """What the users of one population say to each other.

    Args:
        scorer: asks the language model.
        friends: who knows whom.
        posts: chance to post after a page on which something was picked.
        chats: likewise, to talk about it with one friend, drawn.
        prompts: folder with edited templates, or None.
    """

    def __init__(
        self, scorer: PageScorer, friends: Friends, *, posts: float, chats: float, prompts: str | Path | None
    ) -> None:
        self.scorer, self.friends, self.posts, self.chats = scorer, friends, posts, chats
        folder = Path(__file__).parent / "prompts"
        own = prompts if prompts is not None and any((Path(prompts) / name).is_file() for name in TEMPLATES) else None
        self.prompts = Templates(folder, TEMPLATES, own, option="agent.prompts")
        self._said: list[tuple[int, Message]] = []  # this round: who will hear it

    def after(self, users: LongArray, slates: NDArray[np.int32], responses: Responses, key: Key) -> None:
        """Let users say something about the page they have just seen."""
        picked = responses.clicked & (slates >= 0)
        talks = picked.any(axis=1) & (self.friends.degrees[users] > 0)
        best = np.where(picked, np.nan_to_num(responses.ratings, nan=0.0) + 1.0, 0.0).argmax(axis=1)
        rows = np.arange(len(users))
        items, ratings = slates[rows, best], responses.ratings[rows, best]
        due = np.flatnonzero(talks & (uniforms(key, Purpose.POST, users, 0) < self.posts))
        said = self._say("post", users[due], slates[due], items[due], ratings[due], key)
        for row in due.tolist():
            if text := _line(said.get(int(users[row]), "")):
                message = Message("post", int(users[row]), int(items[row]), float(ratings[row]), text)
                self._said += [(listener, message) for listener in self.friends[users[row]].tolist()]
        due = np.flatnonzero(talks & (uniforms(key, Purpose.CHAT, users, 0) < self.chats))
        partners = self._partners(users[due], key)
        said = self._say("chat", users[due], slates[due], items[due], ratings[due], key, partners)
        for row, partner in zip(due.tolist(), partners, strict=True):
            user = int(users[row])
            mine, answer = both_sides(said.get(user, ""))
            if mine:
                self._said.append((partner, Message("chat", user, int(items[row]), float(ratings[row]), mine)))
            if answer:
                self._said.append((user, Message("chat", partner, int(items[row]), float("nan"), answer)))

    def end_round(self) -> None:
        """What was said is heard from now on, and what was heard is forgotten."""
        self._tell(sorted(self._said, key=lambda each: (each[0], each[1].kind, each[1].speaker)))
        self._said = []

    def _tell(self, messages: Sequence[tuple[int, Message]]) -> None:
        heard: dict[int, list[Message]] = {}
        for listener, message in messages:
            heard.setdefault(listener, []).append(message)
        self.scorer.page_prompt.messages = heard

    def estimated(self, estimate: Estimate, users: LongArray, slates: NDArray[np.int32], *, pages: int) -> Estimate:
        """An estimate of pages with what would be said at most, were something picked on every page."""
        model, key = self.scorer.language_model, Key(0)
        for kind, share in (("post", self.posts), ("chat", self.chats)):
            if share == 0:
                continue
            partners = self._partners(users, key) if kind == "chat" else None
            values = self._values(users, slates, slates[:, 0], np.full(len(users), 3.0), partners)
            asked = [
                self.scorer.request_of(
                    kind, user, slate, key, prompts=self.prompts, values=value, longest=LONGEST[kind]
                )
                for user, slate, value in zip(users.tolist(), slates, values, strict=True)
            ]
            tokens = float(np.mean([model.count_tokens(request)[0] for request in asked]))
            calls = round(pages * share)
            estimate = replace(
                estimate,
                further={**estimate.further, f"{kind}s": (calls, tokens, float(TOKENS[kind]))},
                dollars=estimate.dollars + calls * model.cost(tokens, TOKENS[kind]),
            )
        return estimate

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as JSON."""
        heard = self.scorer.page_prompt.messages
        return {
            "heard": [[user, *message] for user, said in heard.items() for message in said],
            "said": [[user, *message] for user, message in self._said],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self._tell([(user, Message(*message)) for user, *message in state["heard"]])
        self._said = [(user, Message(*message)) for user, *message in state["said"]]

    def _partners(self, users: LongArray, key: Key) -> list[int]:
        """A friend of each user, drawn; the user where there is none."""
        draws = uniforms(key, Purpose.CHAT, users, 1)
        known = [self.friends[user] for user in users]
        return [
            int(own[int(draw * len(own))]) if len(own) else int(user)
            for user, own, draw in zip(users, known, draws, strict=True)
        ]

    def _say(
        self,
        kind: str,
        users: LongArray,
        slates: NDArray[np.int32],
        items: NDArray[np.int32],
        ratings: NDArray[np.float32],
        key: Key,
        partners: Sequence[int] | None = None,
    ) -> dict[int, str]:
        if not len(users):
            return {}
        values = self._values(users, slates, items, ratings, partners)
        told: dict[str, Any] = {"prompts": self.prompts, "values": values, "longest": LONGEST[kind]}
        said = self.scorer.tell(kind, users.tolist(), slates, key, **told)
        self.scorer.language_model.ledger.count(f"{kind}s", len(said))
        return dict(said)

    def _values(
        self,
        users: LongArray,
        slates: NDArray[np.int32],
        items: NDArray[np.int32],
        ratings: NDArray[Any],
        partners: Sequence[int] | None,
    ) -> list[dict[str, Any]]:
        """What the templates need beside the person."""
        prompt = self.scorer.page_prompt
        values: list[dict[str, Any]] = []
        for row in range(len(users)):
            rating = None if np.isnan(ratings[row]) else prompt.stars(float(ratings[row]))
            values.append({"title": prompt.title(int(items[row])), "rating": rating})
            if partners is not None:
                values[-1]["friend"] = prompt.person(partners[row], slates[row][slates[row] >= 0])
        return values


def both_sides(text: str) -> tuple[str, str]:
    """What the two of a chat say, from the text of an answer; "" = nothing.

    Without a line of the friend's, all of it is the user's.
    """
    mine, *rest = _FRIEND.split(text, maxsplit=1)
    return _line(_YOU.sub("", mine.strip())), _line(rest[0] if rest else "")


def _line(text: str) -> str:
    """What is kept of what somebody says, without quotation marks around it."""
    return plain(text.strip().strip('"*'), LENGTH)
