"""ADSP (Hu, Wang, Wu, AAAI 2020) on its 18 workers: who is first, who waits, slow workers, how often to commit.

Scaled: HAR's 561 features, one hidden layer of 64 and batches of 128, whose times are the published ones (the paper:
CIFAR-10 with a CNN of 148,000 parameters; ``--full``: the MLP of 256 and 128, an hour, five degrees of heterogeneity).
A period is 30 s and six minutes are the end (the paper: 60 s, hours).
"""

from __future__ import annotations

from coordinator.simulator.experiment import Experiment, complete

from . import trial

NAME = "adsp"
ROUND = 'kind = "fedavg"; goal = 18; timeout = 0'
SUM = 'kind = "adsp_sum"'
PLAN = {"batch": 128, "learning_rate": 0.1, "lease": 3600}


def _together(pause: float) -> str:
    return f'kind = "ssp"; bound = 0; pause = {pause}; patience = 900'


def _adsp(name: str, rate: int, top: int, search: bool = True) -> str:
    epoch = "epoch = 300" if search else "epoch = 0"
    policy = f'kind = "adsp"; period = 30; rate = {rate}; top = {top}; shortest = 1; warm_up = 1; {epoch}'
    return trial.recipe(name, SUM, policy, 'kind = "fixed"', **PLAN)


RECIPES = {
    "bsp": trial.recipe("bsp", ROUND, _together(0.2), 'kind = "fixed"', steps=1, **PLAN),
    "ssp": trial.recipe(
        "ssp", SUM, 'kind = "ssp"; bound = 8; pause = 0.5; patience = 900', 'kind = "fixed"', steps=5, **PLAN
    ),
    "adacomm-fixed": trial.recipe(
        "adacomm-fixed", ROUND, _together(0.5), 'kind = "adacomm"; tau = 20; adaptive = false', 'kind = "fixed"', **PLAN
    ),
    "adacomm": trial.recipe(
        "adacomm", ROUND, _together(0.5), 'kind = "adacomm"; tau = 20; period = 60', 'kind = "fixed"', **PLAN
    ),
    "adsp": _adsp("adsp", 4, 16),
}


def main() -> None:
    given = trial.options(NAME, __doc__ or "")
    ordering = {name: _experiment(given, recipe) for name, recipe in RECIPES.items()}
    for label, entry in trial.compared(trial.run(given, ordering)).items():
        print(f"share of the time spent training, {label}: {trial.training_share(entry):.3f}")
    for degree in (1.45, 1.9, 2.3, 2.7, 3.2) if given.full else (1.45, 3.2):
        uneven = {f"{name}-H{degree}": _experiment(given, RECIPES[name], degree) for name in ("ssp", "adsp")}
        trial.compared(trial.run(given, uneven))
    rates = {f"rate-{rate}": _experiment(given, _adsp(f"rate-{rate}", rate, rate, search=False)) for rate in (1, 4, 16)}
    trial.compared(trial.run(given, rates))


def _experiment(given: trial.Options, recipe: str, heterogeneity: float = 0.0) -> Experiment:
    return Experiment(
        recipe=complete(recipe),
        population="adsp-paper",
        data=trial.data("har_features"),
        devices=18,
        until="1h" if given.full else "6m",
        model="mlp" if given.full else trial.SMALL,
        heterogeneity=heterogeneity,
        fineness=0.02,
    )


if __name__ == "__main__":
    main()
