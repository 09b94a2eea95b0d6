"""WHALE-FL (Su et al., AAAI 2025) on its published 20 devices: latency against FedAvg and HeteroFL, and the widths.

Scaled: HAR's 561 features and a model of one hidden layer of 64 (the paper: CNNs and a transformer; ``--full``: the MLP
of 256 and 128), Dirichlet(0.5), ten steps of 32. In "changing" every device draws a new factor between 0.3 and 1 on its
speed about every two minutes.
"""

from __future__ import annotations

from coordinator.simulator.experiment import Experiment, complete
from coordinator.simulator.population import builtin

from . import trial

NAME = "whale_fl"
ROUND = 'kind = "fedavg"; goal = 20; timeout = 0'
TOGETHER = 'kind = "cohort"; goal = 20; over_selection = 0'
STATIC = 'kind = "heterofl"; widths = { macbook2018 = 1.0, xavier = 0.5, tx2 = 0.5, nano = 0.25, pi = 0.25 }'
PLAN = {"batch": 32, "steps": 10, "learning_rate": 0.1, "lease": 3600}
RECIPES = {
    "fedavg": trial.recipe("fedavg", ROUND, TOGETHER, 'kind = "fixed"', **PLAN),
    "heterofl": trial.recipe("heterofl", ROUND, TOGETHER, STATIC, **PLAN),
    "whale-fl": trial.recipe("whale-fl", ROUND, TOGETHER, 'kind = "whale_fl"; delay = 1; half_window = 1', **PLAN),
    "whale-fl-published": trial.recipe(
        "whale-fl-published",
        ROUND,
        TOGETHER,
        'kind = "whale_fl"; delay = 1; half_window = 1; per_width = false; scale_mode = "once"',
        **PLAN,
    ),
    "whale-fl-async": trial.recipe(
        "whale-fl-async", 'kind = "fedbuff"; goal = 5', 'kind = "whale_fl"; delay = 1; half_window = 1', **PLAN
    ),
}
CHANGES = '}, change_every = "2m", change_low = 0.3, change_high = 1.0 }\n'


def main() -> None:
    given = trial.options(NAME, __doc__ or "")
    given.out.mkdir(parents=True, exist_ok=True)
    changing = given.out / "changing.toml"
    changing.write_text(builtin()["whale-paper"].replace("} }\n", CHANGES))
    for world, population in (("static", "whale-paper"), ("changing", str(changing))):
        entries = trial.compared(trial.run(given, _experiments(given, world, population)))
        for label, entry in entries.items():
            if "whale" in label:
                print(f"widths over time, {label}: {trial.widths(entry)}")


def _experiments(given: trial.Options, world: str, population: str) -> dict[str, Experiment]:
    names = RECIPES if world == "static" else ("fedavg", "heterofl", "whale-fl")
    return {
        f"{world}-{name}": Experiment(
            recipe=complete(RECIPES[name]),
            population=population,
            data=trial.data("har_features"),
            devices=20,
            until="1h" if given.full else "20m",
            split="dirichlet:0.5",
            model="mlp" if given.full else trial.SMALL,
            fineness=0.02,
        )
        for name in names
    }


if __name__ == "__main__":
    main()
