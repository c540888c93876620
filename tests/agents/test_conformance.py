"""The suite of user models, inherited by each of ours."""

from __future__ import annotations

from agents.base import UserModel
from agents.choice import ChoiceModel, RankAcceptance
from agents.choice.classics import DriftingInterest, RankDiscountedChoice
from agents.llm import LLMUser
from agents.mixed import MixedUsers
from agents.testing import UserModelSuite
from simenv.testing import FakeLanguageModel


class TestChoiceModel(UserModelSuite):
    def make(self) -> UserModel:
        return ChoiceModel(base=1.0, drift=0.1)


class TestRankAcceptance(UserModelSuite):
    def make(self) -> UserModel:
        return RankAcceptance()


class TestRankDiscountedChoice(UserModelSuite):
    def make(self) -> UserModel:
        return RankDiscountedChoice()


class TestDriftingInterest(UserModelSuite):
    def make(self) -> UserModel:
        return DriftingInterest()


class TestLLMUser(UserModelSuite):
    pickles = False  # connections to a language model do not travel

    def make(self) -> UserModel:
        return LLMUser(FakeLanguageModel())


class TestMixedUsers(UserModelSuite):
    def make(self) -> UserModel:
        return MixedUsers(ChoiceModel(base=1.0), ChoiceModel(), share=0.3)
