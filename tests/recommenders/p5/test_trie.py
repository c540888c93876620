"""The trie and constrained decoding: only what exists, exact equals brute force, a wide beam equals exact."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from recommenders.p5.indexes.base import with_collision_token
from recommenders.p5.trie import NEVER, Trie, beam_items, item_scores

DEPTH, TOKENS = 3, 5


def some_codes(n_items: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    every = np.array(list(itertools.product(range(TOKENS), repeat=DEPTH)))
    return every[rng.permutation(len(every))[:n_items]]


@dataclass
class RandomScorer:
    """Any weights whatever: the logit of a token depends on the user and the whole path, through a hash."""

    n_users: int
    scale: float = 3.0

    def begin(self):
        return torch.arange(self.n_users)[:, None] * 101 + 7

    def extend(self, state, level, parents, nodes):
        return self.follow(state, parents, level.token[nodes])

    def follow(self, state, parents, tokens):
        if len(parents) == 1:
            return state[:, parents[0]] * 31 + tokens + 1
        return state.gather(1, parents) * 31 + tokens + 1

    def logits(self, state, level, tokens):
        return self.score(state, level.depth, tokens)

    def score(self, state, depth, tokens):
        mixed = (state[:, :, None] * 7919 + tokens * 104729 + depth * 13) % 1009
        return torch.sin(mixed.float()) * self.scale


def brute_force(codes: np.ndarray, n_users: int) -> np.ndarray:
    """Log-probability of every item by walking its path, normalising over existing siblings, one item at a time."""
    scorer, scores = RandomScorer(n_users), np.zeros((n_users, len(codes)))
    for item, code in enumerate(codes):
        state = scorer.begin()
        for level in range(DEPTH):
            siblings = np.unique(codes[(codes[:, :level] == code[:level]).all(axis=1), level])
            logits = scorer.score(state, level, torch.tensor(siblings)[None, None])[:, 0]
            place = int(np.flatnonzero(siblings == code[level])[0])
            scores[:, item] += logits.log_softmax(-1)[:, place].numpy()
            token = torch.tensor([[int(code[level])]])
            state = scorer.follow(state, torch.zeros(1, 1, dtype=torch.long), token)
    return scores


def test_csr_walk_allows_exactly_what_exists():
    codes = some_codes()
    trie = Trie.build(codes)
    for length in range(DEPTH):
        for prefix in itertools.product(range(TOKENS), repeat=length):
            matching = codes[(codes[:, :length] == prefix).all(axis=1)]
            assert trie.allowed_after(list(prefix)) == sorted(set(matching[:, length].tolist()))
    assert trie.allowed_after(codes[0].tolist()) == []


def test_sizes_and_paths():
    codes = some_codes()
    trie = Trie.build(codes)
    prefixes = [len(np.unique(codes[:, :length], axis=0)) if length else 1 for length in range(DEPTH)]
    assert trie.n_nodes == sum(prefixes)
    assert [level.n_nodes for level in trie.levels] == prefixes
    assert len(trie.child_token) == sum(prefixes[1:]) + len(codes)
    leaves = trie.child_node[trie.child_node < 0]
    np.testing.assert_array_equal(np.sort(-1 - leaves.numpy()), np.arange(len(codes)))
    for item, code in enumerate(codes):
        for depth, level in enumerate(trie.levels):
            node = trie.path_nodes[item, depth]
            place = (level.child_tokens[node] == code[depth]) & (level.child_nodes[node] >= 0)
            assert place.sum() == 1
            assert level.path[node].tolist() == code[:depth].tolist()


def test_exact_mode_equals_brute_force():
    codes = some_codes()
    scores = item_scores(Trie.build(codes), RandomScorer(4)).numpy()
    np.testing.assert_allclose(scores, brute_force(codes, 4), atol=1e-4)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, atol=1e-5)


def test_a_wide_beam_equals_exact_mode():
    codes = some_codes()
    trie = Trie.build(codes)
    best, scores = beam_items(trie, RandomScorer(4), 60, width=1000)
    exact = item_scores(trie, RandomScorer(4))
    order = exact.argsort(dim=1, descending=True, stable=True)
    np.testing.assert_array_equal(best, order)
    np.testing.assert_allclose(scores, exact.gather(1, order), atol=1e-5)


def beam_by_sorting(codes: np.ndarray, n_users: int, k: int, width: int) -> np.ndarray:
    """The `k` best items (n_users, k) of a beam search done with dictionaries of prefixes."""
    exact, found = brute_force(codes, n_users), []
    for user in range(n_users):
        mass: dict[tuple[int, ...], float] = {}  # probability of each prefix: that of its items together
        for code, score in zip(codes.tolist(), exact[user]):
            for length in range(1, DEPTH + 1):
                mass[tuple(code[:length])] = mass.get(tuple(code[:length]), 0) + float(np.exp(score))
        kept = {()}
        for length in range(1, DEPTH + 1):
            longer = [path for path in mass if len(path) == length and path[:-1] in kept]
            best = sorted(longer, key=lambda path: -mass[path])
            kept = set(best[:width])
        found.append([codes.tolist().index(list(path)) for path in best[:k]])
    return np.array(found)


@pytest.mark.parametrize("width", [4, 5, 8, 24, 25])  # 5 nodes below the root and 25 below those
def test_a_beam_of_any_width_equals_one_done_by_sorting(width):
    codes = some_codes(110)
    trie = Trie.build(codes)
    assert [level.n_nodes for level in trie.levels] == [1, 5, 25]
    found, scores = beam_items(trie, RandomScorer(8), 2, width=width)
    np.testing.assert_array_equal(found, beam_by_sorting(codes, 8, 2, width))
    np.testing.assert_allclose(scores, item_scores(trie, RandomScorer(8)).gather(1, found), atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 8, 30])
def test_a_narrow_beam_returns_existing_items_without_duplicates(seed, width):
    codes = with_collision_token(np.random.default_rng(seed).integers(0, 4, (50, 2)))
    found, scores = beam_items(Trie.build(codes), RandomScorer(6), 10, width=width)
    for row, row_scores in zip(found.tolist(), scores.tolist()):
        real = [item for item in row if item >= 0]
        assert len(set(real)) == len(real) > 0
        assert max(real) < 50
        assert all(score <= NEVER / 2 for item, score in zip(row, row_scores) if item < 0)
        assert row_scores == sorted(row_scores, reverse=True)


def test_seen_items_are_left_out_at_the_leaves_only():
    codes = some_codes()
    trie = Trie.build(codes)
    exact = item_scores(trie, RandomScorer(3))
    allowed = torch.rand((3, 60), generator=torch.Generator().manual_seed(0)) < 0.5
    found, _ = beam_items(trie, RandomScorer(3), 10, allowed, width=1000)
    expected = exact.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :10]
    np.testing.assert_array_equal(found, expected)


def test_fewer_allowed_items_than_asked_for_leave_the_rest_empty():
    trie = Trie.build(some_codes())
    allowed = torch.zeros((2, 60), dtype=torch.bool)
    allowed[0, [3, 8]] = True
    found, _ = beam_items(trie, RandomScorer(2), 5, allowed, width=1000)
    assert sorted(found[0, :2].tolist()) == [3, 8]
    assert found[0, 2:].tolist() == [-1, -1, -1]
    assert found[1].tolist() == [-1] * 5


def test_a_trie_of_one_level_and_one_item():
    trie = Trie.build(np.array([[4]]))
    assert item_scores(trie, RandomScorer(2)).tolist() == [[0.0], [0.0]]
    found, _ = beam_items(trie, RandomScorer(2), 2)
    assert found.tolist() == [[0, -1], [0, -1]]
