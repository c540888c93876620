"""Attn2Seq, NRT, PETER and PETER+: networks that write why a user would like an item, and what they share.

They know users and items by number alone, and learn from what users wrote and how many stars they gave. The module does
not know item codes, nor how texts are judged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recommenders.base import Recommender, check_options
from recommenders.neural.base import divisor
from recommenders.neural.pairs import embedding
from recommenders.neural.sequential import future, transformer
from recommenders.p5.language.text import END, PAD, OwnWords, split_words
from simenv.datasets.base import Dataset, FloatArray, Interactions, LongArray
from simenv.datasets.reviews import Reviewer, Reviews, reviewer_of
from simenv.errors import RecommenderError
from simenv.randomness import Key, Purpose, generator
from simenv.records import record
from simenv.training.loop import Progress, Training, TrainingOptions, pick_device

TRAINING = TrainingOptions(epochs=10, batch_size=128, learning_rate=2e-3)
BEGIN = PAD  # the token before the first word


class WritingNetwork(nn.Module):
    """Vectors of users, items and words; subclasses say which word comes next, and how many stars are given."""

    rates = True

    def __init__(self, n_users: int, n_items: int, n_words: int, size: int, mean: float) -> None:
        super().__init__()
        self.users, self.items = embedding(n_users, size), embedding(n_items, size)
        self.words = nn.Embedding(n_words, size)
        self.output = nn.Linear(size, n_words)
        self.mean = mean
        nn.init.normal_(self.words.weight, std=size**-0.5)

    @abstractmethod
    def next_words(self, users: Tensor, items: Tensor, features: Tensor, written: Tensor) -> Tensor:
        """Logits (B, T, n_words) of the word after each of `written` (B, T), which starts with `BEGIN`.

        Args:
            users, items: (B,).
            features: (B,) the word that the text is to speak of, `PAD` where none is told.
            written: (B, T).
        """

    @abstractmethod
    def stars(self, users: Tensor, items: Tensor) -> Tensor:
        """(n,) predicted stars of aligned pairs."""

    def loss(self, users: Tensor, items: Tensor, stars: Tensor, features: Tensor, texts: Tensor) -> Tensor:
        """Of words and of stars; texts (B, T) end with `END`, then `PAD`; stars (B,) are NaN where none were given."""
        begun = F.pad(texts[:, :-1], (1, 0), value=BEGIN)
        logits = self.next_words(users, items, features, begun)
        return self.word_loss(logits, texts) + self.star_loss(users, items, stars)

    def word_loss(self, logits: Tensor, texts: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1).float(), texts.flatten(), ignore_index=PAD)

    def star_loss(self, users: Tensor, items: Tensor, stars: Tensor) -> Tensor:
        rated = ~stars.isnan()
        if not self.rates or not bool(rated.any()):
            return stars.new_zeros(())
        return F.mse_loss(self.stars(users[rated], items[rated]).float(), stars[rated])


class Attn2SeqNetwork(WritingNetwork):
    """Attributes to a text (Dong et al. 2017, "Learning to generate product reviews from attributes", eqs. 1 to 10).

    The attributes, user and item here, start an LSTM and are attended to at every word; there is no rating head.
    """

    rates = False

    def __init__(self, *sizes: Any, layers: int, dropout: float) -> None:
        super().__init__(*sizes)
        size = self.words.embedding_dim
        self.begin = nn.Linear(2 * size, layers * size)
        self.lstm = nn.LSTM(size, size, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.weigh = nn.Linear(2 * size, 1)
        self.join, self.dropout, self.layers = nn.Linear(2 * size, size), nn.Dropout(dropout), layers

    def next_words(self, users: Tensor, items: Tensor, features: Tensor, written: Tensor) -> Tensor:
        known = torch.stack([self.users(users), self.items(items)], dim=1)  # (B, 2, d)
        start = self.begin(known.flatten(1)).tanh().view(len(users), self.layers, -1).transpose(0, 1).contiguous()
        states, _ = self.lstm(self.dropout(self.words(written)), (start, torch.zeros_like(start)))
        shape = (*states.shape[:2], 2, -1)
        pairs = torch.cat([states[:, :, None].expand(shape), known[:, None].expand(shape)], dim=3)
        shares = self.weigh(pairs).tanh()[..., 0].softmax(dim=2)
        context = shares @ known
        return cast(Tensor, self.output(self.dropout(self.join(torch.cat([context, states], dim=2)).tanh())))

    def stars(self, users: Tensor, items: Tensor) -> Tensor:
        raise RecommenderError("attn2seq: predicts no stars")


class NRTNetwork(WritingNetwork):
    """Neural rating and tips (Li et al. 2017, "Neural rating regression with abstractive tips generation for
    recommendation"): three tasks that share the vectors of users and items.

    A feed-forward network gives stars; another tells which words the text of the pair has, whatever their order; a GRU
    writes. User, item, the stars and what the second network knows start the GRU, and user, item and stars are seen at
    every word, as in the authors' code. There the words told are those of the review; here those of what is written.
    """

    LEVELS = 6  # stars are told to the GRU rounded, 0 to 5

    def __init__(self, *sizes: Any, layers: int, dropout: float) -> None:
        super().__init__(*sizes)
        size = self.words.embedding_dim
        self.rating = nn.Sequential(*sigmoids(2 * size, size, layers), nn.Linear(size, 1))
        self.about, self.told = (
            nn.Sequential(*sigmoids(2 * size, size, layers)),
            nn.Linear(size, self.words.num_embeddings),
        )
        self.begin, self.join = nn.Linear(3 * size + self.LEVELS, size), nn.Linear(4 * size + self.LEVELS, size)
        self.gru, self.dropout = nn.GRU(size, size, batch_first=True), nn.Dropout(dropout)

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Vectors of user and item side by side, (B, 2 d)."""
        return torch.cat([self.users(users), self.items(items)], dim=1)

    def next_words(self, users: Tensor, items: Tensor, features: Tensor, written: Tensor) -> Tensor:
        pairs = self.pairs(users, items)
        level = self.stars(users, items).detach().round().long().clamp(0, self.LEVELS - 1)
        known = torch.cat([pairs, F.one_hot(level, self.LEVELS)], dim=1)
        words = self.dropout(self.words(written))
        states, _ = self.gru(words, self.begin(torch.cat([known, self.about(pairs)], dim=1)).tanh()[None])
        seen = torch.cat([states, words, known[:, None].expand(-1, written.shape[1], -1)], dim=2)
        return cast(Tensor, self.output(self.dropout(self.join(seen).tanh())))

    def stars(self, users: Tensor, items: Tensor) -> Tensor:
        return self.mean + cast(Tensor, self.rating(self.pairs(users, items))[:, 0])

    def loss(self, users: Tensor, items: Tensor, stars: Tensor, features: Tensor, texts: Tensor) -> Tensor:
        told = self.told(self.about(self.pairs(users, items)))[:, None].expand(-1, texts.shape[1], -1)
        return super().loss(users, items, stars, features, texts) + self.word_loss(told, texts)


def sigmoids(width: int, size: int, layers: int) -> list[nn.Module]:
    """`layers` layers with sigmoids, the first one from `width` features."""
    return [part for n in range(layers) for part in (nn.Linear(size if n else width, size), nn.Sigmoid())]


class PETERNetwork(WritingNetwork):
    """PETER (Li, Zhang and Chen 2021, "Personalized transformer for explainable recommendation", eqs. 1 to 12).

    A transformer reads user, item, with `told` a feature, and the words so far. Words look back only; user and item see
    each other. Three losses: the next word, the words of the text told at the item, whatever their order (what ties
    words to numbers), and the stars at the user.
    """

    CONTEXT, STARS = 1.0, 0.1  # weights of the second and third loss, the authors'

    def __init__(self, *sizes: Any, layers: int, heads: int, dropout: float, longest: int, told: bool) -> None:
        super().__init__(*sizes)
        size = self.words.embedding_dim
        self.told = told
        self.places = nn.Parameter(torch.randn(3 + longest + 1, size) * size**-0.5)
        self.encoder = transformer(size, layers, heads, dropout)
        self.rating = nn.Sequential(nn.Linear(size, size), nn.Sigmoid(), nn.Linear(size, 1))
        self.dropout = nn.Dropout(dropout)

    def states(self, users: Tensor, items: Tensor, features: Tensor, written: Tensor) -> Tensor:
        """(B, 2 + told + T, d), of user, item, feature and words."""
        known = [self.users(users)[:, None], self.items(items)[:, None]]
        if self.told:
            known.append(self.words(features)[:, None])
        x = torch.cat([*known, self.words(written)], dim=1)
        ahead = future(x.shape[1], x.device)
        ahead[0, 1] = False
        return cast(Tensor, self.encoder(self.dropout(x + self.places[: x.shape[1]]), mask=ahead))

    def next_words(self, users: Tensor, items: Tensor, features: Tensor, written: Tensor) -> Tensor:
        return cast(Tensor, self.output(self.states(users, items, features, written)[:, 2 + self.told :]))

    def stars(self, users: Tensor, items: Tensor) -> Tensor:
        nothing = users.new_full((len(users), 1), PAD)
        return self._stars(self.states(users, items, nothing[:, 0], nothing))

    def _stars(self, states: Tensor) -> Tensor:
        return self.mean + cast(Tensor, self.rating(states[:, 0])[:, 0])

    def loss(self, users: Tensor, items: Tensor, stars: Tensor, features: Tensor, texts: Tensor) -> Tensor:
        states = self.states(users, items, features, F.pad(texts[:, :-1], (1, 0), value=BEGIN))
        words = self.word_loss(self.output(states[:, 2 + self.told :]), texts)
        told = self.output(states[:, 1])[:, None].expand(-1, texts.shape[1], -1)
        total = words + self.CONTEXT * self.word_loss(told, texts)
        rated = ~stars.isnan()
        if bool(rated.any()):
            total = total + self.STARS * F.mse_loss(self._stars(states)[rated].float(), stars[rated])
        return total


class Explainer(Recommender):
    """Writes explanations; ranks by predicted stars where it predicts some. `update` refits.

    Learns from the explanations that users gave of items in the log: those of `bind_reviews`, else those of the bound
    data set, which in a synthetic world its users write. Copies of a text that its user wrote before are left out.

    Args:
        embedding_size: width of all vectors.
        layers: depth of the decoder; of `nrt`, of the network that gives stars.
        dropout: share of features dropped.
        max_words: words of a text that are learned from and written.
        vocabulary: most frequent words that are known.
        training: see `simenv.training.loop.TrainingOptions`; a mapping changes the defaults of `TRAINING`.
        device: `auto`, or as torch names it.
        show_progress: print a bar while fitting.
    """

    keeps_shortlists: ClassVar[bool] = True
    score_batch: ClassVar[int] = 8
    network: WritingNetwork

    def __init__(
        self,
        *,
        embedding_size: int = 64,
        layers: int = 2,
        dropout: float = 0.2,
        max_words: int = 20,
        vocabulary: int = 20_000,
        training: TrainingOptions | Mapping[str, Any] | None = None,
        device: str | None = "auto",
        show_progress: bool = False,
    ) -> None:
        check_options(self.name, low=1, whole=True, embedding_size=embedding_size, layers=layers)
        check_options(self.name, low=1, whole=True, max_words=max_words, vocabulary=vocabulary)
        check_options(self.name, high=1, open_high=True, dropout=dropout)
        self.embedding_size, self.layers, self.dropout = embedding_size, layers, dropout
        self.max_words, self.vocabulary = max_words, vocabulary
        self.training = record(TRAINING, training, "training")
        self.device, self.show_progress = pick_device(device), show_progress
        self.reviews: Reviews | None = None
        self._reviewer: Reviewer | None = None
        self.progress = Progress()

    @abstractmethod
    def _network(self, sizes: tuple[Any, ...]) -> WritingNetwork:
        """A fresh network of these `sizes`: users, items, words, width, mean stars."""

    def bind_dataset(self, dataset: Dataset) -> None:
        """Learn from what its users write."""
        self._reviewer, self.reviews = reviewer_of(dataset), dataset.reviews

    def bind_reviews(self, reviews: Reviews) -> None:
        """Learn from these instead; before `fit`."""
        self.reviews, self._reviewer = reviews, None

    def _fit(self, log: Interactions, key: Key) -> None:
        reviews = self.reviews if self._reviewer is None else self._reviewer.write(log)
        rng = generator(key, Purpose.FIT)
        stars, rows = self._rated(log, reviews)
        if reviews is None or not len(rows):
            raise RecommenderError(f"{self.name}: nobody explains anything; expected a data set with reviews")
        counts = Counter(word for row in rows for word in split_words(reviews.explanations[row]))
        counts.update(word for row in rows for word in split_words(reviews.features[row])[:1])
        self.words = OwnWords(word for word, _ in counts.most_common(self.vocabulary))
        texts = self._encoded([reviews.explanations[row] for row in rows])
        features = self._features([reviews.features[row] for row in rows])
        columns = reviews.users[rows], reviews.items[rows], stars, features, texts
        self._build(int(rng.integers(2**31)))
        seed = int(rng.integers(2**31))
        run = Training(self.network, self._loss, self.training, seed=seed, show=self.show_progress)
        steps = -(-len(rows) // self.training.batch_size)
        self.progress = run.run(lambda epoch: self._batches(columns, np.random.default_rng([seed, epoch])), steps)

    def _rated(self, log: Interactions, reviews: Reviews | None) -> tuple[NDArray[np.float32], LongArray]:
        """Rows of reviews that explain a pair of the log, and the stars of that pair, both (n,)."""
        if reviews is None:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        keys = log.users.astype(np.int64) * log.n_items + log.items
        order = np.argsort(keys, kind="stable")
        wanted = reviews.users * log.n_items + reviews.items
        place = order[np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)]
        usable = (keys[place] == wanted) & np.fromiter(map(bool, reviews.explanations), np.bool_, len(reviews))
        if reviews.is_copy is not None:
            usable &= ~reviews.is_copy
        rows = np.flatnonzero(usable)
        return log.ratings[place[rows]], rows

    def _encoded(self, texts: Sequence[str]) -> LongArray:
        """(n, T) words, `END`, `PAD`."""
        tokens = [[*self.words.encode(text)[: self.max_words], END] for text in texts]
        out = np.full((len(tokens), max(map(len, tokens))), PAD, np.int64)
        for row, line in zip(out, tokens, strict=True):
            row[: len(line)] = line
        return out

    def _features(self, features: Sequence[str]) -> LongArray:
        """The first word of each, (n,), `PAD` where there is none."""
        return np.array([next(iter(self.words.encode(feature)), PAD) for feature in features], np.int64)

    def _build(self, seed: int) -> None:
        rated = self._log.ratings[~np.isnan(self._log.ratings)]
        mean = float(rated.mean(dtype=np.float64)) if len(rated) else 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = self.n_users, self.n_items, self.words.n_tokens, self.embedding_size, mean
            self.network = self._network(sizes).to(self.device)
        self.network.eval()

    def _batches(self, columns: Sequence[NDArray[Any]], rng: np.random.Generator) -> Iterator[list[NDArray[Any]]]:
        order = rng.permutation(len(columns[0]))
        for start in range(0, len(order), self.training.batch_size):
            yield [column[order[start : start + self.training.batch_size]] for column in columns]

    def _loss(self, batch: Sequence[NDArray[Any]]) -> tuple[Tensor, int]:
        parts = [torch.as_tensor(part).to(self.device, non_blocking=True) for part in batch]
        return self.network.loss(*parts), int((batch[-1] != PAD).sum())

    # -- asking -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explain(self, users: NDArray[Any], items: NDArray[Any], *, features: Sequence[str] | None = None) -> list[str]:
        """Why each user would like each item, in words, the most probable one each time.

        Args:
            users, items: (n,).
            features: (n,) what each text is to speak of, for those that read it (`peter-plus`).
        """
        self._require_fit()
        told = np.full(len(users), PAD) if features is None else self._features(features)
        texts: list[str] = []
        for start in range(0, len(users), 256):
            rows = slice(start, start + 256)
            who, what, about = (
                torch.as_tensor(np.asarray(part[rows], np.int64), device=self.device) for part in (users, items, told)
            )
            written = torch.full((len(who), 1), BEGIN, device=self.device)
            done = torch.zeros(len(who), dtype=torch.bool, device=self.device)
            while written.shape[1] <= self.max_words and not bool(done.all()):
                logits = self.network.next_words(who, what, about, written)[:, -1]
                logits[:, PAD] = -torch.inf
                word = logits.argmax(dim=1).masked_fill(done, END)
                written, done = torch.cat([written, word[:, None]], dim=1), done | (word == END)
            texts += [self._decoded(row) for row in written[:, 1:].tolist()]
        return texts

    def _decoded(self, tokens: list[int]) -> str:
        return self.words.decode(tokens[: tokens.index(END)] if END in tokens else tokens)

    @torch.no_grad()
    def predict_ratings(self, users: NDArray[Any], items: NDArray[Any]) -> FloatArray:
        """Stars of aligned (user, item) pairs, (n,)."""
        self._require_fit()
        self._require_stars()
        parts = []
        for start in range(0, len(users), 4096):
            rows = slice(start, start + 4096)
            pair = (torch.as_tensor(np.asarray(part[rows], np.int64), device=self.device) for part in (users, items))
            parts.append(self.network.stars(*pair).float().cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _require_stars(self) -> None:
        if not self.network.rates:
            raise RecommenderError(f"{self.name}: writes explanations and neither predicts stars nor ranks items")

    def _score(self, users: LongArray) -> NDArray[np.float32]:
        items = np.arange(self.n_items)
        return np.stack([self.predict_ratings(np.full(self.n_items, user), items) for user in users])

    # -- saving -------------------------------------------------------------------------------------------------

    def _state(self) -> Mapping[str, NDArray[Any]]:
        network = {f"network.{name}": value.cpu().numpy() for name, value in self.network.state_dict().items()}
        return {"words": np.array(self.words.words), **network}

    def _restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.words = OwnWords(state["words"].tolist())
        self._build(0)
        weights = {name[8:]: torch.as_tensor(value) for name, value in state.items() if name.startswith("network.")}
        self.network.load_state_dict(weights)


class Attn2Seq(Explainer):
    """Attributes to a text by attention, see `Attn2SeqNetwork`. Options: see `Explainer`."""

    name = "attn2seq"

    def _network(self, sizes: tuple[Any, ...]) -> Attn2SeqNetwork:
        return Attn2SeqNetwork(*sizes, layers=self.layers, dropout=self.dropout)


class NRT(Explainer):
    """Stars and a text by a GRU, see `NRTNetwork`. Options: see `Explainer`."""

    name = "nrt"

    def _network(self, sizes: tuple[Any, ...]) -> NRTNetwork:
        return NRTNetwork(*sizes, layers=self.layers, dropout=self.dropout)


class PETER(Explainer):
    """A personalised transformer, see `PETERNetwork`; with `told` it is PETER+, which reads what to speak of.

    Args:
        heads: attention heads.
        told: a feature of each explanation is read, in learning and in writing.
        options: see `Explainer`.
    """

    name = "peter"

    def __init__(self, *, heads: int = 2, told: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.heads, self.told = divisor(self.name, heads, self.embedding_size), told

    def _network(self, sizes: tuple[Any, ...]) -> PETERNetwork:
        return PETERNetwork(
            *sizes,
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            longest=self.max_words,
            told=self.told,
        )
