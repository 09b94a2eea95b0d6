"""HeteroFL's controls: is a mixture of widths better than everybody at one small width?

Diao, Ding, Tarokh (ICLR 2021) report that subnetworks of mixed widths keep nearly the full model's accuracy. Whether
that is the mixture's merit shows only beside "everybody at one width". Scaled: HAR's 561 features, 80 synchronous
rounds of all 20 devices of WHALE-FL's table (``--full``: the MLP of 256 and 128 for an hour).
"""

from __future__ import annotations

from coordinator.simulator.experiment import Experiment, complete

from . import trial
from .whale_fl import PLAN, ROUND, STATIC, TOGETHER

NAME = "heterofl"
WIDTHS = (1.0, 0.5, 0.25, 0.125, 0.0625)


def main() -> None:
    given = trial.options(NAME, __doc__ or "")
    recipes = {
        f"all-{width:g}": trial.recipe(f"all-{width:g}", ROUND, TOGETHER, f'kind = "fixed"; width = {width}', **PLAN)
        for width in WIDTHS
    }
    recipes["heterofl"] = trial.recipe("heterofl", ROUND, TOGETHER, STATIC, **PLAN)
    experiments = {
        name: Experiment(
            recipe=complete(recipe),
            population="whale-paper",
            data=trial.data("har_features"),
            devices=20,
            until="1h" if given.full else "80 versions",
            split="dirichlet:0.5",
            model="mlp" if given.full else trial.SMALL,
            fineness=0.02,
        )
        for name, recipe in recipes.items()
    }
    trial.compared(trial.run(given, experiments))


if __name__ == "__main__":
    main()
