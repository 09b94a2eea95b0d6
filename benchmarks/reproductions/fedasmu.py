"""FedASMU (Liu et al., AAAI 2024): devices whose speeds differ five times: time, accuracy, three ablations.

Scaled: 40 devices and four minutes, HAR's 561 features and one hidden layer of 64, Dirichlet(0.5), ten steps of 16,
rounds and buffers of five (the paper: 100 devices, images and text, five local epochs; ``--full``: 100 devices, an
hour, Fashion-MNIST with the CNN).
"""

from __future__ import annotations

from coordinator.simulator.experiment import Experiment, complete

from . import trial

NAME = "fedasmu"
GROUP = """
[[group]]
name = "speed{number}"
compute = {{ ms_per_sample = {milliseconds}, jitter = 0.1 }}
link = {{ down_kbps = 20000, up_kbps = 10000, latency = "20ms" }}
"""
PLAN = {"batch": 16, "steps": 10, "learning_rate": 0.1}
ASMU = 'kind = "fedasmu"'
STILL = 'kind = "fedasmu"; control = false'
RECIPES = {
    "fedavg": trial.recipe(
        "fedavg", 'kind = "fedavg"; goal = 5', 'kind = "cohort"; goal = 5; over_selection = 0', **PLAN
    ),
    "fedasync": trial.recipe("fedasync", 'kind = "fedasync"', **PLAN),
    "fedbuff": trial.recipe("fedbuff", 'kind = "fedbuff"; goal = 5', **PLAN),
    "fedasmu": trial.recipe("fedasmu", ASMU, 'kind = "fresh_model"', **PLAN),
    "without-learning": trial.recipe("without-learning", STILL, 'kind = "fresh_model"', **PLAN),
    "without-fresh": trial.recipe("without-fresh", ASMU, **PLAN),
    "without-both": trial.recipe("without-both", STILL, **PLAN),
}


def main() -> None:
    given = trial.options(NAME, __doc__ or "")
    given.out.mkdir(parents=True, exist_ok=True)
    population = given.out / "five-times.toml"
    groups = [GROUP.format(number=number, milliseconds=10.0 * number) for number in range(1, 6)]
    population.write_text('name = "five-times"\ndevices = 40\n' + "".join(groups))
    experiments = {
        name: Experiment(
            recipe=complete(recipe),
            population=str(population),
            data=trial.data("fashion_mnist" if given.full else "har_features"),
            devices=100 if given.full else 40,
            until="1h" if given.full else "4m",
            split="dirichlet:0.5",
            model="cnn" if given.full else trial.SMALL,
            fineness=0.02,
        )
        for name, recipe in RECIPES.items()
    }
    folders = trial.run(given, experiments)
    trial.compared(folders)
    trial.compared({name: folder for name, folder in folders.items() if name != "fedavg"})  # FedAvg does not get there


if __name__ == "__main__":
    main()
