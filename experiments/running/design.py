"""Design: what a run is - world, users, recommenders, arms, seeds, schedule - as one checked value.

It can be made from a Hydra configuration or by hand; nothing here starts a process or touches a run directory.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from agents.base import UserModel
from agents.population.traits import Traits
from agents.tastes.structures import TasteModel
from simenv import checks
from simenv.datasets.base import Dataset, Interactions, Tastes
from simenv.datasets.splits import distinct, hold_out, pair_keys
from simenv.errors import ConfigError, MissingExtraError, SimenvError, did_you_mean, require_memory
from simenv.interventions import Course, Intervention
from simenv.language_models.factories import Carries
from simenv.language_models.wire.secrets import public
from simenv.metrics.reference import Reference
from simenv.metrics.table import METRICS, MetricSpec, spec_of
from simenv.names import CONF as CONF
from simenv.names import find, paths
from simenv.platform import Mode, Platform, Schedule
from simenv.registration import resolve
from simenv.slates import Recommender

_OF_ARMS = ("arms", "modes", "references")
REFERENCE_ARMS = {"none": "none", "random": "loop", "oracle": "loop"}
_EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "peft": "torch",
    "safetensors": "torch",
    "accelerate": "torch",
    "stable_baselines3": "rl",
    "usearch": "ann",
}

_checked: dict[str, Dataset] = {}  # what `check` has loaded, for the world that is made of it

Spec = Any  # a mapping with `_target_`, or the object itself


@dataclass(frozen=True, slots=True, order=True)
class Job:
    """One seed of one arm in one mode: what runs independently of everything else."""

    seed: int
    arm: str
    mode: str

    @property
    def id(self) -> str:
        return f"seed{self.seed}.{self.arm}.{self.mode.replace('.', '_')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Everything that decides a run's results.

    Attributes:
        dataset: a loader spec with `_target_`, or a Dataset.
        agent: spec of a UserModel, or one not yet bound.
        tastes: spec of the TasteModel that fits tastes where the data set has no true ones.
        refit_tastes: fit them even where it has: the users are then of another structure than the world that made
            their past.
        recommenders: spec, or unfitted Recommender, by arm name.
        arms: (arm, mode) pairs.
        seed: the first of `n_seeds` consecutive seeds, each a world of its own.
        n_seeds: how many.
        fit: variant of the seed of what is random in fitting, in the same worlds; 0 = the world's own.
        luck: variant of the seed of every draw of users and slates, likewise.
        rounds: how many rounds are played.
        n_users: None = all (synthetic: 500); a number = a seeded sample.
        n_items: None = all (synthetic: 1,000); a number = the most-rated ones.
        holdout: last share of each user's interactions kept from everyone.
        user_fraction: share of the users in each seed's world; None = .8 on real data where n_seeds > 1, else 1.
        repeat: consumption regime.
        schedule: of the loop.
        record_every: rounds between those whose events and metrics are kept; the first and the last always are.
        probe: dotted name of a function (Platform) -> {metric: value}, asked after every kept round for what events do
            not show; its answers become rows of `metrics.csv`, group ``all``.
        metrics: of the user's own, measured beside simenv's: each a `simenv.metrics.MetricSpec`, a function of (events,
            reference, group), the dotted name of either, or a spec with `_target_` that makes one.
        courses: what is done to an arm's course of the loop, by arm.
        luck_from: round from which `luck` counts; before it, draws are the world's own.
    """

    dataset: Spec
    agent: Spec
    recommenders: Mapping[str, Spec]
    arms: tuple[tuple[str, str], ...]
    tastes: Spec = field(default_factory=lambda: {"_target_": "agents.tastes.FactorTastes"})
    refit_tastes: bool = False
    seed: int = 0
    n_seeds: int = 1
    fit: int = 0
    luck: int = 0
    rounds: int = 20
    n_users: int | None = None
    n_items: int | None = None
    holdout: float = 0.0
    user_fraction: float | None = None
    repeat: str = "never"
    schedule: Schedule = field(default_factory=Schedule)
    record_every: int = 1
    probe: str | None = None
    metrics: Sequence[Spec] = ()
    courses: Mapping[str, Sequence[Intervention]] = field(default_factory=dict)
    luck_from: int = 0

    def __post_init__(self) -> None:
        checks.check_fields(self)
        checks.whole("seed", self.seed)
        for name in ("n_seeds", "rounds", "record_every"):
            checks.whole(name, getattr(self, name), 1, 1_000_000)
        checks.whole("seed + n_seeds", self.seed + self.n_seeds)
        for name in ("n_users", "n_items"):
            checks.whole(name, getattr(self, name), 1, none=True)
        checks.share("holdout", self.holdout, open_high=True)
        checks.share("user_fraction", self.user_fraction, open_low=True, none=True)
        checks.one_of("repeat", self.repeat, ("never", "cooldown", "always"))
        if not self.arms:
            raise ConfigError("arms=[]: expected at least one arm")
        for arm in self.recommenders:
            if arm == "none" or not 0 < len(arm) <= 100 or not arm.isprintable() or set(arm) & set("/\\"):
                raise ConfigError(
                    f"recommender {arm[:120]!r}: names a file and a row of tables; expected 1 to 100 printable "
                    "characters without / and \\, and not 'none'"
                )
        for arm, mode in self.arms:
            Mode.parse(mode)
            if arm != "none" and arm not in self.recommenders:
                known = [*sorted(self.recommenders), "none"]
                raise ConfigError(
                    f"arm '{arm}': no such recommender{did_you_mean(arm, known)}; expected one of {', '.join(known)}"
                )

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.seed, self.seed + self.n_seeds))

    def jobs(self) -> list[Job]:
        """Every (seed, arm, mode), seed by seed."""
        return [Job(seed, arm, mode) for seed in self.seeds for arm, mode in self.arms]

    def check(self, *, data: bool = True) -> None:
        """Build what can be built before work starts, so that bad options and bad data fail now.

        Args:
            data: whether the data are loaded too.

        Raises:
            ConfigError: an option that a constructor does not know or accept.
            DataError: data that are absent or damaged.
            MissingExtraError: an arm needs an optional dependency that is not installed.
        """
        users = self.make_users()
        self.make_tastes()
        self.make_probe()
        self.make_metrics()
        for arm, _ in self.arms:
            self.make_recommender(arm)
            self.make_course(arm)
        if data:
            target = str(self.dataset.get("_target_", "")) if isinstance(self.dataset, Mapping) else ""
            if self.n_users and self.n_items and target.endswith(".synthetic"):  # as large as it is asked to be
                self._check_memory(self.n_users, self.n_items)
            dataset = self.load_dataset(self.seed)
            self._check_memory(dataset.n_users, dataset.n_items)
            self._known(dataset)
            users.check_dataset(dataset)
            _checked.clear()
            if isinstance(self.dataset, Mapping):
                _checked[self._data_key(self.seed)] = dataset

    def _check_memory(self, n_users: int, n_items: int) -> None:
        """Refuse a world in which a bit for each user and item is more than the machine has."""
        tables = {"never": 2, "cooldown": 8, "always": 1}[self.repeat]  # what is kept, and what a round asks for
        if any(Mode.parse(mode).feedback in ("organic", "exogenous") for _, mode in self.arms):
            tables *= 2  # twins
        sizes = f"n_users={n_users}, n_items={n_items}, repeat={self.repeat}"
        require_memory(f"{sizes}: what users have had, a bit for each item,", tables * n_users * -(-n_items // 8))

    def _data_key(self, seed: int) -> str:
        parts = {name: _plain(getattr(self, name)) for name in ("dataset", "n_users", "n_items")}
        return json.dumps(parts | {"seed": seed}, sort_keys=True, default=repr)

    def check_shards(self, n_shards: int) -> None:
        """Refuse what users in shards cannot do.

        Raises:
            ConfigError: see `simenv.shards.check_shards`.
        """
        from simenv.shards import check_shards

        checks.whole("shards", n_shards, 1)
        users = self.make_users()
        for arm, mode in self.arms:
            check_shards(mode, self.schedule, self.make_course(arm), users, self.make_recommender(arm))

    def used_recommenders(self) -> dict[str, Spec]:
        """The specs of the arms that are played."""
        swapped = [each.recommender for done in self.courses.values() for each in done if each.recommender]
        return {arm: self.recommenders[arm] for arm in [*dict(self.arms), *swapped] if arm != "none"}

    def make_users(self) -> UserModel:
        """A fresh, unbound user model."""
        users = build(self.agent, "agent")
        if not isinstance(users, UserModel):
            raise ConfigError(
                f"agent={users!r}: {type(users).__name__} is no agents.base.UserModel; expected agent=choice"
            )
        return users

    def make_tastes(self) -> TasteModel:
        """The structure of fitted tastes."""
        model = build(self.tastes, "tastes")
        if not isinstance(model, TasteModel):
            raise ConfigError(
                f"tastes={model!r}: {type(model).__name__} is no agents.tastes.TasteModel; expected factor"
            )
        return model

    def make_recommender(self, arm: str) -> Any:
        """A fresh, unfitted recommender; None for arm ``none``."""
        if arm == "none":
            return None
        made = build(self.recommenders[arm], f"recommenders.{arm}")
        if not isinstance(made, Recommender):
            raise ConfigError(f"recommenders.{arm}={made!r}: expected a recommender, such as {{_target_: PATH}}")
        return made

    def make_course(self, arm: str) -> Course:
        """What is done to an arm, with fresh recommenders for those that are swapped in."""
        done = self.courses.get(arm, ())
        swapped = {each.recommender: self.make_recommender(each.recommender) for each in done if each.recommender}
        return Course(done, recommenders=swapped, luck_from=self.luck_from)

    def make_probe(self) -> Callable[[Platform], Mapping[str, float]] | None:
        """The function that `probe` names."""
        from hydra.utils import get_method

        if self.probe is None:
            return None
        try:
            found: Callable[[Platform], Mapping[str, float]] = get_method(self.probe)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"probe={self.probe}: {' '.join(str(error).split())}; expected a function") from error
        return found

    def make_metrics(self) -> tuple[MetricSpec, ...]:
        """What is measured: simenv's metrics and the user's own.

        Raises:
            ConfigError: an entry is no metric, or has a name that is taken.
        """
        if isinstance(self.metrics, str | Mapping) or not isinstance(self.metrics, Sequence):
            raise ConfigError(f"metrics={self.metrics}: expected a list")
        found = list(METRICS)
        for place, entry in enumerate(self.metrics):
            made = resolve(entry) if isinstance(entry, str) else build(entry, f"metrics.{place}")
            spec = spec_of(made)
            if spec.name in {metric.name for metric in found}:
                raise ConfigError(
                    f"metrics.{place}: '{spec.name}' is the name of another metric; expected one of its own"
                )
            found.append(spec)
        return tuple(found)

    def make_world(self, seed: int) -> World:
        """The world of one seed: data, tastes, traits and what is frozen at round 0."""
        dataset = self.make_dataset(seed)
        tastes = dataset.tastes
        if tastes is None or self.refit_tastes:
            tastes = self.make_tastes().fit(dataset, seed=seed)
        return World(
            seed=seed,
            dataset=dataset,
            tastes=tastes,
            traits=Traits.from_dataset(dataset),
            reference=Reference.from_dataset(dataset, seed),
        )

    def make_dataset(self, seed: int) -> Dataset:
        """The data of one seed as everyone in its world may know them."""
        loaded = _checked.pop(self._data_key(seed), None) if _checked else None
        dataset = self._known(self.load_dataset(seed) if loaded is None else loaded)
        fraction = self.fraction(dataset)
        return dataset if fraction == 1 else dataset.sample_users(max(1, round(fraction * dataset.n_users)), seed)

    def fraction(self, dataset: Dataset) -> float:
        """Share of the users of these data who are in each seed's world."""
        return self.user_fraction or (0.8 if self.n_seeds > 1 and dataset.tastes is None else 1.0)

    def _known(self, dataset: Dataset) -> Dataset:
        """What everyone may know, the holdout apart.

        Raises:
            ConfigError: there is nothing left to show.
        """
        dataset = hold_out(dataset, self.holdout)
        log, pairs = dataset.interactions, dataset.n_users * dataset.n_items
        if len(log) >= pairs and self.repeat == "never" and _distinct_pairs(log) == pairs:
            raise ConfigError(
                f"repeat=never: every user of {dataset.name} has had all {dataset.n_items} items: nothing is left to "
                "show; expected repeat=cooldown, repeat=always or more items"
            )
        return dataset

    def load_dataset(self, seed: int) -> Dataset:
        """The data of one seed, before any holdout or sampling of users."""
        options = {"n_users": self.n_users, "n_items": self.n_items, "seed": seed}
        given = isinstance(self.dataset, Dataset)
        dataset = self.dataset if given else build(self.dataset, "dataset", **options)
        if not isinstance(dataset, Dataset):
            raise ConfigError(f"dataset: got {type(dataset).__name__}; expected simenv.datasets.Dataset")
        if self.schedule.slate_size > dataset.n_items:
            raise ConfigError(
                f"slate_size={self.schedule.slate_size}: {dataset.name} has {dataset.n_items} items; "
                f"expected 1 to {dataset.n_items}"
            )
        return dataset

    def with_run_files(self, folder: Path) -> Design:
        """This design with its language models' caches, budgets and paces in a run directory, unless named elsewhere.

        A budget is one model's: users and recommenders that ask models of equal specs share it.
        """
        users = language_models(self.agent)

        def placed(spec: Any) -> Any:
            if isinstance(spec, list):
                return [placed(value) for value in spec]
            if not isinstance(spec, Mapping):
                return spec
            side = "llm" if spec in users else "recommender-llm"
            files = {"cache": "llm-cache.sqlite"}
            files |= {f"{what}_file": f"{side}-{what}.sqlite" for what in ("budget", "pace")}
            own = {name: str(folder / files[name]) for name in _carrying(spec) if name in files}
            given = {name: placed(value) for name, value in spec.items()}
            return given | {name: path for name, path in own.items() if given.get(name) is None}

        used = {
            name: placed(spec) for name, spec in self.used_recommenders().items()
        }  # the others need not be imported
        return replace(self, agent=placed(self.agent), recommenders={**self.recommenders, **used})

    def worlds_digest(self) -> str:
        """A fingerprint of everything that decides what the worlds of the seeds are."""
        parts = {name: _plain(getattr(self, name)) for name in _OF_WORLDS}
        parts["user_fraction"] = self.user_fraction or self.n_seeds > 1
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()

    def digest(self) -> str:
        """A fingerprint of everything that decides the results."""
        decides = {f.name: getattr(self, f.name) for f in fields(self)}
        decides["recommenders"] = self.used_recommenders()  # the others may ask for what is not installed
        parts = {name: _plain(without_carrying(value)) for name, value in decides.items()}
        for name in ("metrics", "courses", "luck_from"):  # so that runs from before there were any go on
            if not getattr(self, name):
                del parts[name]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


_NOT_KEYS = ("arms", "schedule", "fit", "luck", "metrics", "courses", "luck_from")  # of a configuration
_OWN = tuple(f.name for f in fields(Design) if f.name not in _NOT_KEYS)
_OF_WORLDS = ("dataset", "tastes", "refit_tastes", "n_users", "n_items", "holdout", "user_fraction")


def design_from(config: Mapping[str, Any]) -> Design:
    """The Design that a resolved configuration describes.

    Raises:
        ConfigError: a key is missing, or its value is none that a run can have.
    """
    if missing := [name for name in (*_OWN, *(f.name for f in fields(Schedule)), *_OF_ARMS) if name not in config]:
        raise ConfigError(f"{missing[0]}: missing; expected a key of the configuration")
    return Design(
        arms=expand_arms(*(config[name] for name in _OF_ARMS)),
        schedule=Schedule(**{f.name: config[f.name] for f in fields(Schedule)}),
        **{name: config[name] for name in _OWN},
        metrics=config.get("metrics") or (),  # absent from runs of before
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What every arm of one seed shares."""

    seed: int
    dataset: Dataset
    tastes: Tastes
    traits: Traits
    reference: Reference


def _distinct_pairs(log: Interactions) -> int:
    return len(distinct(pair_keys(log.users, log.items, log.n_items)))


def expand_arms(arms: Iterable[str], modes: Iterable[str], references: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Every arm in every mode, and the reference arms (none, random, oracle) in the one mode they have.

    An arm may also be written with its own mode, as in ``als:organic``.
    """
    for name, given in (("arms", arms), ("modes", modes), ("references", references)):
        listed = isinstance(given, Collection) and not isinstance(given, str)
        checks.require(listed and all(isinstance(each, str) for each in given), name, given, "a list, each text")
    pairs = []
    for arm in arms:
        name, _, mode = arm.partition(":")
        if mode:
            pairs.append((name, mode))
        elif name in REFERENCE_ARMS:
            pairs.append((name, REFERENCE_ARMS[name]))
        else:
            pairs.extend((name, m) for m in modes)
    for name in references:
        if name not in REFERENCE_ARMS:
            raise ConfigError(f"references: '{name}'; expected some of {', '.join(REFERENCE_ARMS)}")
        pairs.append((name, REFERENCE_ARMS[name]))
    return tuple(dict.fromkeys(pairs))


def build(spec: Spec, what: str, **options: Any) -> Any:
    """Make an object from its spec; anything without `_target_` is copied as it is.

    Raises:
        ConfigError: naming `what`, when the target does not exist or does not take the options.
        MissingExtraError: the target needs an optional dependency.
    """
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    if not isinstance(spec, Mapping):
        return copy.deepcopy(spec)
    _check_options(spec, what, options)
    try:
        return instantiate(dict(spec), **options, _convert_="all")
    except (HydraException, ImportError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, SimenvError):
            cause = cause.__cause__
        if isinstance(cause, SimenvError):
            raise cause from None
        if isinstance(cause, ModuleNotFoundError) and (cause.name or "").split(".")[0] in _EXTRAS:
            raise MissingExtraError(what, _EXTRAS[(cause.name or "").split(".")[0]]) from error
        raise ConfigError(f"{what}: cannot make {spec.get('_target_')}: {' '.join(str(cause).split())}") from error


def _check_options(spec: Mapping[str, Any], what: str, extra: Mapping[str, Any]) -> None:
    """Hold the options of a spec, and of specs within it, against the annotations of what will take them."""
    from hydra.utils import get_object

    try:
        target = get_object(str(spec["_target_"]))
    except (ImportError, KeyError, ValueError):
        return  # instantiate reports it
    checks.conform(target, {**spec, **extra}, f"{what}.")
    for name, value in spec.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping) and "_target_" in each:
                _check_options(each, f"{what}.{name}", {})


def without_carrying(spec: Any) -> Any:
    """A spec without the options that say how a language model's answers are got and not what is asked: endpoint,
    cache, limits, budget, prices - and without keys. A run may go on with others.
    """
    if isinstance(spec, list):
        return [without_carrying(value) for value in spec]
    if not isinstance(spec, Mapping):
        return spec
    carrying = _carrying(spec)
    kept = {name: without_carrying(value) for name, value in spec.items() if name not in carrying}
    return public(kept) if carrying else kept


def language_models(spec: Any) -> list[Mapping[str, Any]]:
    """The specs of language models in a spec, itself included."""
    if isinstance(spec, list):
        return [found for value in spec for found in language_models(value)]
    if not isinstance(spec, Mapping):
        return []
    return [spec] if _carrying(spec) else [found for value in spec.values() for found in language_models(value)]


def _carrying(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that a spec's target declares (`simenv.language_models.carrying`); none where it is no factory."""
    from hydra.utils import get_object

    if not isinstance(spec.get("_target_"), str):
        return ()
    try:
        target = get_object(spec["_target_"])
    except (ImportError, ValueError):
        return ()  # `build` reports it
    return target.carrying if isinstance(target, Carries) else ()


def offer_recommenders() -> None:
    """Let Hydra's `recommender/all` be every recommender that has a yaml, so that each can be an arm.

    The files are read here, because Hydra takes three times as long for as many in a list of defaults. To it are left
    those that need it: with defaults or a package of their own, or unreadable.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    files = {name: _recommender_file(path, path.stat().st_mtime_ns) for name, path in paths("recommender").items()}
    left = [name for name, content in files.items() if content is None]
    node = OmegaConf.merge(*(content for content in files.values() if content is not None))
    ConfigStore.instance().store(group="recommender", name="all", node=OmegaConf.merge({"defaults": left}, node))


@cache
def _recommender_file(path: Path, changed: int) -> Any:
    """What a yaml says; None where Hydra must read it."""
    from omegaconf import DictConfig, OmegaConf
    from yaml import YAMLError

    if path.read_text(encoding="utf-8").startswith("# @package"):
        return None
    try:
        content = OmegaConf.load(path)
    except YAMLError:
        return None
    return content if isinstance(content, DictConfig) and "defaults" not in content else None


def spec_from_conf(group: str, name: str) -> Any:
    """The spec that the yaml of a name holds (`simenv.names`).

    Raises:
        ConfigError: there is no such file; the message lists those there are.
    """
    from omegaconf import OmegaConf

    spec: Any = OmegaConf.to_container(OmegaConf.load(find(group, name)), resolve=False)
    return spec[name] if group == "recommender" else spec


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Schedule):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, Intervention):
        return [value.round, str(value)]
    if isinstance(value, Dataset):
        log = value.interactions
        content = hashlib.sha256()
        friends = () if value.friends is None else (value.friends.ptr, value.friends.ids)
        for array in (log.users, log.items, log.ratings, log.times, *friends):
            content.update(array.tobytes())
        return [value.name, value.n_users, value.n_items, content.hexdigest()]
    return f"{type(value).__module__}.{type(value).__qualname__}"
